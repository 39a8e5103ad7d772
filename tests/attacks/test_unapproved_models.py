"""A model that its pod's owner has not approved, or that was changed by a single byte since: refused, and not a byte of it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitfount_model import DataFrameSource
from bitfount_model.errors import ConfigurationError, ModelFileError, PodError
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from flows.pod import Follower, take_part
from flows.settings import read_pod
from tasks.federated import pod_worker
from tasks.federated.approvals import approval_for
from tasks.federated.exchange import JOIN, Exchange
from tasks.federated.pod_state import PodState
from tests.flows.federated.site import write_yaml
from tests.tasks.federated.team import Team, plain_step, table, with_policy

PADDING = (
    "# what a model of this size has in it besides: comments, layers, a loss, an optimiser, steps of three kinds\n"
)


def source_that_leaves(marker: Path) -> bytes:
    """Some 2 kB of a model that, run, would write a file before anything else."""
    text = (
        f"open({str(marker)!r}, 'w').close()\n"
        "from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn\n\n\n"
        "class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):\n    pass\n"
    )
    return (text + PADDING * (1 + (2000 - len(text)) // len(PADDING))).encode()


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once a model has run."""
    return tmp_path / "ran"


@pytest.fixture
def approved(tmp_path: Path, marker: Path) -> tuple[Team, Pod, bytes]:
    """A pod that has approved one source, and that source."""
    source = source_that_leaves(marker)
    state = PodState(tmp_path / "state", "ann")
    state.approve(source, approval_for(source, "model.py", None))
    policy = with_policy(models="approved")
    return Team(tmp_path / "team"), Pod("ann", DataFrameSource(table("ann")), policy, book=state), source


def refusal(team: Team, pod: Pod, source: bytes, sha256: str) -> str:
    """Why a pod refuses a source under a digest."""
    with pytest.raises(ConfigurationError) as caught:
        PodSession(pod, team.job(model_sha256=sha256), source)
    return str(caught.value)


def test_every_edit_of_one_byte_is_refused_whatever_digest_it_comes_with_and_nothing_runs(
    approved: tuple[Team, Pod, bytes], marker: Path, record_property: Callable[[str, object], None]
) -> None:
    team, pod, source = approved
    honest = hashlib.sha256(source).hexdigest()
    assert len(source) >= 2000
    edits = [
        source[:place] + bytes([source[place] ^ 1 << place % 8]) + source[place + 1 :] for place in range(len(source))
    ]
    edits += [source[:-1], source + b"\n", source + b" ", b"\n" + source, source[1:], b"\xef\xbb\xbf" + source, b""]
    for edit in edits:
        assert "is not approved" in refusal(team, pod, edit, hashlib.sha256(edit).hexdigest())
        assert f"the job names {honest[:16]}" in refusal(team, pod, edit, honest)
    assert not marker.exists()
    record_property("figure", f"{len(edits):,} edits of a source of {len(source):,} bytes refused, 0 bytes run")


def test_every_other_value_of_a_byte_is_refused_at_the_approvals(approved: tuple[Team, Pod, bytes]) -> None:
    _, pod, source = approved
    assert pod.book is not None
    for place in (0, len(source) // 2, len(source) - 1):
        for value in range(256):
            edit = source[:place] + bytes([value]) + source[place + 1 :]
            found = pod.book.approval_of(hashlib.sha256(edit).hexdigest())
            assert (found is not None) is (edit == source)


def test_a_digest_of_any_other_kind_is_approved_by_nothing(approved: tuple[Team, Pod, bytes]) -> None:
    _, pod, source = approved
    sha256 = hashlib.sha256(source).hexdigest()
    assert pod.book is not None and pod.book.approval_of(sha256) is not None
    for other in (sha256.upper(), sha256[:-1], f"{sha256}0", f" {sha256}", f"../approvals/{sha256}", f"{sha256}\n", ""):
        assert pod.book.approval_of(other) is None


def test_the_approved_source_does_run_so_that_the_others_would_have_been_seen(
    approved: tuple[Team, Pod, bytes], marker: Path
) -> None:
    team, pod, source = approved
    sha256 = hashlib.sha256(source).hexdigest()
    with pytest.raises(ModelFileError, match="Net lacks"):
        PodSession(pod, team.job(model_sha256=sha256), source)
    assert marker.exists()


@pytest.mark.parametrize("policy", [{}, {"models": "approved"}, {"models": ["0" * 64]}])
def test_a_served_pod_refuses_it_too_by_its_file_and_its_flow(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    monkeypatch.setattr(pod_worker, "step", plain_step)
    table("ann").to_csv(tmp_path / "ann.csv", index=False)
    limits = {"columns": "all", "minimum_rows": 1, "maximum_rounds": 9, "maximum_epochs": 9, "minimum_pods": 1}
    value = {"name": "ann", "data": {"csv": "ann.csv"}, "store": "store", "policy": {**limits, **policy}}
    settings = read_pod(write_yaml(tmp_path / "ann.yaml", value))
    settings.private().prepare()
    source = source_that_leaves(marker)
    exchange = Exchange(f"{settings.store}/job-1")
    team = Team(tmp_path / "team")
    exchange.publish(team.job(model_sha256=hashlib.sha256(source).hexdigest(), hyperparameters={}), source)
    session = exchange.begin_session({})

    with Follower(exchange, "ann") as follower, pytest.raises(PodError) as caught:
        take_part(settings, exchange, follower)

    wanted = "not among the models" if isinstance(policy.get("models"), list) else f"{exchange.url}/model.py"
    assert wanted in str(caught.value) == exchange.failure(JOIN, "ann", session)
    assert [line.decision.what for line in settings.private().audit.lines()] == ["refused"]
    assert not marker.exists()
