"""Images: decoded as Pillow does, transformed as asked, and every problem named by column, row and file."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bitfount_model.data import (
    BitfountSchema,
    DataStructure,
    ImageDataLoader,
    Loaders,
    PercentageSplitter,
    StepLoader,
    make_loaders,
)
from bitfount_model.data.images import compile_transformations, read_image
from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.types import DataSplit, Problem

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def saved(folder: Path, name: str, pixels: np.ndarray = PIXELS, **options: object) -> str:
    Image.fromarray(pixels).save(folder / name, **options)
    return str(folder / name)


def transformed(pixels: np.ndarray, *transformations: object, seed: int = 0) -> np.ndarray:
    """An image (values 0 to 255) after transformations, from 0 to 1."""
    image = pixels.astype(np.float32) / 255
    entries = [{"image": {"arg": "scan", "transformations": list(transformations)}}]
    for transformation in compile_transformations(entries, "scan", DataSplit.TRAIN):
        image = transformation(image, np.random.default_rng(seed))
    return image


def test_colours_are_numbers_from_zero_to_one(tmp_path: Path) -> None:
    found = read_image(saved(tmp_path, "a.png"))
    assert found.dtype == np.float32 and found.shape == (6, 8, 3)
    np.testing.assert_allclose(found * 255, PIXELS, atol=1e-4)
    np.testing.assert_array_equal(read_image((tmp_path / "a.png").read_bytes()), found)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_other_modes_become_grey_or_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    grey = mode in ("L", "LA", "1")
    expected = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) / 255
    np.testing.assert_allclose(read_image(path), expected.reshape(6, 8, -1), atol=1e-6)
    assert read_image(path).shape[2] == (1 if grey else 3)


def test_sixteen_bits_keep_their_precision(tmp_path: Path) -> None:
    pixels = np.array([[0, 1], [256, 65535]], dtype=np.uint16)
    found = read_image(saved(tmp_path, "deep.png", pixels))
    np.testing.assert_allclose(found[:, :, 0] * 65535, pixels, rtol=1e-6)


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    path = saved(tmp_path, "turned.png", exif=exif)
    np.testing.assert_allclose(read_image(path) * 255, np.rot90(PIXELS, k=-1), atol=1e-4)


def test_files_that_are_no_images_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = Path(saved(tmp_path, "whole.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    for name in ("text.png", "empty.png", "cut.png"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.png: the file does not exist"):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("side", [10_001, 14_000])
def test_an_image_that_unpacks_to_very_much_is_refused_before_it_is_unpacked(tmp_path: Path, side: int) -> None:
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    with pytest.raises(DataError, match=r"wanted at most 100000000|decompression bomb"):
        read_image(bomb.getvalue())


def test_resizing_is_pillow_s() -> None:
    expected = np.asarray(Image.fromarray(PIXELS).resize((5, 4), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    found = transformed(PIXELS, {"Resize": {"height": 4, "width": 5}})
    assert found.shape == (4, 5, 3)
    np.testing.assert_allclose(found, expected, atol=1 / 255)


def test_cropping_takes_the_middle() -> None:
    found = transformed(PIXELS, {"CenterCrop": {"height": 2, "width": 4}})
    np.testing.assert_allclose(found * 255, PIXELS[2:4, 2:6], atol=1e-4)
    with pytest.raises(DataError, match="CenterCrop to 7 x 4 of an image of 6 x 8"):
        transformed(PIXELS, {"CenterCrop": {"height": 7, "width": 4}})


def test_normalising_takes_off_the_mean_and_divides_by_the_deviation() -> None:
    found = transformed(PIXELS, {"Normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1.0]}})
    np.testing.assert_allclose(found, (PIXELS / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0], rtol=1e-4, atol=1e-5)
    grey = transformed(PIXELS[:, :, :1], {"Normalize": {"mean": 0.5, "std": 0.5}})
    np.testing.assert_allclose(grey, PIXELS[:, :, :1] / 127.5 - 1, atol=1e-5)
    with pytest.raises(DataError, match="3 means and 3 deviations for an image of 1 channels"):
        transformed(PIXELS[:, :, :1], "Normalize")


def test_grey_is_pillow_s_and_grey_images_can_become_colour() -> None:
    grey = transformed(PIXELS, "Grayscale", "ToTensorV2")
    np.testing.assert_allclose(grey[:, :, 0], np.asarray(Image.fromarray(PIXELS).convert("L")) / 255, atol=1 / 255)
    assert transformed(PIXELS, "Grayscale", "ToRGB").shape == (6, 8, 3)
    assert transformed(PIXELS, "ToRGB").shape == (6, 8, 3)


def test_flipping_is_decided_by_the_generator_that_is_given() -> None:
    flipped = [
        np.allclose(transformed(PIXELS, {"HorizontalFlip": {"p": 0.3}}, seed=seed) * 255, PIXELS[:, ::-1], atol=1e-4)
        for seed in range(300)
    ]
    assert flipped == [np.random.default_rng(seed).random() < 0.3 for seed in range(300)]
    np.testing.assert_allclose(transformed(PIXELS, {"HorizontalFlip": {"p": 1}}) * 255, PIXELS[:, ::-1], atol=1e-4)


def test_transformations_hold_for_their_column_and_step() -> None:
    entries = [
        {"image": {"arg": "scan", "step": "train", "transformations": ["HorizontalFlip"]}},
        {"albumentations": {"arg": "scan", "transformations": ["Grayscale", "ToRGB"]}},
        {"image": {"arg": "other", "transformations": ["Grayscale"]}},
    ]
    counts = {part: len(compile_transformations(entries, "scan", part)) for part in DataSplit}
    assert counts == {DataSplit.TRAIN: 3, DataSplit.VALIDATION: 2, DataSplit.TEST: 2}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Resize", "found 'Resize'"),
        ({"audio": {}}, "found"),
        ({"image": {"arg": "a"}}, "wanted"),
        ({"image": {"arg": 1, "transformations": []}}, "arg is 1"),
        ({"image": {"arg": "a", "step": "fit", "transformations": []}}, "step is 'fit'"),
        ({"image": {"arg": "a", "transformations": "Resize"}}, "wanted a list"),
        ({"image": {"arg": "a", "transformations": ["Resise"]}}, "no transformation 'Resise', did you mean 'Resize'"),
        ({"image": {"arg": "a", "transformations": ["Resize"]}}, "Resize needs 'height'; .*needs 'width'"),
        ({"image": {"arg": "a", "transformations": [{"Resize": {"height": 0, "width": 2}}]}}, "height of Resize is 0"),
        ({"image": {"arg": "a", "transformations": [{"HorizontalFlip": {"p": 2}}]}}, "p of HorizontalFlip is 2"),
        ({"image": {"arg": "a", "transformations": [{"HorizontalFlip": {"q": 1}}]}}, "no argument 'q'"),
        ({"image": {"arg": "a", "transformations": [{"Normalize": {"std": 0}}]}}, "std of Normalize is 0"),
        ({"image": {"arg": "a", "transformations": [{"Normalize": {"std": "x"}}]}}, "std of Normalize is 'x'"),
        ({"image": {"arg": "a", "transformations": [{"Resize": 3}]}}, "Resize is given 3"),
        ({"image": {"arg": "a", "transformations": [3]}}, "found 3"),
    ],
)
def test_transformations_that_do_not_exist_are_refused(entry: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compile_transformations([entry], "a", DataSplit.TRAIN)  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=message):
        DataStructure(batch_transforms=[entry])  # type: ignore[list-item]


def table(folder: Path, rows: int = 10) -> pd.DataFrame:
    """Row `n` has the number `n` as feature, as class and as brightness of its image."""
    paths = [saved(folder, f"{n}.png", np.full((4, 4, 3), n, dtype=np.uint8)) for n in range(rows)]
    return pd.DataFrame(
        {"x": np.arange(float(rows)), "scan": paths, "t": range(rows)}, index=[f"row {n}" for n in range(rows)]
    )


def loaded(
    frame: pd.DataFrame,
    transformations: list[object] | None = None,
    num_workers: int = 0,
    seed: int | None = 1,
    splitter: PercentageSplitter = PercentageSplitter(0, 0),  # noqa: B008 - a frozen value
    batch_size: int = 3,
) -> Loaders:
    structure = DataStructure(
        target="t",
        image_cols=["scan"],
        normalise=False,
        batch_transforms=[{"image": {"arg": "scan", "transformations": transformations or []}}],
    )
    schema = BitfountSchema()
    schema.generate_full_schema(frame, {**structure.force_stypes(), "categorical": ["t"]})
    return make_loaders(
        frame,
        schema=schema,
        datastructure=structure,
        splitter=splitter,
        problem=Problem.MULTICLASS,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
    )


def classes(batches: object) -> list[list[int]]:
    found = []
    for (x, images, support), y in batches:  # type: ignore[attr-defined]
        assert images.dtype == torch.float32 and images.shape == (len(y), 3, 4, 4) and support.shape == (len(y), 2)
        assert torch.equal(x[:, 0], y.float())
        assert torch.allclose(images[:, 0, 0, 0] * 255, y.float(), atol=1e-4)
        found.append(y.tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_holds_features_images_support_and_target_of_the_same_rows(tmp_path: Path, num_workers: int) -> None:
    loaders = loaded(table(tmp_path), num_workers=num_workers)
    assert isinstance(loaders.train, ImageDataLoader) and loaders.width == 1
    first, second = classes(loaders.train), classes(loaders.train)
    assert first != second and sorted(flat(first)) == sorted(flat(second)) == list(range(10))
    assert classes(StepLoader(loaders.train, 2, 4)) == [*first[2:], *second[:2]]
    tables = loaded(table(tmp_path).drop(columns="scan").assign(scan="x"), batch_size=3)
    loaders.train.set_epoch(0)
    assert classes(loaders.train) == [
        (tables.train.targets[torch.tensor(tables.train.order.of_epoch(0, 10)[at : at + 3])]).tolist()
        for at in range(0, 10, 3)
    ]


def test_random_transformations_depend_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    frame = table(tmp_path, 4)
    for n, path in enumerate(frame["scan"]):
        Image.fromarray(np.roll(PIXELS, n, axis=1)).save(path)

    def images(loaders: Loaders) -> torch.Tensor:
        return torch.cat([x[1] for x, _ in loaders.train])

    flip = ["HorizontalFlip"]
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    one, in_workers = loaded(frame, flip), loaded(frame, flip, num_workers=2)
    epochs = [images(one) for _ in range(6)]
    torch.manual_seed(5)
    assert all(torch.equal(images(in_workers), epoch) for epoch in epochs)
    torch.set_rng_state(states[0])
    images(loaded(frame, flip, seed=None, num_workers=2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    plain = loaded(frame)
    flipped = [(images(plain) != epoch).flatten(1).any(dim=1).tolist() for epoch in epochs]
    assert any(True in epoch and False in epoch for epoch in flipped), "each row has a chance of its own"
    assert len({tuple(epoch) for epoch in flipped}) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_names_column_row_and_file(tmp_path: Path, num_workers: int) -> None:
    frame = table(tmp_path, 3)
    Path(frame["scan"].iloc[1]).unlink()
    with pytest.raises(
        DataError, match=r"image column 'scan', row 'row 1': .*1\.png: the file does not exist"
    ) as caught:
        list(loaded(frame, num_workers=num_workers).train)
    assert "Traceback" not in str(caught.value)


def test_a_missing_path_is_refused_before_training(tmp_path: Path) -> None:
    frame = table(tmp_path, 3)
    frame.loc["row 2", "scan"] = None
    with pytest.raises(DataError, match=r"image column 'scan' is missing in 1 rows, first keys \['row 2'\]"):
        loaded(frame)


def test_images_of_several_sizes_say_what_to_add(tmp_path: Path) -> None:
    frame = table(tmp_path, 3)
    saved(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"\(4, 4, 3\), \(6, 8, 3\).*add Resize"):
        list(loaded(frame).train)
    assert len(list(loaded(frame, [{"Resize": {"height": 4, "width": 4}}]).train)) == 1


def test_skipped_images_are_never_opened(tmp_path: Path) -> None:
    frame = table(tmp_path)
    loader = loaded(frame).train
    kept = flat(classes(StepLoader(loader, 1, 1)))
    for n in set(range(10)) - set(kept):
        (tmp_path / f"{n}.png").unlink()
    assert flat(classes(StepLoader(loader, 1, 1))) == kept


def test_workers_are_a_number_from_zero(tmp_path: Path) -> None:
    for wrong in (-1, True, 1.5):
        with pytest.raises(ConfigurationError, match="num_workers"):
            loaded(table(tmp_path, 3), num_workers=wrong)  # type: ignore[arg-type]
