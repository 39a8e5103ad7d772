"""`bitfount-flows retrain` and `models`: rows come in, a challenger is trained, and the better one is used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from sklearn.datasets import load_breast_cancer

from tests.flows.conftest import Ended
from tests.tracking_server import free_port, wait_until_it_answers

Main = Callable[[list[Any]], Ended]
EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "retraining"


def rows(folder: Path, *arguments: str) -> None:
    """Writes the example's rows."""
    subprocess.run([sys.executable, folder / "make_rows.py", *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, to run in."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "retraining", ignore=shutil.ignore_patterns("data")))


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the retraining's webhook, a server that takes JSON, is told."""
    messages: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/secret")
        with (folder / "retraining.yaml").open("a") as file:
            file.write("webhook: ${HOOK}\n")
        yield messages
        server.shutdown()


def test_a_model_is_trained_compared_promoted_kept_skipped_and_rolled_back(
    main: Main, folder: Path, home: Path, told: list[dict[str, Any]]
) -> None:
    def retrain(*more: str) -> dict[str, Any]:
        ended = main(["retrain", folder / "retraining.yaml", "--home", home, "--json", *more])
        assert ended.code == 0, ended.err
        return ended.summary

    rows(folder, "300", "--wrong-labels")
    first = retrain("--retraining-id", "one")
    assert (first["outcome"], first["champion"]) == ("promoted", 1)
    assert retrain("--retraining-id", "one") == first
    assert retrain()["outcome"] == "skipped"

    rows(folder, "569")
    better = retrain()
    assert (better["outcome"], better["version"], better["champion"]) == ("promoted", 2, 2)

    rows(folder, "569", "--wrong-labels")
    worse = retrain()
    assert (worse["outcome"], worse["version"], worse["champion"]) == ("kept", 3, 2)

    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    assert len(client.search_model_versions("name = 'tumours'")) == 3
    assert client.get_model_version("tumours", "3").tags["bitfount.why"] == worse["why"]
    note = client.get_run(worse["mlflow_run_id"]).data.tags["mlflow.note.content"]
    assert note.startswith("**Kept**")
    assert [message["outcome"] for message in told] == ["promoted", "skipped", "promoted", "kept"]
    assert told[-1]["why"] == worse["why"]

    assert main(["models", "rollback", "tumours", "--home", home]).code == 0
    assert client.get_registered_model("tumours").aliases["champion"] == 1
    assert main(["models", "rollback", "tumours", "--home", home]).code == 4
    assert main(["models", "promote", "tumours", "2", "--home", home]).code == 0
    assert main(["models", "promote", "tumours", "9", "--home", home]).code == 4


@contextmanager
def served(model: str, tracking_uri: str, log: Path) -> Iterator[str]:
    """The URL of `mlflow models serve`, as a user starts it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = ["--model-uri", model, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *arguments],
            env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracking_uri},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert wait_until_it_answers(f"{url}/ping", process), log.read_text(errors="replace")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_mlflow_serves_the_champion_with_the_numbers_of_predict(main: Main, folder: Path, home: Path) -> None:
    rows(folder, "200")
    trained = main(["train", folder / "job.yaml", "--home", home, "--job-id", "one", "--json"])
    assert trained.code == 0, trained.err
    frame = load_breast_cancer(as_frame=True).frame.drop(columns="target")
    frame.to_csv(folder / "new.csv", index=False)
    out = folder / "p.parquet"
    assert main(["predict", "--job-id", "one", "--data", folder / "new.csv", "--out", out, "--home", home]).code == 0
    predicted = pd.read_parquet(out)
    with served("models:/tumours@champion", f"sqlite:///{home / 'mlflow.db'}", folder / "served.log") as url:
        asked = requests.post(f"{url}/invocations", json={"dataframe_split": frame.to_dict(orient="split")}, timeout=60)
        lacking = frame.drop(columns="mean radius").to_dict(orient="split")
        refused = requests.post(f"{url}/invocations", json={"dataframe_split": lacking}, timeout=60)
    assert asked.status_code == 200, asked.text
    answer = pd.DataFrame(asked.json()["predictions"])
    np.testing.assert_array_equal(answer["score_1"], predicted["score_1"])
    assert answer["prediction"].astype(str).tolist() == predicted["prediction"].astype(str).tolist()
    assert refused.status_code == 400
    assert "mean radius" in refused.text


def test_a_job_that_registers_nothing_is_refused(main: Main, folder: Path, home: Path) -> None:
    text = (folder / "job.yaml").read_text().replace("register: tumours\n", "")
    (folder / "job.yaml").write_text(text)
    ended = main(["retrain", folder / "retraining.yaml", "--home", home])
    assert ended.code == 2
    assert "register" in ended.err


def test_over_pods_a_model_is_trained_again_where_their_rows_have_changed(
    main: Main, tmp_path: Path, home: Path
) -> None:
    hospitals = Path(shutil.copytree(EXAMPLES / "hospitals", tmp_path / "hospitals"))
    job = (hospitals / "job.yaml").read_text().replace("\ncompare: true", "\nregister: hospitals")
    (hospitals / "job.yaml").write_text(job.replace("epochs: 20", "epochs: 3"))
    file = hospitals / "retraining.yaml"
    file.write_text("name: hospitals\njob: job.yaml\ncompare: {metric: AUC}\n")
    subprocess.run([sys.executable, hospitals / "make_pods.py"], check=True, capture_output=True)

    def retrain(*more: str) -> dict[str, Any]:
        ended = main(["retrain", file, "--home", home, "--json", *more])
        assert ended.code == 0, ended.err
        return ended.summary

    assert retrain()["outcome"] == "promoted"
    again = retrain()
    assert (again["outcome"], again["version"]) == ("skipped", None)

    west = pd.read_csv(hospitals / "data" / "west.csv")
    west.assign(malignant=1 - west["malignant"]).to_csv(hospitals / "data" / "west.csv", index=False)
    changed = retrain("--retraining-id", "changed")
    assert changed["version"] == 2
    tested = [
        json.loads((home / "jobs" / job / "steps" / "evaluate.json").read_text())["values"]["metrics"]["AUC"]
        for job in ("changed", "changed-champion")
    ]
    assert (changed["outcome"] == "promoted") == (tested[0] > tested[1])
    assert f"AUC {tested[0]:.4f} against {tested[1]:.4f} on 143 rows" in changed["why"]
