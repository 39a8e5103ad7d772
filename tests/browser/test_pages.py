"""What a reviewer finds in MLflow, in Prefect and in the report of a federated job, with the eyes of a browser."""

from __future__ import annotations

from tests.browser.browser import Browser
from tests.browser.conftest import Reviewed


def test_first(browser: Browser, reviewed: Reviewed) -> None:
    run = reviewed.first["mlflow_run_id"]
    browser.open(f"{reviewed.mlflow}/#/experiments/1/runs/{run}?workflowType=machine_learning", "hospitals-fedavg")
    browser.picture("mlflow_run")
