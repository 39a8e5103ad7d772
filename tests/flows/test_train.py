"""`bitfount-flows train`, `evaluate` and `predict`, from a job file to artifacts and an MLflow run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from safetensors.torch import load
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from tests.flows.conftest import MODEL, Ended, command, run_command
from tests.tracking_server import TrackingServer

Write = Callable[..., Path]
Main = Callable[[list[Any]], Ended]


@pytest.fixture
def trained(main: Main, job_file: Write, home: Path) -> dict[str, Any]:
    ended = main(["train", job_file(), "--home", home, "--job-id", "one", "--json"])
    assert ended.code == 0, ended
    return ended.summary


def test_json_is_one_object_on_standard_output_and_words_go_elsewhere(main: Main, job_file: Write, home: Path) -> None:
    ended = main(["train", job_file(), "--home", home, "--json"])
    assert len(ended.out.splitlines()) == 1
    assert {"job_id", "mlflow_run_id", "metrics", "weights", "weights_sha256", "seconds"} <= ended.summary.keys()
    assert "epoch 3/3" in ended.err


def test_the_weights_are_safetensors_with_the_sha256_that_is_said(trained: dict[str, Any]) -> None:
    content = Path(trained["weights"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == trained["weights_sha256"]
    assert load(content)["0.weight"].shape == (16, 30)


def test_the_metrics_are_those_of_the_kept_predictions(trained: dict[str, Any]) -> None:
    table = pd.read_parquet(trained["test_predictions"])
    assert trained["metrics"]["AUC"] == pytest.approx(
        roc_auc_score(table["target"].astype(int), table["score_1"]), abs=1e-6
    )
    assert trained["metrics"]["Accuracy"] == pytest.approx((table["target"] == table["prediction"]).mean(), abs=1e-6)


def test_predictions_have_the_keys_of_all_rows_in_order(trained: dict[str, Any]) -> None:
    table = pd.read_parquet(trained["predictions"])
    assert table["key"].tolist() == list(range(len(load_breast_cancer().target)))


def test_the_mlflow_run_holds_parameters_metrics_and_artifacts(trained: dict[str, Any]) -> None:
    client = MlflowClient(trained["tracking_uri"])
    run = client.get_run(trained["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "3"
    assert run.data.metrics["test/AUC"] == pytest.approx(trained["metrics"]["AUC"])
    history = client.get_metric_history(run.info.run_id, "validation/loss")
    assert sorted(point.step for point in history) == [1, 2, 3]
    folders = ("", "model", "evaluate", "predict", "plots")
    kept = {item.path for folder in folders for item in client.list_artifacts(run.info.run_id, folder)}
    assert {"model/weights.safetensors", "model/model.py", "model/schema.yaml", "job.json"} <= kept
    assert {"plots/learning_curves.png", "plots/confusion_matrix.png"} <= kept
    assert {"evaluate/predictions.parquet", "predict/predictions.parquet"} <= kept


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(main: Main, job_file: Write, home: Path) -> None:
    def weights(*more: str) -> str:
        return str(main(["train", job_file(), "--home", home, "--json", *more]).summary["weights_sha256"])

    one = weights()
    assert weights() == one
    assert weights("--set", "training.seed=8") != one


def test_a_finished_job_is_not_done_again(main: Main, job_file: Write, trained: dict[str, Any], home: Path) -> None:
    folder = home / "jobs" / "one"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if "lock" not in path.name}
    again = main(["train", job_file(), "--home", home, "--job-id", "one", "--json"]).summary
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in trained.items() if k != "seconds"}


def test_evaluate_says_again_what_training_said(main: Main, trained: dict[str, Any], home: Path) -> None:
    ended = main(["evaluate", "--job-id", "one", "--home", home, "--json"])
    assert ended.summary["metrics"] == trained["metrics"]


def test_evaluate_on_other_rows_uses_those_rows(
    main: Main, tmp_path: Path, trained: dict[str, Any], home: Path
) -> None:
    rows = load_breast_cancer(as_frame=True).frame
    rows.assign(target=1 - rows["target"]).to_csv(tmp_path / "flipped.csv", index=False)
    ended = main(["evaluate", "--job-id", "one", "--home", home, "--json", "--data", tmp_path / "flipped.csv"])
    assert ended.summary["rows"] == len(rows)
    assert ended.summary["metrics"]["AUC"] < 0.1


def test_predict_needs_no_target_and_agrees_with_training(
    main: Main, tmp_path: Path, trained: dict[str, Any], home: Path
) -> None:
    load_breast_cancer(as_frame=True).frame.drop(columns="target").to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "p.parquet"
    ended = main(["predict", "--job-id", "one", "--home", home, "--data", tmp_path / "new.csv", "--out", out])
    assert ended.code == 0, ended
    known = pd.read_parquet(trained["predictions"])
    np.testing.assert_array_equal(pd.read_parquet(out)["score_1"], known["score_1"])


def test_pretrained_weights_are_where_training_starts(
    main: Main, job_file: Write, trained: dict[str, Any], home: Path
) -> None:
    start = job_file(training={"epochs": 1, "seed": 1, "pretrained_file": trained["weights"]})
    summary = main(["train", start, "--home", home, "--job-id", "two", "--json"]).summary
    first = (home / "jobs/two/initialise/weights.safetensors").read_bytes()
    kept = load(Path(trained["weights"]).read_bytes())
    assert all((load(first)[name] == tensor).all() for name, tensor in kept.items())
    assert summary["weights_sha256"] != trained["weights_sha256"]


def test_steps_train_that_many_batches(main: Main, job_file: Write, home: Path) -> None:
    summary = main(["train", job_file(training={"steps": 20, "seed": 1}), "--home", home, "--json"]).summary
    history = json.loads(Path(summary["weights"]).with_name("history.json").read_text(encoding="utf-8"))
    assert [record["rows"] for record in history] == [20 * 32 - (32 - 455 % 32)]


def test_without_a_server_of_the_users_the_command_brings_its_own_and_leaves_no_process(
    job_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ended = run_command("train", job_file(), "--home", home, "--json")
    assert ended.code == 0, ended
    assert "Error" not in ended.err
    assert servers_of(tmp_path) == []


def test_ctrl_c_stops_at_once_and_says_how_to_continue(prefect_url: str, job_file: Write, home: Path) -> None:
    path = job_file(training={"epochs": 2000, "seed": 1})
    arguments = ("train", path, "--home", home, "--job-id", "one")
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 2/" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(60) == 130
    assert "Traceback" not in rest
    assert f" train {path} --home {home} --job-id one\n" in rest
    run = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_runs(["1"])[0]
    assert run.info.status == "KILLED"


def test_a_job_that_is_running_is_not_started_twice(main: Main, job_file: Write, home: Path) -> None:
    from flows.workspace import Workspace, only_once

    with only_once(Workspace(home).folder("one")):
        ended = main(["train", job_file(), "--home", home, "--job-id", "one"])
    assert ended.code == 2
    assert "running in another process" in ended.err


def servers_of(folder: Path) -> list[int]:
    """Processes whose environment or command line names the folder."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            text = " ".join(process.cmdline()) + process.environ().get("PREFECT_HOME", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if str(folder) in text and process.pid != os.getpid():
            found.append(process.pid)
    return found


