"""A job's MLflow run is what its folder says, however often and with whatever interruptions it was recorded."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.utils.validation import _validate_metric_name

from bitfount_model.errors import BitfountError, ConfigurationError, IntegrityError, TrackingError
from tasks import record
from tasks.live_metrics import REST_PER_WORK, LiveMetrics
from tasks.manifest import read_manifest
from tasks.mlflow_client import connect, ensure_experiment, ensure_run, quiet_mlflow_environment, without_password
from tasks.record import mark_failed, record_job
from tasks.run_contents import ROOM, STEPS, metric_keys, valid_key
from tasks.store import Store
from tests.tasks.job_folder import history, job_folder
from tests.tracking_server import TrackingServer

CHANGING = (
    "create_experiment",
    "create_run",
    "log_batch",
    "log_inputs",
    "log_artifact",
    "set_terminated",
    "update_run",
    "delete_tag",
)


def runs(uri: str, experiment: str = "demo", view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id], run_view_type=view))


def snapshot(uri: str, experiment: str = "demo") -> dict[str, Any]:
    """Everything that people can see of the only run, but for times and places."""
    client = MlflowClient(tracking_uri=uri)
    (run,) = runs(uri, experiment)
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if "store" not in name and "note" not in name},
        "note": run.data.tags["mlflow.note.content"].rpartition("kept in")[0],
        "metrics": histories(client, run),
        "inputs": [data.to_dictionary() for data in run.inputs.dataset_inputs],
        "files": files(client, run.info.run_id),
    }


def histories(client: MlflowClient, run: Any) -> dict[str, list[tuple[int, float, int]]]:
    """Every value that was ever logged, with its time counted from the run's start."""
    return {
        key: sorted(
            (metric.step, metric.value, metric.timestamp - run.info.start_time)
            for metric in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }


def files(client: MlflowClient, run_id: str, folder: str | None = None) -> dict[str, str]:
    found: dict[str, str] = {}
    for info in client.list_artifacts(run_id, folder):
        if info.is_dir:
            found |= files(client, run_id, info.path)
        else:
            content = Path(client.download_artifacts(run_id, info.path)).read_bytes()
            found[info.path] = hashlib.sha256(content).hexdigest()
    return found


class Interrupted:
    """MLflow's client until the n-th call that changes something; after that call, something happens."""

    def __init__(self, client: MlflowClient, calls: int, event: Callable[[], None]) -> None:
        self.client = client
        self.calls = calls
        self.event = event

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name not in CHANGING:
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self.calls -= 1
            if self.calls == 0:
                self.event()
            return result

        return counted


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int, event: Callable[[], None]) -> None:
    monkeypatch.setattr(record, "connect", lambda uri: Interrupted(connect(uri), calls, event))


def crash() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def where(sqlite_uri: str, tmp_path: Path) -> dict[str, Any]:
    return {"tracking_uri": sqlite_uri, "experiment": "demo", "artifact_root": str(tmp_path / "artifacts")}


@pytest.fixture
def server(mlflow_server: TrackingServer) -> Iterator[TrackingServer]:
    if mlflow_server.process is None:
        mlflow_server.start()
    yield mlflow_server


# What a run says


