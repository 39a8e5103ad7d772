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
Embedded = Callable[..., dict[str, Any]]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Three pods, none of them served."""
    site = Site(tmp_path / "site")
    yield site
    site.kill_all()


@pytest.fixture(scope="session")
def served_site(tmp_path_factory: pytest.TempPathFactory, prefect_url: str) -> Iterator[Site]:
    """Three pods that are served for all tests of the session."""
    site = Site(tmp_path_factory.mktemp("served"))
    site.serve(*site.names)
    yield site
    site.stop(*site.names)


@pytest.fixture
def served(served_site: Site) -> Iterator[Site]:
    """Three pods that are served; none is held."""
    yield served_site
    served_site.clear()


@pytest.fixture
def train(main: Main, home: Path) -> Train:
    """Runs `train` with a job file and more arguments, in this process."""

    def call(job: Path, *arguments: Any, job_id: str = "job-1", home: Path = home) -> Ended:
        return main(["train", job, "--home", home, "--job-id", job_id, "--json", *arguments])

    return call


@pytest.fixture
def embedded(served: Site, train: Train, tmp_path: Path) -> Embedded:
    """The summary of a job with its pods in one process; keyword arguments replace the job's sections."""

    def call(name: str = "embedded", **sections: Any) -> dict[str, Any]:
        job = served.write_job(deployed=False, name=name, **sections)
        ended = train(job, job_id=name, home=tmp_path / f"home-{name}")
        assert ended.code == 0, ended
        return ended.summary

    return call
