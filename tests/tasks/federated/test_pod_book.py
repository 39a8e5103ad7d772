"""What a pod writes down of a job: each thing before it leaves, who asked, and never a value of a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitfount_model.errors import PodError, StorageError
from bitfount_model.federation.book import Decision
from bitfount_model.federation.signing import new_key, sign
from tasks.federated.approvals import approval_for
from tasks.federated.exchange import EVALUATION, JOIN, PREDICTION, Asked, Exchange, round_phase
from tasks.federated.pod_state import PodState
from tasks.federated.pod_worker import PodWorker
from tasks.federated.rounds import Rounds
from tests.tasks.federated.team import SECRET, SOURCE, Team, trained, with_policy


@pytest.fixture
def state(team: Team) -> PodState:
    """The private folder of ann, who keeps a book from now on."""
    team.books["ann"] = state = PodState(team.folder / "states" / "ann", "ann").prepare()
    return state


def said(state: PodState) -> list[Decision]:
    return [line.decision for line in state.audit.lines()]


def joining(team: Team, exchange: Exchange, session: int, pod: str = "ann") -> PodWorker:
    """A pod that has looked at a job."""
    worker = PodWorker(team.pod(pod), exchange, session)
    worker.advance()
    return worker


def test_each_thing_that_leaves_is_a_line_with_the_rows_behind_it(team: Team, state: PodState) -> None:
    federation = team.initialised()
    rounds = trained(federation)
    for phase in (EVALUATION, PREDICTION):
        federation.exchange.ask(phase, Asked(federation.job.pods, rounds.weights))
        federation.reach.work()
    found = said(state)
    assert [(line.what, line.round_number, line.rows) for line in found] == [
        ("joined", None, 24),
        ("summarised", None, 19),
        ("trained", 1, 19),
        ("trained", 2, 19),
        ("trained", 3, 19),
        ("evaluated", None, 2),
        ("predicted", None, 24),
    ]
    assert {(line.job, line.model, line.modeller) for line in found} == {("job-1", federation.job.model_sha256, None)}


@pytest.mark.parametrize("leave", [False, True])
def test_a_failure_is_a_line_without_a_row_whatever_the_modeller_is_told(
    team: Team, state: PodState, leave: bool
) -> None:
    team.policies["ann"] = with_policy(errors_may_leave=leave)
    federation = team.initialised()
    team.tell("ann", 1, "raise")
    Rounds(federation).open()
    federation.reach.work()
    told = federation.exchange.failure(round_phase(1), "ann", federation.session)
    assert told is not None and (str(SECRET) in told) is leave
    last = said(state)[-1]
    assert (last.what, last.round_number) == ("failed", 1)
    assert last.reason is not None and "ValueError in the model or below it" in last.reason
    assert str(SECRET).encode() not in state.audit.path.read_bytes()


def test_a_refusal_is_a_line_with_its_reasons(team: Team, state: PodState) -> None:
    team.policies["ann"] = with_policy(maximum_rounds=2, models="approved")
    federation = team.began()
    worker = joining(team, federation.exchange, federation.session)
    (line,) = said(state)
    assert (line.what, line.job, line.model) == ("refused", "job-1", federation.job.model_sha256)
    assert line.reason == worker.left
    assert line.reason is not None and "is not approved" in line.reason and "at most 2 are allowed" in line.reason
    assert f"pod approve POD.yaml {federation.exchange.url}/model.py" in line.reason


def test_approving_and_revoking_count_at_the_next_join(team: Team, state: PodState) -> None:
    team.policies["ann"] = with_policy(models="approved")
    federation = team.began()
    assert joining(team, federation.exchange, federation.session).left is not None
    approval = approval_for(SOURCE, "model.py", None)
    state.approve(SOURCE, approval)
    joined = joining(team, federation.exchange, federation.session)
    assert joined.has_joined
    state.revoke(approval.sha256, "ann@host")
    assert joined.left is None, "who has joined goes on"
    again = joining(team, federation.exchange, federation.session)
    assert again.left is not None and "is not approved" in again.left
    assert [line.what for line in said(state)] == ["refused", "approved", "joined", "revoked", "refused"]


def test_a_job_that_names_another_class_of_an_approved_source_is_refused(team: Team, state: PodState) -> None:
    team.policies["ann"] = with_policy(models="approved")
    state.approve(SOURCE, approval_for(SOURCE, "model.py", "Net"))
    federation = team.began(model_class="Other")
    worker = joining(team, federation.exchange, federation.session)
    assert worker.left is not None and "it asks for the class Other, and of that source the class Net" in worker.left


def test_a_pod_without_a_book_approves_nothing(team: Team) -> None:
    team.policies["ann"] = with_policy(models="approved")
    federation = team.began()
    worker = joining(team, federation.exchange, federation.session)
    assert worker.left is not None and "is not approved" in worker.left


def test_nothing_leaves_a_pod_whose_log_cannot_be_written(team: Team, state: PodState) -> None:
    federation = team.initialised()
    state.audit.path.unlink()
    state.audit.path.mkdir()
    Rounds(federation).open()
    federation.reach.work()
    assert not federation.exchange.has_answer(round_phase(1), "ann")
    reason = federation.exchange.failure(round_phase(1), "ann", federation.session)
    assert reason is not None and "the pod's audit log cannot be written" in reason
    assert str(state.folder) not in reason
    assert federation.exchange.has_answer(round_phase(1), "bob")


class FullDisk(PodState):
    """A book of which no line can be written."""

    def note(self, decision: Decision) -> None:
        raise StorageError("the disk is full")


def test_a_refusal_reaches_the_modeller_also_where_it_cannot_be_noted(team: Team, tmp_path: Path) -> None:
    team.books["ann"] = FullDisk(tmp_path, "ann")
    federation = team.began(pods=["bob", "cat"])
    assert joining(team, federation.exchange, federation.session).left is not None
    assert "does not name this pod" in str(federation.exchange.failure(JOIN, "ann", federation.session))


# -- signed jobs ----------------------------------------------------------------------------------------------------------------


def published(team: Team, private: bytes | None, **changes: Any) -> tuple[Exchange, int]:
    """A job that is signed with a key, or by nobody."""
    exchange, job = team.exchange(), team.job(**changes)
    exchange.publish(job, SOURCE, None if private is None else sign(job, private))
    return exchange, exchange.begin_session({})


def test_a_job_of_a_listed_modeller_is_taken_and_the_log_says_whose_it_was(team: Team, state: PodState) -> None:
    (private, public), (_, other) = new_key(), new_key()
    team.policies["ann"] = with_policy(modellers=(other, public))
    assert joining(team, *published(team, private)).has_joined
    assert [(line.what, line.modeller) for line in said(state)] == [("joined", public)]


def test_an_unsigned_job_and_one_of_somebody_else_are_refused_with_the_reason(team: Team, state: PodState) -> None:
    (stranger, strangers_key), (_, public) = new_key(), new_key()
    team.policies["ann"] = with_policy(modellers=(public,))
    worker = joining(team, *published(team, None))
    assert worker.left is not None and worker.left.startswith("pod 'ann' refuses the job 'job-1': it is not signed")
    elsewhere = Team(team.folder / "elsewhere", policies=team.policies, books=team.books)
    worker = joining(elsewhere, *published(elsewhere, stranger))
    assert worker.left is not None and f"it is signed by {strangers_key}, which is not among" in worker.left
    assert [line.what for line in said(state)] == ["refused", "refused"]


@pytest.mark.parametrize("listed", [False, True])
def test_a_job_that_was_changed_after_it_was_signed_is_refused_even_by_a_pod_that_lists_nobody(
    team: Team, listed: bool
) -> None:
    private, public = new_key()
    team.policies["ann"] = with_policy(modellers=(public,) if listed else "all")
    exchange, session = published(team, private)
    path = team.folder / "exchange" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epochs": 2}))
    worker = joining(team, exchange, session)
    assert worker.left is not None and "its signature is not one of this job and this model's source" in worker.left


@pytest.mark.parametrize("content", ["", "[]", '{"public_key": "x"}', '{"public_key": "x", "signature": "zz"}'])
def test_a_signature_that_is_none_is_refused(team: Team, content: str) -> None:
    exchange, session = published(team, None)
    (team.folder / "exchange" / "job.sig.json").write_text(content)
    worker = joining(team, exchange, session)
    assert worker.left is not None and not worker.has_joined


def test_an_error_of_a_pod_has_a_plain_text_beside_the_one_that_leaves() -> None:
    assert (str(PodError("text", plain="plain")), PodError("text", plain="plain").plain) == ("text", "plain")
