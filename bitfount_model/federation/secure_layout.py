"""Between a job and the vectors of its secure sums: how both sides of a round write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from bitfount_model.federation.fixed_point import Layout
from bitfount_model.federation.job import FederatedJob
from bitfount_model.federation.secure_sum import Context, default_threshold
from bitfount_model.param_clipping import clipping_bound
from bitfount_model.types import Parameters

USUAL_BOUND = 2.0**13
"""Of the magnitude of an update's values: far beyond what training moves, and 29 binary digits behind the point are left
with a million rows, 39 with a thousand."""


def layout_of(job: FederatedJob, base: Parameters, pods: Sequence[str], rows: int, metrics: Sequence[str]) -> Layout:
    """How a round's updates are written as words.

    Where the job clips parameters to a bound B (`param_clipping`), both ends of an update are within B, so that the update
    is within 2 B. Otherwise updates may be as large as `USUAL_BOUND`, as far as the rows leave digits for it.

    Args:
        job: says whether pods count by their rows, and whether values are clipped.
        base: the global parameters.
        pods: that are summed.
        rows: training rows of all of them.
        metrics: names of all metrics.

    Raises:
        SecureSumError: the bound leaves too few digits, or is too large.
    """

    def with_bound(bound: float | Fraction | None) -> Layout:
        weight = rows if job.weighted else len(pods)
        return Layout(base, pods=len(pods), total_weight=weight, bound=bound, metrics=metrics)

    if job.param_clipping is not None:
        return with_bound(2 * clipping_bound(job.param_clipping))
    widest = with_bound(None)
    return widest if widest.bound <= USUAL_BOUND else with_bound(USUAL_BOUND)


def context_of(
    job: FederatedJob, round_number: int, base_digest: str, pods: tuple[str, ...], layout: Layout
) -> Context:
    """What the masks of a round are bound to; the threshold is always the default one.

    Raises:
        SecureSumError: fewer than 3 pods.
    """
    return Context(job.job_id, round_number, base_digest, layout.digest, pods, default_threshold(len(pods)))
