"""`bitfount-flows retrain` and `models`: rows come in, a challenger is trained, and the better one is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_breast_cancer

from tests.flows.conftest import Ended

Main = Callable[[list[Any]], Ended]
EXAMPLE = Path(__file__).parents[2] / "examples" / "retraining"


def rows(folder: Path, *arguments: str) -> None:
    """Writes the example's rows."""
    subprocess.run([sys.executable, folder / "make_rows.py", *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, to run in."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "retraining", ignore=shutil.ignore_patterns("data")))


def test_a_model_is_trained_compared_promoted_kept_skipped_and_rolled_back(
    main: Main, folder: Path, home: Path
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

    assert main(["models", "rollback", "tumours", "--home", home]).code == 0
    assert client.get_registered_model("tumours").aliases["champion"] == 1
    assert main(["models", "rollback", "tumours", "--home", home]).code == 4
    assert main(["models", "promote", "tumours", "2", "--home", home]).code == 0
    assert main(["models", "promote", "tumours", "9", "--home", home]).code == 4


def test_a_registered_model_is_served_with_the_numbers_of_predict(
    main: Main, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(folder, "200")
    trained = main(["train", folder / "job.yaml", "--home", home, "--job-id", "one", "--json"])
    assert trained.code == 0, trained.err
    frame = load_breast_cancer(as_frame=True).frame.drop(columns="target")
    frame.to_csv(folder / "new.csv", index=False)
    out = folder / "p.parquet"
    assert main(["predict", "--job-id", "one", "--data", folder / "new.csv", "--out", out, "--home", home]).code == 0
    # Not by mlflow.set_tracking_uri, which writes it into the environment of the tests after this one.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model("models:/tumours@champion").predict(frame)
    predicted = pd.read_parquet(out)
    np.testing.assert_array_equal(served["score_1"], predicted["score_1"])
    assert served["prediction"].tolist() == predicted["prediction"].tolist()


def test_a_job_that_registers_nothing_is_refused(main: Main, folder: Path, home: Path) -> None:
    text = (folder / "job.yaml").read_text().replace("register: tumours\n", "")
    (folder / "job.yaml").write_text(text)
    ended = main(["retrain", folder / "retraining.yaml", "--home", home])
    assert ended.code == 2
    assert "register" in ended.err