def test_a_finished_job_shows_its_parameters_metrics_inputs_and_files(where: dict[str, Any], tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job")
    manifest = record_job(store, **where, prefect_run="prefect-1")

    seen = snapshot(where["tracking_uri"])
    assert seen["name"] == "demo-1" and seen["tags"]["bitfount.job"] == "demo" and seen["status"] == "FINISHED"
    assert seen["params"]["model"] == "Net" and seen["params"]["rows.test"] == "114"
    assert seen["params"]["hyperparameters.optimiser.lr"] == "0.01"
    assert seen["params"]["hyperparameters.hidden"] == "[64, 32]"
    assert len(seen["params"]["hyperparameters.note"]) == 6000
    assert {"epochs": "4", "batch_size": "32", "seed": "7", "columns": "4", "parameters": "4290"}.items() <= seen[
        "params"
    ].items()
    assert "steps" not in seen["params"]
    assert seen["metrics"]["train/loss"] == [(epoch, 1 / epoch, epoch) for epoch in (1, 2, 3, 4)]
    assert [value for _, value, _ in seen["metrics"]["validation/AUC"]] == [1 - 0.3 / epoch for epoch in (1, 2, 3, 4)]
    assert set(seen["metrics"]) == {
        "train/loss",
        "validation/loss",
        "validation/AUC",
        "validation/Brier Loss",
        "test/AUC",
        "test/Brier Loss",
        "time/fit_seconds",
    }
    assert seen["metrics"]["test/AUC"] == [(4, 0.9931, 4)]
    fitted = read_manifest(store, "fit")
    assert fitted is not None
    assert seen["tags"]["bitfount.weights_sha256"] == fitted.files["weights"].sha256
    assert seen["tags"]["bitfount.job_id"] == "demo-1" and seen["tags"]["bitfount.prefect_run"] == "prefect-1"
    assert seen["tags"]["bitfount.code_version"] == "0.1.0" and seen["tags"]["bitfount.seed"] == "7"
    assert "| AUC | 0.9931 |" in seen["note"].replace(ROOM, "") and "patients.csv" in seen["note"]
    assert seen["note"].startswith("AUC 0.9931, Brier Loss 0.0210 on 114 test rows\n")
    assert set(seen["files"]) == {
        "job.json",
        "history.json",
        "model/model.py",
        "model/schema.yaml",
        "model/datastructure.json",
        "model/weights.safetensors",
        "evaluate/predictions.parquet",
        "predict/predictions.parquet",
        "plots/learning_curves.png",
        "plots/roc.png",
        "report.html",
    }
    assert seen["files"]["model/weights.safetensors"] == fitted.files["weights"].sha256
    assert manifest == read_manifest(store, "record")
    assert manifest.values["run_id"] == runs(where["tracking_uri"])[0].info.run_id


def test_the_data_set_is_named_described_and_digested_without_its_rows(where: dict[str, Any], tmp_path: Path) -> None:
    record_job(job_folder(tmp_path / "job"), **where)

    (run,) = runs(where["tracking_uri"])
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("patients.csv", "abababab")
    assert json.loads(used.dataset.source) == {"uri": "/data/patients.csv"}
    columns = {column["name"]: column["type"] for column in json.loads(used.dataset.schema)["mlflow_colspec"]}
    assert columns == {"mean radius": "double", "größe": "long", "smoker": "boolean", "target": "string"}
    assert json.loads(used.dataset.profile)["sha256"] == "ab" * 32
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


def test_values_that_are_no_finite_numbers_are_left_out(where: dict[str, Any], tmp_path: Path) -> None:
    stats = {"AUC": float("nan"), "R2": float("-inf"), "F1": 0.5}
    records = [{"epoch": 1, "epochs": 1, "rows": 3, "train_loss": None, "val_stats": stats}]
    record_job(job_folder(tmp_path / "job", records=records, metrics={"AUC": None, "F1": 0.25}), **where)

    seen = snapshot(where["tracking_uri"])
    assert set(seen["metrics"]) == {"validation/F1", "test/F1", "time/fit_seconds"}
    assert "| AUC | not defined |" in seen["note"].replace(ROOM, "")


def test_thousands_of_epochs_are_all_there_once(where: dict[str, Any], tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job", steps=STEPS[:2], records=history(2500))
    record_job(store, **where)
    first = snapshot(where["tracking_uri"])
    record_job(store, **where)

    assert [step for step, _, _ in first["metrics"]["validation/AUC"]] == list(range(1, 2501))
    assert snapshot(where["tracking_uri"]) == first


@given(st.lists(st.text(max_size=300), unique=True, max_size=8))
def test_any_names_of_metrics_become_distinct_names_that_mlflow_takes(names: list[str]) -> None:
    keys = metric_keys("validation", names)
    assert len(set(keys.values())) == len(names)
    for key in keys.values():
        _validate_metric_name(key)
        assert len(key) <= 250


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("AUC", "validation/AUC"),
        ("validation_loss", "validation/loss"),
        ("val_loss", "validation/loss"),
        ("R²", "validation/R²"),
    ],
)
def test_the_group_is_said_once(name: str, key: str) -> None:
    assert metric_keys("validation", [name]) == {name: key}


