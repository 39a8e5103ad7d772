"""Models that raise, print or leave, wherever they do it: one message with the line, and JSON that stays JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import MODEL, Ended

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]

INIT, CREATE, STEP = (
    "self.lr = lr",
    "size = self.datastructure.input_size",
    "return F.cross_entropy(self(x), y)\n\n    def v",
)


def model_with(place: str, code: str) -> str:
    assert place in MODEL
    return MODEL.replace(place, f"{code}; {place}")


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        (INIT, "raise RuntimeError('boom')", "failed in __init__ ("),
        (CREATE, "raise KeyError('boom')", "failed in create_model ("),
        (CREATE, "raise SystemExit(0)", "SystemExit: 0"),
        (STEP, "open('/no/such/file')", "failed in training_step ("),
    ],
)
def test_a_model_that_raises_ends_with_its_line(
    main: Main, job_file: Write, home: Path, place: str, code: str, said: str
) -> None:
    ended = main(["train", job_file(source=model_with(place, code)), "--home", home])
    assert ended.code == 4, ended
    assert said in ended.err and code in ended.err
    assert "Traceback" not in ended.err


def test_what_a_model_prints_does_not_get_into_the_json(main: Main, job_file: Write, home: Path) -> None:
    source = model_with(CREATE, "print('LOUD', end='')")
    ended = main(["train", job_file(source=source, predict=None), "--home", home, "--json"])
    assert ended.code == 0, ended
    assert "LOUD" in ended.err
    assert json.loads(ended.out)["name"] == "tumours"


def test_a_metric_that_is_not_finite_is_null(main: Main, job_file: Write, home: Path) -> None:
    own = (
        "from bitfount_model import Metric, MetricCollection; "
        "self.metrics = MetricCollection(self.problem, {'endless': Metric(lambda t, p: float('inf'))})"
    )
    ended = main(
        ["train", job_file(source=model_with(INIT, own), predict=None), "--home", home, "--json", "--job-id", "one"]
    )
    assert ended.code == 0, ended
    assert ended.summary["metrics"] == {"endless": None}
