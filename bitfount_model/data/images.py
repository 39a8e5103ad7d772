"""Files of images -> float32 arrays, and the transformations on the way; used by the image loader."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bitfount_model.data.names import suggestion
from bitfount_model.errors import ConfigurationError, DataError
from bitfount_model.types import DataSplit

Transformation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Image `(height, width, channels)` float32 -> image, with the only source of chance that it may use."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""

STEPS = tuple(split.value for split in DataSplit)


def read_image(source: str | Path | bytes) -> np.ndarray:
    """Decode one image.

    The orientation that a camera noted (EXIF) is applied, transparency is dropped, palettes become colours.

    Args:
        source: path of a file, or its bytes.

    Returns:
        `(height, width, channels)` float32 from 0 to 1; 1 channel for grey images, 3 for colours.

    Raises:
        DataError: the file is missing, is no image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, below
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.width} x {image.height} pixels, wanted at most {MAX_PIXELS}; store it smaller"
                )
            return _as_floats(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise DataError(f"{name}: the file does not exist; check the image column's paths") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as an image: {error}; write it again as PNG or JPEG") from error


def compile_transformations(
    batch_transforms: Sequence[Mapping[str, Any]], column: str, step: DataSplit
) -> list[Transformation]:
    """The transformations of one image column in one step, in order.

    Args:
        batch_transforms: as in a datastructure.
        column: name of the image column.
        step: which split is loaded; entries without a step hold for all.

    Raises:
        ConfigurationError: an entry is not what it must be; lists all problems.
    """
    problems = transformation_problems(batch_transforms)
    if problems:
        raise ConfigurationError("batch_transforms: " + "; ".join(problems))
    entries = [entry for (entry,) in (transform.values() for transform in batch_transforms)]
    return [
        _compiled(*_named(transformation))
        for entry in entries
        if entry["arg"] == column and entry.get("step", step.value) == step.value
        for transformation in entry["transformations"]
    ]


def transformation_problems(batch_transforms: Sequence[Any]) -> list[str]:
    """What is wrong with a list of batch transforms, one sentence each.

    An entry is `{"image": {"arg": column, "step": "train" (or another split; left out: all), "transformations":
    [name, or {name: arguments}, ...]}}`; "albumentations" is another name of "image".
    """
    return [
        f"batch_transforms[{place}]: {problem}"
        for place, transform in enumerate(batch_transforms)
        for problem in _entry_problems(transform)
    ]


def _as_floats(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float32) / 65535
    elif image.mode == "F":
        values = np.asarray(image).astype(np.float32)
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        values = np.asarray(image.convert("L" if grey else "RGB")).astype(np.float32) / 255
    return values[:, :, None] if values.ndim == 2 else values


def _resize(image: np.ndarray, generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    channels = [
        Image.fromarray(np.ascontiguousarray(image[:, :, channel])).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _center_crop(image: np.ndarray, generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    if image.shape[0] < height or image.shape[1] < width:
        raise DataError(
            f"CenterCrop to {height} x {width} of an image of {image.shape[0]} x {image.shape[1]}; Resize it first"
        )
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _horizontal_flip(image: np.ndarray, generator: np.random.Generator, p: float = 0.5) -> np.ndarray:
    return image[:, ::-1] if generator.random() < p else image


def _normalize(
    image: np.ndarray,
    generator: np.random.Generator,
    mean: float | Sequence[float] = (0.485, 0.456, 0.406),  # of ImageNet, as in albumentations
    std: float | Sequence[float] = (0.229, 0.224, 0.225),
) -> np.ndarray:
    means, scales = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    if {means.size, scales.size} - {1, image.shape[2]}:
        raise DataError(
            f"Normalize has {means.size} means and {scales.size} deviations for an image of {image.shape[2]} channels"
        )
    normalized: np.ndarray = (image - means) / scales
    return normalized


def _grayscale(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    grey: np.ndarray = image @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)  # ITU-R BT.601
    return grey


def _to_rgb(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _unchanged(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return image


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_number_or_numbers(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) and value else [value]
    return all(type(number) in (int, float) and np.isfinite(number) for number in values)


def _is_spread(value: Any) -> bool:
    return _is_number_or_numbers(value) and bool(np.all(np.asarray(value) > 0))


_FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "CenterCrop": _center_crop,
    "Grayscale": _grayscale,
    "HorizontalFlip": _horizontal_flip,
    "Normalize": _normalize,
    "Resize": _resize,
    "ToGray": _grayscale,
    "ToRGB": _to_rgb,
    "ToTensorV2": _unchanged,  # batches are tensors anyway
}
_ARGUMENTS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "CenterCrop": {"height": (_is_size, "pixels"), "width": (_is_size, "pixels")},
    "HorizontalFlip": {"p": (_is_share, "a probability")},
    "Normalize": {"mean": (_is_number_or_numbers, "numbers"), "std": (_is_spread, "numbers above 0")},
    "Resize": {"height": (_is_size, "pixels"), "width": (_is_size, "pixels")},
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {"CenterCrop": ("height", "width"), "Resize": ("height", "width")}


def _compiled(name: str, arguments: Mapping[str, Any]) -> Transformation:
    return functools.partial(_FUNCTIONS[name], **arguments)  # unlike a closure, it can be sent to a worker


def _named(transformation: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of a transformation that is written as a name or as `{name: arguments}`."""
    if isinstance(transformation, str):
        return transformation, {}
    ((name, arguments),) = transformation.items()
    return name, arguments or {}


def _entry_problems(transform: Any) -> list[str]:
    if not isinstance(transform, Mapping) or len(transform) != 1 or not set(transform) <= {"image", "albumentations"}:
        return [f'found {transform!r}, wanted {{"image": {{"arg", "step", "transformations"}}}}']
    (entry,) = transform.values()
    if not isinstance(entry, Mapping) or not {"arg", "transformations"} <= set(entry) <= {
        "arg",
        "output",
        "step",
        "transformations",
    }:
        return [f'found {entry!r}, wanted "arg" (a column), "transformations" (a list), and perhaps "step"']
    problems = []
    if not isinstance(entry["arg"], str):
        problems.append(f"arg is {entry['arg']!r}, wanted the name of an image column")
    if entry.get("step", STEPS[0]) not in STEPS:
        problems.append(f"step is {entry['step']!r}, wanted one of {list(STEPS)}")
    if not isinstance(entry["transformations"], list | tuple):
        return [*problems, f"transformations is {entry['transformations']!r}, wanted a list"]
    return [*problems, *(text for item in entry["transformations"] for text in _transformation_problems(item))]


def _transformation_problems(item: Any) -> list[str]:
    if not isinstance(item, str) and not (isinstance(item, Mapping) and len(item) == 1):
        return [f"found {item!r}, wanted the name of a transformation, or {{name: arguments}}"]
    name, arguments = _named(item)
    if name not in _FUNCTIONS:
        return [f"no transformation {name!r}{suggestion(str(name), list(_FUNCTIONS))}"]
    if not isinstance(arguments, Mapping):
        return [f"{name} is given {arguments!r}, wanted its arguments by name"]
    known = _ARGUMENTS.get(name, {})
    problems = [
        f"{name} has no argument {key!r}{suggestion(str(key), list(known))}" for key in arguments if key not in known
    ]
    problems += [f"{name} needs {key!r}" for key in _REQUIRED.get(name, ()) if key not in arguments]
    problems += [
        f"{key} of {name} is {arguments[key]!r}, wanted {known[key][1]}"
        for key in arguments
        if key in known and not known[key][0](arguments[key])
    ]
    return problems