def test_names_keep_what_mlflow_takes_and_lose_what_it_refuses() -> None:
    assert valid_key("loss (mm²), a/../b//c.") == "loss _mm²__ a/b/c."


# Again and again


def test_recording_after_every_step_gives_the_same_run_as_recording_once(
    where: dict[str, Any], mlflow_database: Path, tmp_path: Path
) -> None:
    statuses = []
    for count in range(1, len(STEPS) + 1):
        store = job_folder(tmp_path / "job", steps=STEPS[:count])
        manifest = record_job(store, **where)
        statuses.append(snapshot(where["tracking_uri"])["status"])
        assert (read_manifest(store, "record") == manifest) == (count == len(STEPS))
    assert statuses == ["RUNNING"] * (len(STEPS) - 1) + ["FINISHED"]

    once = tmp_path / "once.db"
    once.write_bytes(mlflow_database.read_bytes())
    record_job(job_folder(tmp_path / "other"), **{**where, "tracking_uri": f"sqlite:///{once}"})
    assert snapshot(where["tracking_uri"]) == snapshot(f"sqlite:///{once}")


def test_a_crash_after_any_call_loses_nothing_and_leaves_nothing_twice(
    where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_job(job_folder(tmp_path / "whole"), **{**where, "experiment": "whole"})
    whole = snapshot(where["tracking_uri"], "whole")

    calls = 0
    crashed = True
    while crashed:
        calls += 1
        experiment = f"crash-{calls}"
        store = job_folder(tmp_path / experiment)
        with monkeypatch.context() as patch:
            interrupt_after(patch, calls, crash)
            try:
                record_job(store, **{**where, "experiment": experiment})
                crashed = False
            except KeyboardInterrupt:
                assert read_manifest(store, "record") is None
        record_job(store, **{**where, "experiment": experiment})
        assert snapshot(where["tracking_uri"], experiment) == whole
    assert calls > 15


def test_a_recorded_job_is_not_recorded_again_even_where_mlflow_is_gone(where: dict[str, Any], tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job")
    manifest = record_job(store, **where)
    Path(where["tracking_uri"].removeprefix("sqlite:///")).write_bytes(b"no database any more")
    assert record_job(store, **where) == manifest


def test_predictions_made_after_the_job_was_recorded_are_added(where: dict[str, Any], tmp_path: Path) -> None:
    without = tuple(step for step in STEPS if step != "predict")
    store = job_folder(tmp_path / "job", steps=without)
    first = record_job(store, **where, steps=without)
    assert read_manifest(store, "record") == first

    job_folder(tmp_path / "job", steps=["predict"])
    later = record_job(store, **where)
    assert later.values["run_id"] == first.values["run_id"] and "predict" in later.values["steps"]
    assert "predict/predictions.parquet" in snapshot(where["tracking_uri"])["files"]


def test_two_processes_that_record_the_same_job_at_once_make_one_run(tmp_path: Path) -> None:
    job_folder(tmp_path / "job")
    uri = f"sqlite:///{tmp_path}/fresh/mlflow.db"
    script = (
        "from tasks.record import record_job; from tasks.store import Store; import sys; sys.stdin.read(1);"
        f"record_job(Store({str(tmp_path / 'job')!r}), tracking_uri={uri!r}, experiment='demo',"
        f" artifact_root={str(tmp_path / 'artifacts')!r})"
    )
    both = [subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate(b"x")
    assert [process.returncode for process in both] == [0, 0]

    record_job(job_folder(tmp_path / "alone"), tracking_uri=uri, experiment="alone", artifact_root=str(tmp_path / "a"))
    assert len(runs(uri, view=ViewType.ALL)) == 1
    assert snapshot(uri) == snapshot(uri, "alone")


def test_of_two_runs_of_one_job_the_older_is_kept(where: dict[str, Any]) -> None:
    client = connect(where["tracking_uri"])
    experiment = ensure_experiment(client, "demo", where["artifact_root"])
    kept = ensure_run(client, experiment, "demo-1", "demo")
    client.create_run(experiment, start_time=kept.info.start_time + 1, tags={"bitfount.job_id": "demo-1"})
    client.create_run(experiment, start_time=kept.info.start_time - 1, tags={"bitfount.job_id": "demo-10"})

    assert ensure_run(client, experiment, "demo-1", "demo").info.run_id == kept.info.run_id
    assert len(runs(where["tracking_uri"])) == 2
    assert ensure_run(client, experiment, "demo-10", "demo").info.run_id != kept.info.run_id


def test_a_job_in_a_store_that_is_no_folder_is_recorded_too(where: dict[str, Any]) -> None:
    record_job(job_folder(f"memory://record-{time.time_ns()}"), **where)
    assert "model/weights.safetensors" in snapshot(where["tracking_uri"])["files"]


# How runs end


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_failed_job_says_why_until_it_goes_on(where: dict[str, Any], tmp_path: Path, status: Any) -> None:
    store = job_folder(tmp_path / "job", steps=STEPS[:2])
    run_id = mark_failed(store, **where, reason="column 'age' is missing", status=status)

    seen = snapshot(where["tracking_uri"])
    assert seen["status"] == status and seen["tags"]["bitfount.reason"] == "column 'age' is missing"
    assert seen["note"].startswith("**Stopped:** column 'age' is missing")
    assert seen["metrics"]["train/loss"]

    record_job(store, **where)
    assert snapshot(where["tracking_uri"])["status"] == "RUNNING"
    assert record_job(job_folder(tmp_path / "job"), **where).values["run_id"] == run_id
    seen = snapshot(where["tracking_uri"])
    assert seen["status"] == "FINISHED" and "bitfount.reason" not in seen["tags"] and "Stopped" not in seen["note"]


def test_a_job_without_a_run_or_with_a_finished_one_is_not_marked_as_failed(
    where: dict[str, Any], tmp_path: Path
) -> None:
    assert mark_failed(Store(tmp_path / "nothing"), **where, reason="bad data") is None
    store = job_folder(tmp_path / "job")
    record_job(store, **where)
    assert mark_failed(store, **where, reason="late") is None
    assert snapshot(where["tracking_uri"])["status"] == "FINISHED"


# What can be wrong


def test_an_mlflow_that_is_away_is_named_with_what_to_do(tmp_path: Path, dead_uri: str) -> None:
    store = job_folder(tmp_path / "job")
    for call in (record_job, lambda store, **where: mark_failed(store, **where, reason="x")):
        with pytest.raises(TrackingError, match=rf"MLflow at {re.escape(dead_uri)} cannot be reached.*same command"):
            call(store, tracking_uri=dead_uri, experiment="demo")
    assert read_manifest(store, "record") is None


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///{folder}/text.txt", "sqlite:///{folder}", "sqlite:///{folder}/text.txt/db", "nonsense://x", "sqlite:x"],
)
def test_a_tracking_uri_that_cannot_be_used_is_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("this is text, and too long for an empty database file" * 9)
    with pytest.raises(TrackingError, match=r"MLflow at|no tracking URI"):
        record_job(job_folder(tmp_path / "job"), tracking_uri=uri.format(folder=tmp_path), experiment="demo")


def test_a_deleted_experiment_is_named(where: dict[str, Any], tmp_path: Path) -> None:
    client = connect(where["tracking_uri"])
    client.delete_experiment(ensure_experiment(client, "demo", None))
    with pytest.raises(TrackingError, match="'demo' was deleted: restore it"):
        record_job(job_folder(tmp_path / "job"), **where)


def test_passwords_in_tracking_uris_are_not_shown(tmp_path: Path, dead_uri: str) -> None:
    uri = dead_uri.replace("http://", "http://me:geheim@")
    with pytest.raises(TrackingError) as caught:
        record_job(job_folder(tmp_path / "job"), tracking_uri=uri, experiment="demo")
    assert "geheim" not in str(caught.value)
    assert without_password("postgresql://me:geheim@db/x") == "postgresql://me:***@db/x"


def test_a_job_that_has_not_begun_has_nothing_to_record(where: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has not been initialised"):
        record_job(Store(tmp_path / "job"), **where)
    with pytest.raises(ConfigurationError, match="has not been initialised"):
        LiveMetrics(Store(tmp_path / "job"), **where)


def test_a_file_that_was_changed_since_is_not_recorded(where: dict[str, Any], tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job")
    (tmp_path / "job" / "fit" / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(IntegrityError):
        record_job(store, **where)
    assert snapshot(where["tracking_uri"])["status"] == "RUNNING"


def test_the_environment_for_mlflow_is_plain_text() -> None:
    environment = quiet_mlflow_environment()
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(isinstance(value, str) for value in environment.values())


# Through a server


def test_a_server_that_dies_on_the_way_delays_the_run_and_changes_nothing(
    server: TrackingServer, where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_job(job_folder(tmp_path / "straight"), **where)
    store = job_folder(tmp_path / "job")
    there = {"tracking_uri": server.uri, "experiment": "dies"}
    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="cannot be reached"):
        interrupt_after(patch, 6, server.stop)
        record_job(store, **there)
    server.start()
    record_job(store, **there)
    assert snapshot(server.uri, "dies") == snapshot(where["tracking_uri"])


def test_live_metrics_survive_a_server_that_comes_and_goes(
    server: TrackingServer, where: dict[str, Any], tmp_path: Path
) -> None:
    store = job_folder(tmp_path / "job", steps=STEPS[:1])
    there = {"tracking_uri": server.uri, "experiment": "live"}
    live = LiveMetrics(store, **there)
    epochs = history(9)
    for epoch in epochs[:3]:
        live.put(epoch)
    wait_for(lambda: len(logged(server.uri, "live").get("train/loss", [])) == 3)
    server.stop()
    for epoch in epochs[3:6]:
        live.put(epoch)
    server.start()
    wait_for(lambda: len(logged(server.uri, "live").get("train/loss", [])) == 6)
    live.put(epochs[6])
    assert live.close(timeout=60)
    assert [step for step, _, _ in logged(server.uri, "live")["validation/AUC"]] == [1, 2, 3, 4, 5, 6, 7]

    record_job(job_folder(tmp_path / "job", records=epochs), **there)
    record_job(job_folder(tmp_path / "straight", records=epochs), **where)
    assert snapshot(server.uri, "live") == snapshot(where["tracking_uri"])


def test_live_metrics_never_fail_the_training(dead_uri: str, tmp_path: Path, caplog: Any) -> None:
    store = job_folder(tmp_path / "job", steps=STEPS[:1])
    with caplog.at_level("WARNING"):
        live = LiveMetrics(store, tracking_uri=dead_uri, experiment="away")
        for epoch in history(3):
            live.put(epoch)
        assert not live.close(timeout=60)
    assert [line.levelname for line in caplog.records if line.name == "tasks.live_metrics"] == ["WARNING"]
    assert "will appear in MLflow later" in caplog.text


def test_live_metrics_leave_the_processor_to_the_training(where: dict[str, Any], tmp_path: Path) -> None:
    worked: list[float] = []  # seconds of the processor
    times: list[float] = []  # when a batch began, and when it was done

    class Busy(LiveMetrics):
        pause_seconds = 0.0

        def log(self, client: MlflowClient, batch: list[Mapping[str, Any]]) -> None:
            times.append(time.monotonic())
            began = time.thread_time()
            while time.thread_time() - began < 0.02:
                pass
            worked.append(time.thread_time() - began)
            times.append(time.monotonic())

    live = Busy(job_folder(tmp_path / "job", steps=STEPS[:1]), **where)
    first, second, third = history(3)
    live.put(first)
    wait_for(lambda: len(times) == 2)
    live.put(second)
    wait_for(lambda: len(times) == 4)
    live.put(third)
    assert live.close(timeout=60), "what is left does not wait"
    assert times[2] - times[1] >= REST_PER_WORK * worked[0]


def test_live_metrics_and_the_replay_may_meet(where: dict[str, Any], tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job", steps=STEPS[:2])
    with LiveMetrics(store, **where) as live:
        for epoch in history(4):
            live.put(epoch)
        record_job(store, **where)
    record_job(job_folder(tmp_path / "job"), **where)
    assert [step for step, _, _ in snapshot(where["tracking_uri"])["metrics"]["train/loss"]] == [1, 2, 3, 4]


def logged(uri: str, experiment: str) -> dict[str, list[tuple[int, float, int]]]:
    found = runs(uri, experiment)
    return histories(MlflowClient(tracking_uri=uri), found[0]) if found else {}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BitfountError(f"not so within {seconds:g} s")
        threading.Event().wait(0.05)
