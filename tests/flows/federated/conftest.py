"""Pods with real rows, and a job over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Ended
from tests.flows.federated.site import Site

Main = Callable[[Sequence[str | Path]], Ended]
Train = Callable[..., Ended]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Three pods, none of them served."""
    site = Site(tmp_path / "site")
    yield site
    site.kill_all()


@pytest.fixture
def train(main: Main, home: Path) -> Train:
    """Runs `train` with a job file and more arguments, in this process."""

    def call(job: Path, *arguments: Any, job_id: str = "job-1", home: Path = home) -> Ended:
        return main(["train", job, "--home", home, "--job-id", job_id, "--json", *arguments])

    return call
