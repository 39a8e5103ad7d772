"""A session in a process of its own answers as one in this process does, to the last bit; it is kept, and replaced."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bitfount_model import codec
from bitfount_model.data import PercentageSplitter, SplitterDefinedInData
from bitfount_model.data.splitters import DatasetSplitter
from bitfount_model.errors import ConfigurationError, ConfinedModelError, DataError, NotInitialisedError, ParameterError
from bitfount_model.federation.pod_session import PodSession
from tasks.federated.confined import session as session_module
from tasks.federated.confined.process import INHERITED, environment_of
from tasks.federated.confined.session import ConfinedSession, open_confined, splitter_to_json
from tasks.federated.exchange import round_phase
from tasks.federated.pod_worker import POD_LOGGER, PodWorker
from tasks.federated.rounds import Rounds
from tests.tasks.federated.confined.ready import LIMITS, OBEDIENT, made_ready, obedient_job, pod_of
from tests.tasks.federated.team import SOURCE, Team, with_policy


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return Team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def confined(team: Team) -> Iterator[ConfinedSession]:
    """One session whose process all tests use."""
    session = ConfinedSession(pod_of(team), obedient_job(team), OBEDIENT, limits=LIMITS)
    made_ready(session)
    yield session
    session.close()


@pytest.fixture
def open_(team: Team) -> Iterator[PodSession]:
    """The same in this process, with the threads that the job wants."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made_ready(PodSession(pod_of(team), obedient_job(team), OBEDIENT))
    torch.set_num_threads(before)


def test_every_answer_has_the_bits_of_an_open_session(confined: ConfinedSession, open_: PodSession) -> None:
    parameters = open_.parameters
    assert confined.model_is_classifier and confined.rows() == open_.rows()
    assert codec.digest(confined.parameters) == codec.digest(parameters)
    for number in (1, 2, 3):
        ours, theirs = confined.fit(number, parameters), open_.fit(number, parameters)
        assert codec.digest(ours.delta) == codec.digest(theirs.delta)
        assert replace(ours, delta={}, seconds=0.0) == replace(theirs, delta={}, seconds=0.0)
    assert confined.evaluate(parameters) == open_.evaluate(parameters)
    ours_predicted, theirs_predicted = confined.predict(parameters), open_.predict(parameters)
    assert np.array_equal(ours_predicted.preds, theirs_predicted.preds)
    assert ours_predicted.keys == theirs_predicted.keys


def test_how_far_a_fit_is_is_told_as_from_this_process(confined: ConfinedSession, open_: PodSession) -> None:
    told: dict[str, list[Any]] = {"confined": [], "open": []}
    for name, session in (("confined", confined), ("open", open_)):
        session.fit(1, session.parameters, on_batch=told[name].append)
    assert told["confined"] == told["open"] != []


def test_the_process_is_kept_from_round_to_round(confined: ConfinedSession) -> None:
    before = running()
    for number in (1, 2):
        confined.fit(number, confined.parameters)
    assert running() == before != set()


def running() -> set[int]:
    """The processes that this one has started."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_other_parameters_than_the_models_are_refused_here(confined: ConfinedSession) -> None:
    before = running()
    with pytest.raises(ParameterError, match="the global parameters"):
        confined.fit(1, {"other": torch.zeros(1)})
    assert running() == before


def test_rows_that_changed_are_not_handed_over_again(team: Team, confined: ConfinedSession) -> None:
    kept = confined.pod.source.data  # type: ignore[attr-defined]
    confined.close()
    try:
        confined.pod.source.data = kept * 2  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="have changed while the job 'job-1' was running"):
            confined.fit(1, confined.parameters)
    finally:
        confined.pod.source.data = kept  # type: ignore[attr-defined]
    assert confined.fit(1, confined.parameters).weight == confined.rows().train


def test_before_it_is_prepared_there_is_nothing_to_ask(team: Team) -> None:
    session = ConfinedSession(pod_of(team), obedient_job(team), OBEDIENT, limits=LIMITS)
    with pytest.raises(NotInitialisedError, match="prepare comes before the first round"):
        session.fit(1, {})
    session.close()


def test_a_source_that_does_not_load_ends_its_process(team: Team) -> None:
    source = b"raise ValueError('no')\n"
    job = replace(obedient_job(team), model_sha256=hashlib.sha256(source).hexdigest())
    before = running()
    with pytest.raises(ConfinedModelError) as caught:
        ConfinedSession(pod_of(team), job, source, limits=LIMITS)
    assert caught.value.kind == "ModelFileError"
    assert running() == before


def test_of_the_environment_only_what_is_named_is_handed_on() -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "s", "PREFECT_API_KEY": "s", "WARD_PASSWORD": "s", "HOME": "/home/pod"}
    kept = {"PATH": "/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    made = environment_of({**secret, **kept}, "/tmp/empty")
    assert kept.items() <= made.items() and not set(secret) - {"HOME"} & made.keys()
    assert made["HOME"] == made["TMPDIR"] == "/tmp/empty"
    assert made.keys() <= {*INHERITED, "HOME", "TMPDIR", *(name for name in made if name.startswith("PYTHON"))}


def test_splitters_travel_as_pod_files_name_them() -> None:
    assert splitter_to_json(PercentageSplitter(20, 5, seed=3))["percentage"]["seed"] == 3
    assert splitter_to_json(SplitterDefinedInData("part"))["defined_in_data"]["column_name"] == "part"

    class Own(DatasetSplitter):
        def split(self, *arguments: Any, **named: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ConfigurationError, match="takes no Own: use one of PercentageSplitter, SplitterDefinedInData"):
        splitter_to_json(Own())


def test_elsewhere_than_on_linux_a_pod_refuses_or_is_told_to_go_on(
    team: Team, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module.sys, "platform", "darwin")
    with pytest.raises(
        ConfigurationError, match="pod 'ann' refuses the job 'job-1'.*its system is darwin.*allow_unconfined"
    ):
        open_confined(pod_of(team), team.job(), SOURCE, "model.py")
    with caplog.at_level(logging.WARNING, POD_LOGGER):
        opened = open_confined(pod_of(team, with_policy(allow_unconfined=True)), team.job(), SOURCE, "model.py")
    assert type(opened) is PodSession
    assert "job job-1: the model is NOT shut off" in caplog.text


def test_a_worker_says_the_same_of_a_model_wherever_it_runs(plain_steps: None, tmp_path: Any) -> None:
    """What leaves the pod: the bits of its update, and of an error that the model raises its kind alone."""
    team = Team(tmp_path / "team", names=("ann",))
    federation = team.initialised(quorum=1)
    worker = PodWorker(
        team.pod("ann"), federation.exchange, federation.session, lambda *asked: ConfinedSession(*asked, limits=LIMITS)
    )
    rounds = Rounds(federation)
    rounds.open()
    try:
        team.tell("ann", 1, "raise")
        while worker.advance():
            pass
    finally:
        worker.close()
    reason = federation.exchange.failure(round_phase(1), "ann", federation.session)
    assert reason == (
        "pod 'ann' failed to fit: ValueError in the model or below it; its text, which may hold values, is in the pod's own log"
    )