def test_a_registered_model_is_a_version_once_and_can_be_named_by_another_job(
    main: Main, job_file: Write, home: Path
) -> None:
    first = ["train", job_file(register="tumours"), "--home", home, "--job-id", "one", "--json"]
    assert main(first).summary["registered"] == "tumours version 1"
    assert main(first).summary["registered"] == "tumours version 1"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    client.set_registered_model_alias("tumours", "champion", "1")
    for model in ({"reference": "tumours@champion"}, {"reference": "tumours", "version": 1}, {"reference": "tumours"}):
        again = main(["train", job_file(MODEL + "# another\n", model=model), "--home", home, "--json"])
        assert again.code == 0, again
        kept = home / "jobs" / again.summary["job_id"] / "model.py"
        assert kept.read_bytes() == (home / "jobs/one/model.py").read_bytes()
    unknown = main(["train", job_file(model={"reference": "tumours@nobody"}), "--home", home])
    assert unknown.code == 4
    assert "nobody" in unknown.err


def test_mlflow_that_is_away_delays_the_record_and_loses_none_of_it(
    main: Main, job_file: Write, home: Path, mlflow_server: TrackingServer
) -> None:
    arguments = ["train", job_file(), "--home", home, "--job-id", "one", "--json", "--tracking-uri", mlflow_server.uri]
    mlflow_server.stop()
    ended = main(arguments)
    mlflow_server.start()
    assert ended.code == 6
    assert ended.summary["mlflow_run_id"] is None
    assert Path(ended.summary["weights"]).exists()
    assert mlflow_server.uri in ended.err
    again = main(arguments)
    assert again.code == 0
    assert again.summary["weights_sha256"] == ended.summary["weights_sha256"]
    client = MlflowClient(mlflow_server.uri)
    history = client.get_metric_history(again.summary["mlflow_run_id"], "train/loss")
    assert sorted(point.step for point in history) == [1, 2, 3]
