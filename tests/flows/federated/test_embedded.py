"""Federated jobs with pods in one process: what the command says, refuses and leaves behind."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console

from flows.federated_console import FederatedView
from tests.flows.conftest import Ended
from tests.flows.federated.conftest import Main, Train
from tests.flows.federated.site import Site


@pytest.fixture
def trained(site: Site, train: Train) -> Ended:
    """A job that has been trained."""
    ended = train(site.write_job(deployed=False, compare=True))
    assert ended.code == 0, ended
    return ended


def test_the_summary_says_what_each_pod_did_and_what_federating_was_worth(trained: Ended, site: Site) -> None:
    summary = trained.summary
    assert summary["rounds"] == 3
    assert {pod: part["rounds"] for pod, part in summary["pods"].items()} == dict.fromkeys(site.names, 3)
    assert sum(part["test_rows"] for part in summary["pods"].values()) == summary["test_rows"] > 0
    comparison = summary["comparison"]
    assert comparison["federated"] == summary["metrics"]
    assert set(comparison["alone"]) == set(site.names) and set(comparison["pooled"]) == {"AUC"}
    assert comparison["alone_mean"]["AUC"] == pytest.approx(
        sum(metrics["AUC"] for metrics in comparison["alone"].values()) / 3
    )
    for words in ("round 3/3  3 of 3 pods", "mean of the pods alone", "all rows pooled"):
        assert words in trained.err


def test_mlflow_has_a_run_for_the_job_and_one_nested_in_it_for_each_pod(trained: Ended, site: Site) -> None:
    client = MlflowClient(trained.summary["tracking_uri"])
    job = client.get_run(trained.summary["mlflow_run_id"])
    pods = [run for run in client.search_runs([job.info.experiment_id]) if run.info.run_id != job.info.run_id]
    assert {run.data.tags["bitfount.pod"]: run.data.tags["mlflow.parentRunId"] for run in pods} == dict.fromkeys(
        site.names, job.info.run_id
    )
    wanted = {
        "validation/AUC",
        "time/fit_seconds",
        "time/wait_seconds",
        "time/aggregate_seconds",
        "update/bytes_up",
        "update/bytes_down",
    }
    assert wanted <= job.data.metrics.keys()
    assert job.data.metrics["test/AUC"] == trained.summary["metrics"]["AUC"]
    for run in pods:
        assert {"update/norm", "update/took_part", "validation/AUC", "test/AUC"} <= run.data.metrics.keys()
    files = {file.path for folder in ("", "model", "plots") for file in client.list_artifacts(job.info.run_id, folder)}
    assert {
        "model/model.py",
        "model/weights.safetensors",
        "plots/learning_curves.png",
        "plots/pods.png",
        "report.html",
    } <= files
    assert "all rows pooled" in job.data.tags["mlflow.note.content"]


def test_prefect_shows_each_step_of_each_pod_and_the_rounds_as_a_table(trained: Ended) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    from flows.run import drain

    drain()
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["job-1"])))
        newest = max(runs, key=lambda run: run.created or run.expected_start_time)
        artifacts = {found.key: found for found in client.read_artifacts() if found.flow_run_id == newest.id}
    assert {"federated", "cells"} <= set(newest.tags)
    assert "all rows pooled" in str(artifacts["summary"].data)
    assert artifacts["progress"].data == 100.0
    assert '"round": "3"' in str(artifacts["rounds"].data) and "trained in" in str(artifacts["rounds"].data)


def test_a_trained_job_evaluates_and_predicts_rows_of_this_machine(
    trained: Ended, site: Site, main: Main, home: Path, tmp_path: Path
) -> None:
    again = main(["evaluate", "--job-id", "job-1", "--home", home, "--json"])
    assert again.summary["metrics"] == trained.summary["metrics"]
    here = main(["evaluate", "--job-id", "job-1", "--home", home, "--json", "--data", site.folder / "ann.csv"])
    assert here.code == 0 and here.summary["rows"] == 60
    out = tmp_path / "predictions.parquet"
    predicted = main(["predict", "--job-id", "job-1", "--home", home, "--data", site.folder / "bob.csv", "--out", out])
    assert predicted.code == 0, predicted
    assert len(pd.read_parquet(out)) == 60


def test_predictions_leave_only_where_the_owner_allows(site: Site, train: Train) -> None:
    for pod in ("ann", "bob"):
        site.write_pod(pod, policy={"predictions_may_leave": True})
    ended = train(site.write_job(deployed=False, predict=True))
    assert ended.code == 0, ended
    assert set(ended.summary["predictions"]) == {"ann", "bob"}
    assert len(pd.read_parquet(ended.summary["predictions"]["ann"])) == 60
    assert "which may not leave (predictions_may_leave)" in ended.summary["pods"]["cat"]["missing"]["initialise"]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"maximum_rounds": 2}, "it has 3 rounds, at most 2 are allowed"),
        ({"minimum_pods": 9}, "it has 3 pods, at least 9 are wanted"),
        ({"minimum_rows": 1000}, "training rows, its policy wants at least 1000"),
        ({"columns": ["mean_radius", "target"]}, "it does not select its columns"),
        ({"models": ["0" * 64]}, "sha256"),
    ],
)
def test_a_policy_refuses_by_name_and_the_job_ends_where_all_are_needed(
    site: Site, train: Train, policy: dict[str, Any], said: str
) -> None:
    site.write_pod("bob", policy=policy)
    ended = train(site.write_job(deployed=False, federation={"quorum": 2, "require_all_pods": True}))
    assert ended.code == 7
    assert "the job wants all of its pods" in ended.err
    assert "pod 'bob'" in ended.err and said in ended.err
    assert "train" in ended.err and "--job-id job-1" in ended.err


def test_tables_that_do_not_fit_together_are_told_apart_by_pod(site: Site, train: Train) -> None:
    rows = pd.read_csv(site.folder / "cat.csv").rename(columns={"mean_area": "area"})
    rows.to_csv(site.folder / "cat.csv", index=False)
    ended = train(site.write_job(deployed=False))
    assert ended.code == 3
    assert "cat" in ended.err and "mean_area" in ended.err and "area" in ended.err


def test_rows_that_changed_since_the_job_began_are_refused(site: Site, train: Train) -> None:
    for pod in ("ann", "bob"):
        site.raises(pod, 2)
    job = site.write_job(deployed=False)
    assert train(job).code == 7
    site.clear()
    pd.read_csv(site.folder / "cat.csv").iloc[1:].to_csv(site.folder / "cat.csv", index=False)
    ended = train(job)
    assert ended.code == 0, ended
    assert "have changed since the job" in ended.summary["pods"]["cat"]["missing"]["round 3"]


def test_a_job_id_belongs_to_one_job(site: Site, train: Train, trained: Ended) -> None:
    ended = train(site.write_job(deployed=False, training={"epochs": 9, "seed": 5}))
    assert ended.code == 2
    assert "belongs to a job with other settings" in ended.err and "training.epochs" in ended.err


@pytest.mark.parametrize(
    ("sections", "environment", "said"),
    [
        ({"store": None}, {}, "the job has no `store`"),
        ({}, {"PREFECT_API_URL": None}, "set PREFECT_API_URL"),
        ({"model": {"file": "model.py", "hyperparameters": {"lerning": 1}}}, {}, "it takes no argument 'lerning'"),
        ({"federation": {"quorum": 4}}, {}, "quorum"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    site: Site,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    environment: dict[str, str | None],
    said: str,
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
    before = dict(os.environ)
    ended = train(site.write_job(deployed=True, **sections))
    assert ended.code == 2, ended
    assert said in ended.err
    assert "training" not in ended.err.split("starting")[-1]
    assert dict(os.environ) == before


def test_a_terminal_sees_rounds_and_pods_as_a_table() -> None:
    stream = io.StringIO()
    view = FederatedView(stream)
    view.console = Console(file=stream, force_terminal=True, width=150, color_system=None)
    with view:
        view.on_event("joined", {"joined": ["ann", "bob"], "missing": {"cat": "it sleeps"}})
        view.on_event("begin", {"step": "fit"})
        for number in (1, 2):
            view.on_event("round_open", {"round": number, "rounds": 5, "pods": ["ann", "bob"]})
            view.on_event("pod_batch", {"pod": "ann", "batch": 2, "batches": 3, "epoch": 1, "epochs": 2})
            view.on_event("pod_answered", {"pod": "ann", "rows_per_second": 1234.5, "metrics": {"AUC": 0.75}})
            view.on_event("pod_failed", {"pod": "bob", "phase": f"rounds/{number:05d}", "reason": "no"})
        shown = Console(file=io.StringIO(), width=150, record=True)
        shown.print(view._rounds.drawn())
        text = shown.export_text()
        view.on_event("end", {"step": "fit", "values": {}})
    assert "round 2 of 5, about" in text and "s left" in text
    assert "✓ 1,234 rows/s  AUC 0.7500" in text and "✗ failed" in text
    assert "! joining: pod cat is missing: it sleeps" in stream.getvalue()
