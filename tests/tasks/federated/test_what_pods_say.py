"""What a pod says of its failures: kinds and places for the modeller, texts and tracebacks for its owner alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from bitfount_model.errors import (
    BitfountError,
    ConfigurationError,
    DataError,
    ParameterError,
    PodError,
    SchemaMismatchError,
    StorageError,
    TooFewRowsError,
    TrackingError,
    TrainingError,
)
from bitfount_model.reference import SOURCE_MODULE
from tasks.federated.exchange import round_phase
from tasks.federated.messages import MAX_REASON
from tasks.federated.pod_reasons import TooLateError
from tasks.federated.pod_worker import POD_LOGGER, PodWorker
from tasks.federated.rounds import Rounds
from tasks.progress import listening
from tests.tasks.federated.team import SECRET, Team, files_below, with_policy

TEXT = f"the row of {SECRET} is odd"


def guarded(team: Team, error: Exception) -> Callable[[], None]:
    """A step of a pod whose work raises."""

    def work() -> None:
        raise error

    return PodWorker(team.pod("ann"), team.exchange(), 1)._task("fit", "fit", work)


def said_of(team: Team, error: Exception) -> PodError:
    with pytest.raises(PodError) as caught:
        guarded(team, error)()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [ValueError(TEXT), KeyError(TEXT), ZeroDivisionError(TEXT), OSError(5, TEXT), MemoryError(TEXT)],
    ids=lambda error: type(error).__name__,
)
def test_of_the_models_own_errors_only_their_kind_is_said(team: Team, error: Exception) -> None:
    said = str(said_of(team, error))
    assert said == (
        f"pod 'ann' failed to fit: {type(error).__name__} in the model or below it; its text, which may hold values,"
        " is in the pod's own log"
    )


@pytest.mark.parametrize("kind", [DataError, TrainingError, BitfountError, SchemaMismatchError])
def test_of_errors_that_may_hold_values_only_their_kind_is_said(team: Team, kind: type[BitfountError]) -> None:
    team.policies["ann"] = with_policy(columns=("a", "y"))
    said = str(said_of(team, kind(TEXT)))
    assert str(SECRET) not in said and said.startswith(f"pod 'ann' failed to fit: {kind.__name__}; its text")


@pytest.mark.parametrize("kind", [ConfigurationError, ParameterError, StorageError, TooFewRowsError])
def test_errors_that_are_made_of_settings_and_counts_are_said(team: Team, kind: type[BitfountError]) -> None:
    assert str(said_of(team, kind("epochs is 0"))) == "pod 'ann' failed to fit: epochs is 0"
    assert str(said_of(team, kind("pod 'ann' has 3 rows"))) == "pod 'ann' has 3 rows"


def test_a_model_that_raises_errors_of_ours_is_not_quoted(team: Team) -> None:
    code: dict[str, Any] = {"__name__": f"{SOURCE_MODULE}0", "error": ConfigurationError(TEXT)}
    exec("def work():\n    raise error", code)
    with pytest.raises(PodError) as caught:
        PodWorker(team.pod("ann"), team.exchange(), 1)._task("fit", "fit", code["work"])()
    assert str(SECRET) not in str(caught.value)
    assert str(caught.value).startswith("pod 'ann' failed to fit: ConfigurationError; its text")


def test_columns_are_named_where_all_may_be_known(team: Team) -> None:
    assert "no column 'c'" in str(said_of(team, SchemaMismatchError("no column 'c'")))


@pytest.mark.parametrize("error", [ValueError(TEXT), DataError(TEXT)], ids=lambda error: type(error).__name__)
def test_nothing_of_the_error_hangs_on_what_leaves(team: Team, error: Exception) -> None:
    """Prefect walks causes and contexts, and sends what it finds there."""
    left = said_of(team, error)
    assert left.__cause__ is None and left.__suppress_context__
    assert left.args == (str(left),)


def test_the_owner_reads_all_of_it(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, POD_LOGGER):
        said_of(team, ValueError(TEXT))
    (record,) = caplog.records
    assert record.name == POD_LOGGER
    assert "pod ann, fit: Traceback" in record.getMessage() and f"ValueError: {TEXT}" in record.getMessage()
    assert "in work" in record.getMessage()


def test_an_owner_may_let_texts_and_places_leave(team: Team) -> None:
    team.policies["ann"] = with_policy(errors_may_leave=True)
    said = str(said_of(team, ValueError(TEXT)))
    assert said.startswith(f"pod 'ann' failed to fit: ValueError: {TEXT}\n")
    assert 'File "' in said and "in work" in said


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TrackingError("away"), True),
        (ConnectionError("away"), True),
        (ValueError("a bug"), False),
        (DataError("NaN"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_may_pass_is_known_although_its_cause_stays(team: Team, error: Exception, transient: bool) -> None:
    assert said_of(team, error).transient is transient


@pytest.mark.parametrize("step", ["join", "statistics"])
def test_a_database_that_does_not_answer_in_time_is_not_taken_for_the_deadline(team: Team, step: str) -> None:
    worker = PodWorker(team.pod("ann"), team.exchange(), 1)

    def work() -> None:
        raise TimeoutError("the database at 10.0.0.1 did not answer")

    with pytest.raises(PodError, match="TimeoutError in the model or below it") as caught:
        worker._task(step, step, work)()
    assert caught.value.transient, "it may answer in a moment"


def test_a_fit_that_was_too_late_is_not_done_again(team: Team) -> None:
    federation = team.initialised(deadline_seconds=7.5)
    worker = PodWorker(team.pod("ann"), federation.exchange, 1)
    worker.advance()

    def work() -> None:
        raise TooLateError("scope timed out")

    with pytest.raises(PodError, match=r"it took longer than the deadline of 7\.5 s") as caught:
        worker._task("fit", "fit", work)()
    assert not caught.value.transient


def test_an_interrupt_is_no_failure_of_the_pod(team: Team) -> None:
    with pytest.raises(KeyboardInterrupt):
        guarded(team, KeyboardInterrupt())()  # type: ignore[arg-type]


@pytest.mark.parametrize("errors_may_leave", [False, True])
def test_a_row_in_the_message_of_a_model_is_seen_by_nobody_unless_its_owner_allows(
    team: Team, errors_may_leave: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    team.policies["bob"] = with_policy(errors_may_leave=errors_may_leave)
    team.tell("bob", 1, "raise")
    events: list[Any] = []
    with listening(lambda event, values: events.append((event, values))):
        federation = team.initialised()
        rounds = Rounds(federation)
        rounds.open()
        federation.reach.work()
        record = rounds.aggregate()
    reason = federation.exchange.failure(round_phase(1), "bob", federation.session)
    assert reason is not None and record.missing == {"bob": reason}
    others = [record for record in caplog.records if record.name != POD_LOGGER]
    capfd.readouterr()  # the owner's console
    places = {
        "the reason": reason,
        "events": repr(events),
        "other logs": " ".join(record.getMessage() for record in others),
        "files": "\n".join(repr(content) for content in files_below(team.folder).values()),
    }
    seen = {place for place, text in places.items() if str(SECRET) in text}
    assert seen == ({"the reason", "events", "files"} if errors_may_leave else set())
    assert ("ValueError: cannot go on with the row of" in reason) is errors_may_leave
    assert "ValueError" in reason


def test_a_very_long_message_is_cut(team: Team) -> None:
    team.policies["ann"] = with_policy(errors_may_leave=True)
    federation = team.began()
    federation.exchange.put_failure("pods", "ann", 1, str(said_of(team, ValueError("x" * 10 * MAX_REASON))))
    assert len(federation.exchange.failure("pods", "ann", 1) or "") == MAX_REASON
