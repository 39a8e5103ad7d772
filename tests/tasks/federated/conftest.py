"""Steps without Prefect around them: what pods and modeller do is the same with it and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.federated import pod_worker
from tests.tasks.federated.team import Team, plain_step


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's steps are the functions that they decorate."""
    monkeypatch.setattr(pod_worker, "step", plain_step)


@pytest.fixture
def team(plain_steps: None, tmp_path: Path) -> Team:
    """Three pods that have not been asked for anything."""
    return Team(tmp_path / "team")
