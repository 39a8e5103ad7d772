"""A job that is stopped anywhere goes on from its records, with the bits of one that never stopped."""

from __future__ import annotations

from typing import Any

import pytest

from bitfount_model.errors import BitfountError, IntegrityError, QuorumError
from tasks.federated import pod_worker
from tasks.federated import rounds as rounds_module
from tasks.federated.exchange import Exchange, round_phase
from tasks.federated.federation import Federation
from tasks.federated.finish import keep_weights
from tasks.federated.round_record import record_name
from tasks.federated.rounds import Rounds
from tests.tasks.federated.team import Team, files_below, one_round, plain_step, trained

NEVER_STOPPED: dict[str, Any] = {"epochs": 4, "optimiser": "FedAdam", "best": {"metric": "validation_loss"}}


class Killed(BaseException):
    """The process ends here."""


def kill(*arguments: Any, **named: Any) -> None:
    raise Killed


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """The same job in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod_worker, "step", plain_step)
        return trained(Team(tmp_path_factory.mktemp("in-one-go")).initialised(**NEVER_STOPPED))


def same(found: Rounds, wanted: Rounds) -> bool:
    return [record.weights.sha256 for record in found.records] == [record.weights.sha256 for record in wanted.records]


def again(team: Team) -> Federation:
    """The modeller and his pods start anew."""
    return team.initialised(**NEVER_STOPPED)


@pytest.mark.parametrize("closed", [1, 2, 3])
def test_rounds_go_on_after_the_newest_that_was_closed(team: Team, wanted: Rounds, closed: int) -> None:
    federation = again(team)
    rounds = Rounds(federation)
    for _ in range(closed):
        one_round(federation, rounds)

    found = trained(again(team))

    assert same(found, wanted)
    assert found.best is not None and wanted.best is not None
    assert found.best.round_number == wanted.best.round_number


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Exchange, "ask"),
        (Exchange, "update"),
        (Exchange, "put_weights"),
        (rounds_module, "write_record"),
        (Exchange, "close"),
        (Exchange, "forget_update"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_the_modeller_was_doing_when_he_was_killed(
    team: Team, wanted: Rounds, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    federation = again(team)
    rounds = Rounds(federation)
    one_round(federation, rounds)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, kill)
        one_round(federation, rounds)

    found = trained(again(team))

    assert same(found, wanted)
    left = [file for file in files_below(team.folder / "exchange") if "/updates/" in file and "safetensors" in file]
    assert left == [], "deltas that were added are removed, also those of the round in which it was killed"


def test_updates_that_came_before_a_round_failed_are_not_trained_again(team: Team) -> None:
    for pod in ("ann", "bob"):
        team.tell(pod, 2, "raise")
    federation = team.initialised()
    rounds = Rounds(federation)
    one_round(federation, rounds)
    with pytest.raises(QuorumError, match="round 2: 1 of 3 pods answered, the quorum is 2"):
        one_round(federation, rounds)
    note = federation.exchange.update_note(round_phase(2), "cat")
    assert note is not None
    for order in team.gate.iterdir():
        order.unlink()

    found = trained(team.initialised())

    assert federation.exchange.update_note(round_phase(2), "cat") == note
    assert found.records[1].pods == ("ann", "bob", "cat")
    assert same(found, trained(Team(team.folder / "other").initialised()))


def test_a_pod_that_failed_in_a_round_is_in_the_next(team: Team) -> None:
    team.tell("bob", 2, "raise")
    found = trained(team.initialised())
    assert [record.pods for record in found.records] == [("ann", "bob", "cat"), ("ann", "cat"), ("ann", "bob", "cat")]
    assert list(found.records[1].missing) == ["bob"]


def test_a_job_that_is_over_is_not_trained_again(team: Team) -> None:
    federation = again(team)
    manifest = keep_weights(federation, trained(federation))
    before = files_below(team.folder / "exchange" / "rounds")
    newer = again(team)
    rounds = Rounds(newer)
    assert rounds.are_over
    assert keep_weights(newer, rounds) == manifest
    assert files_below(team.folder / "exchange" / "rounds") == before


def test_early_stopping_is_remembered(team: Team) -> None:
    stopping = {"metric": "Accuracy", "patience": 1, "minimum_change": 10.0}
    found = trained(team.initialised(epochs=5, early_stopping=stopping))
    assert len(found.records) == 2 and found.state.stopped
    later = Rounds(team.initialised(epochs=5, early_stopping=stopping))
    assert later.are_over and later.state.stopping == found.state.stopping


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"round_number": 1}', b"\xff"])
def test_a_record_that_was_changed_is_not_gone_on_from(team: Team, content: bytes) -> None:
    federation = again(team)
    one_round(federation, Rounds(federation))
    (team.folder / "store" / record_name(1)).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"rounds/00001\.json .* is not what a round wrote"):
        Rounds(again(team))


def test_parameters_that_were_changed_are_not_gone_on_from(team: Team) -> None:
    federation = again(team)
    record = one_round(federation, Rounds(federation))
    (team.folder / "exchange" / record.weights.name).write_bytes(b"others")
    with pytest.raises(BitfountError) as caught:
        Rounds(again(team))
    assert isinstance(caught.value, IntegrityError)
