"""How far two tables are apart, and which rows are new."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from bitfount_model.data import BitfountSchema, TableProfile, drift, profile_of, row_digests
from bitfount_model.data.drift import stability_index
from bitfount_model.errors import SerializationError


def table(seed: int, shift: float = 0.0, rows: int = 5000) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {"number": generator.normal(shift, 1, rows), "kind": generator.choice(["a", "b"], rows, p=[0.7, 0.3])}
    )


def schema_of(frame: pd.DataFrame) -> BitfountSchema:
    schema = BitfountSchema("rows")
    schema.generate_full_schema(frame)
    return schema


def test_the_index_is_the_published_formula() -> None:
    expected = (0.5 - 0.2) * math.log(0.5 / 0.2) + (0.5 - 0.8) * math.log(0.5 / 0.8)
    assert stability_index((20, 80), (50, 50)) == pytest.approx(expected)
    assert stability_index((20, 80), (200, 800)) == pytest.approx(0)


def test_the_same_distribution_is_near_and_a_shifted_one_is_far() -> None:
    before = table(0)
    profile = profile_of(before, schema_of(before), list(before.columns))
    near, far = drift(profile, table(1)), drift(profile, table(1, shift=1.0))
    assert max(near.values()) < 0.02
    assert far["number"] > 0.5
    assert far["kind"] < 0.02
    assert drift(profile, before) == pytest.approx({"number": 0, "kind": 0})


def test_missing_values_new_categories_and_lost_columns_are_drift() -> None:
    before = table(0)
    profile = profile_of(before, schema_of(before), list(before.columns))
    assert drift(profile, before.assign(number=np.nan))["number"] > 1
    assert drift(profile, before.assign(kind="c"))["kind"] > 1
    assert drift(profile, before.drop(columns="kind"))["kind"] == math.inf


@pytest.mark.parametrize("values", [[1.0] * 20, [np.nan] * 20, [0.0, 1.0] * 10])
def test_columns_of_few_values_have_a_profile(values: list[float]) -> None:
    frame = pd.DataFrame({"number": values})
    schema = BitfountSchema("rows")
    schema.generate_full_schema(frame, force_stypes={"continuous": ["number"]})
    assert drift(profile_of(frame, schema, ["number"]), frame) == pytest.approx({"number": 0})


def test_a_profile_survives_json() -> None:
    frame = table(0)
    profile = profile_of(frame, schema_of(frame), list(frame.columns))
    assert TableProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
    with pytest.raises(SerializationError, match="not the profile"):
        TableProfile.from_json({"rows": 1})


def test_rows_are_known_again_whatever_their_dtypes() -> None:
    frame = pd.DataFrame({"number": [1, 2, 3], "kind": [1, 0, 1]})
    schema = BitfountSchema("rows")
    schema.generate_full_schema(frame, force_stypes={"categorical": ["kind"], "continuous": ["number"]})
    columns = list(frame.columns)
    digests = row_digests(frame, schema, columns)
    wider = pd.concat([frame, pd.DataFrame({"number": [4.5], "kind": [np.nan]})], ignore_index=True)
    assert row_digests(wider, schema, columns)[:3].tolist() == digests.tolist()
    assert row_digests(wider, schema, columns)[3] not in digests
