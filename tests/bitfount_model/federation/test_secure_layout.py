"""What the vectors of a job's secure sums can hold, and how exactly: as docs/federated.md says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitfount_model.errors import SecureSumError
from bitfount_model.federation.job import job_from_json
from bitfount_model.federation.secure_layout import USUAL_BOUND, context_of, layout_of

PODS = ("ann", "bob", "cat")
BASE = {"w": torch.zeros(3), "n": torch.tensor(4)}


def job(**changes: Any) -> Any:
    value = {
        "job_id": "j",
        "pods": list(PODS),
        "model_sha256": "0" * 64,
        "datastructure": {},
        "between_updates": 1,
        "epochs": 1,
        "seed": 1,
        "quorum": 3,
        "secure_aggregation": True,
    }
    return job_from_json(value | changes)


@pytest.mark.parametrize(("rows", "bits"), [(1000, 39), (10**6, 29), (10**7, 25)])
def test_values_up_to_8192_have_so_many_binary_digits_behind_the_point(rows: int, bits: int) -> None:
    layout = layout_of(job(), BASE, PODS, rows, ())
    assert layout.bound == USUAL_BOUND == 8192
    assert layout.fraction_bits == bits


def test_more_than_ten_million_rows_leave_a_smaller_bound() -> None:
    layout = layout_of(job(), BASE, PODS, 10**8, ())
    assert layout.bound < USUAL_BOUND and layout.fraction_bits >= 25


def test_where_each_pod_counts_once_rows_take_no_digits() -> None:
    assert layout_of(job(weighted=False), BASE, PODS, 10**8, ()).total_weight == 3


def test_param_clipping_gives_twice_its_bound_as_both_ends_of_an_update_are_within_it() -> None:
    clipping = {"prime_q": 2**20, "precision": 2**8, "num_workers": 4}
    assert layout_of(job(param_clipping=clipping), BASE, PODS, 1000, ()).bound == 2 * 2**20 / (2 * 2**8 * 4)


def test_a_context_takes_the_default_threshold_and_no_fewer_than_three_pods() -> None:
    layout = layout_of(job(), BASE, PODS, 1000, ())
    assert context_of(job(), 1, "0" * 64, PODS, layout).threshold == 3
    with pytest.raises(SecureSumError, match="at least 3"):
        context_of(job(), 1, "0" * 64, PODS[:2], layout)
