"""From a table to loaders: each split holds the rows that the splitter gave it, prepared by training rows alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from bitfount_model.data import (
    BitfountSchema,
    DataFrameSource,
    DatasetSplitter,
    DataStructure,
    Loaders,
    PercentageSplitter,
    Preparation,
    SklearnSource,
    SplitterDefinedInData,
    make_loaders,
    make_prediction_loader,
)
from bitfount_model.errors import DataError, MissingSplitError, SchemaMismatchError
from bitfount_model.types import DataSplit, Problem


def table(rows: int = 100) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": generator.normal(5, 3, rows),
            "c": generator.choice(["a", "b", "c"], rows),
            "t": generator.integers(0, 2, rows),
        },
        index=[f"key {number}" for number in range(rows)],
    )


def schema_of(frame: pd.DataFrame) -> BitfountSchema:
    schema = BitfountSchema("test")
    schema.generate_full_schema(frame, {"categorical": ["t"]})
    return schema


def loaded(
    frame: pd.DataFrame,
    splitter: DatasetSplitter | None = None,
    structure: DataStructure | None = None,
    seed: int | None = 1,
    preparation: Preparation | None = None,
    schema: BitfountSchema | None = None,
) -> Loaders:
    return make_loaders(
        frame,
        schema=schema or schema_of(frame),
        datastructure=structure or DataStructure(target="t"),
        splitter=splitter,
        problem=Problem.BINARY,
        batch_size=16,
        seed=seed,
        preparation=preparation,
    )


def predicted(frame: pd.DataFrame, like: pd.DataFrame, **more: object) -> object:
    return make_prediction_loader(
        frame,
        schema=schema_of(like),
        datastructure=DataStructure(target="t"),
        problem=Problem.BINARY,
        batch_size=16,
        preparation=loaded(like).preparation,
        **more,
    )


def keys(loaders: Loaders) -> list[set[str]]:
    return [set(loaders.of(part).keys or ()) for part in DataSplit]


def test_no_row_of_a_real_table_is_in_two_splits_and_every_epoch_trains_the_same_rows() -> None:
    frame = SklearnSource("breast_cancer").read()
    schema = BitfountSchema()
    schema.generate_full_schema(frame, {"categorical": ["target"]})
    loaders = make_loaders(
        frame.set_axis([f"k{n}" for n in range(len(frame))]),
        schema=schema,
        datastructure=DataStructure(target="target"),
        splitter=None,
        problem=Problem.BINARY,
        batch_size=32,
        seed=None,
    )
    train, validation, test = keys(loaders)
    assert (len(train), len(validation), len(test)) == (455, 57, 57)
    assert not train & validation and not train & test and not validation & test
    epochs = [torch.cat([x[0] for x, _ in loaders.train]) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert all(torch.equal(*(epoch[:, column].sort().values for epoch in epochs)) for column in range(30))


def test_the_split_depends_on_the_seed_and_not_on_when_it_is_made() -> None:
    assert keys(loaded(table())) == keys(loaded(table()))
    assert keys(loaded(table(), seed=2)) != keys(loaded(table()))
    assert keys(loaded(table(), seed=None)) == keys(loaded(table(), seed=None))


def test_features_are_prepared_by_the_training_rows_alone() -> None:
    frame = table()
    loaders = loaded(frame)
    train = frame.loc[loaders.train.keys]
    scaler = StandardScaler().fit(train[["x"]])
    for part in DataSplit:
        loader = loaders.of(part)
        rows = frame.loc[loader.keys]
        np.testing.assert_allclose(
            loader.features[:, 0].numpy(), scaler.transform(rows[["x"]])[:, 0], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(loader.features[:, 1].numpy(), pd.Categorical(rows["c"]).codes)
        np.testing.assert_array_equal(loader.targets.numpy(), rows["t"])
        assert loader.targets.dtype == torch.int64 and loader.features.dtype == torch.float32


def test_a_batch_is_features_and_support_and_target() -> None:
    (x, support), y = next(iter(loaded(table()).train))
    assert (x.shape, support.shape, y.shape) == ((16, 2), (16, 2), (16,))


def test_a_preparation_that_is_given_is_used() -> None:
    given = Preparation({"x": (0.0, 2.0)}, {"c": ("c", "b", "a")})
    loaders = loaded(table(), preparation=given)
    assert loaders.preparation == given
    np.testing.assert_allclose(loaders.train.features[:, 0], table().loc[loaders.train.keys, "x"] / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("splitter", "missing"),
    [(PercentageSplitter(0, 20), DataSplit.VALIDATION), (PercentageSplitter(20, 0), DataSplit.TEST)],
)
def test_a_split_without_rows_has_no_loader_and_asking_for_it_names_it(
    splitter: PercentageSplitter, missing: DataSplit
) -> None:
    loaders = loaded(table(), splitter)
    assert getattr(loaders, missing.value) is None
    assert loaders.train.rows == 80
    with pytest.raises(MissingSplitError, match=f"the {missing.value} split has no rows"):
        loaders.of(missing)


@pytest.mark.parametrize(("rows", "splitter"), [(0, PercentageSplitter()), (10, PercentageSplitter(0, 100))])
def test_no_rows_to_train_on_is_refused(rows: int, splitter: PercentageSplitter) -> None:
    with pytest.raises(MissingSplitError, match="the train split has no rows"):
        loaded(table(10).iloc[:rows], splitter, schema=schema_of(table(10)))


def test_one_row_is_enough_to_train() -> None:
    loaders = loaded(table(1))
    assert loaders.train.rows == 1 and loaders.validation is None and loaders.test is None
    assert next(iter(loaders.train))[0][0].tolist() == [[0.0, 0.0]]


def test_rows_without_keys_are_known_by_their_number_in_the_table() -> None:
    frame = table().reset_index(drop=True)
    test = loaded(frame).test
    assert test is not None and test.keys is not None
    assert torch.cat([y for _, y in test]).tolist() == frame.loc[test.keys, "t"].tolist()


def test_keys_that_happen_to_be_consecutive_numbers_are_kept() -> None:
    frame = pd.DataFrame({"id": range(1000, 1100), "x": np.arange(100.0), "t": [0, 1] * 50})
    test = loaded(DataFrameSource(frame, key="id").read()).test
    assert test is not None and test.keys is not None
    assert min(test.keys) >= 1000


def test_keys_stand_in_the_order_of_the_rows() -> None:
    loaders = loaded(table())
    assert loaders.test is not None and loaders.test.keys is not None
    positions = [int(key.split()[1]) for key in loaders.test.keys]
    assert positions == sorted(positions)
    assert torch.cat([y for _, y in loaders.test]).tolist() == table().loc[loaders.test.keys, "t"].tolist()


def test_the_splitter_s_own_column_is_no_feature_wherever_the_splitter_comes_from() -> None:
    frame = table().assign(part=["TRAIN", "TRAIN", "VALIDATION", "TEST"] * 25)
    splitter = SplitterDefinedInData("part")
    given = loaded(frame, splitter)
    own = loaded(frame, structure=DataStructure(target="t", data_splitter=splitter))
    assert given.width == own.width == own.train.features.shape[1] == 2
    assert keys(given) == keys(own) and given.train.rows == 50


def test_a_stratified_split_keeps_the_classes_alike() -> None:
    frame = table().assign(t=[0] * 90 + [1] * 10)
    loaders = loaded(frame, PercentageSplitter(20, 10, stratify=True))
    assert [int(loaders.of(part).targets.sum()) for part in DataSplit] == [7, 2, 1]
    with pytest.raises(DataError, match="needs the rows' classes"):
        loaded(frame, PercentageSplitter(stratify=True), DataStructure())


def test_the_table_is_checked_before_it_is_split() -> None:
    with pytest.raises(SchemaMismatchError) as caught:
        loaded(table().drop(columns="x").assign(c=1), schema=schema_of(table()))
    assert len(caught.value.differences) == 2


def test_neither_the_table_nor_the_datastructure_nor_global_random_state_changes() -> None:
    frame, structure = table(), DataStructure(target="t")
    kept, state = frame.copy(deep=True), torch.get_rng_state()
    list(loaded(frame, PercentageSplitter(20, 20), structure, seed=None).train)
    pd.testing.assert_frame_equal(frame, kept)
    assert structure == DataStructure(target="t") and structure.data_splitter is None
    assert torch.equal(torch.get_rng_state(), state)


def test_all_rows_are_predicted_in_order_with_or_without_a_target() -> None:
    frame = table()
    with_target, without = predicted(frame, frame), predicted(frame.drop(columns="t"), frame)
    assert with_target.keys == without.keys == frame.index.tolist()
    assert torch.equal(with_target.features, without.features)
    assert with_target.targets.tolist() == frame["t"].tolist() and not without.targets.any()
    assert torch.equal(torch.cat([x[0] for x, _ in without]), without.features)


def test_some_rows_are_predicted_where_they_are_named() -> None:
    frame = table()
    loader = predicted(frame, frame, rows=np.array([7, 3]))
    assert loader.keys == ["key 7", "key 3"]
    assert torch.equal(loader.features, predicted(frame, frame).features[[7, 3]])


def test_a_target_may_be_required_of_rows_that_are_evaluated() -> None:
    frame = table()
    with pytest.raises(SchemaMismatchError, match="'t' is not in the table"):
        predicted(frame.drop(columns="t"), frame, require_target=True)
    with pytest.raises(DataError, match="not in the schema"):
        predicted(frame.assign(t=5), frame, require_target=True)


def test_unseen_categories_are_predicted_and_missing_columns_are_not() -> None:
    frame = table(3)
    assert predicted(frame.assign(c="new"), table()).features[:, 1].tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(SchemaMismatchError, match="column 'c' is missing"):
        predicted(frame.drop(columns="c"), table())
    with pytest.raises(MissingSplitError, match="no rows to predict"):
        predicted(frame.iloc[:0], table())
