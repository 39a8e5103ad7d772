"""From a job's folder to its report, as a step; and again at any time, also of a job that is not finished."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitfount_model.errors import ConfigurationError
from tasks.ending import read_end
from tasks.epochs import parsed_epochs
from tasks.federated.record import STEPS as FEDERATED_STEPS
from tasks.federated.round_record import read_records
from tasks.layout import EPOCHS
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.record import finished_steps
from tasks.report.federated import federated_report
from tasks.report.local import Tested, local_report
from tasks.report.page import page
from tasks.report.values import Report
from tasks.run_contents import SHOWN_STEPS
from tasks.step import reference, step
from tasks.store import Store

NAME = "report.html"


@step("report")
def report(store_url: str) -> dict[str, Any]:
    """The reporting step, as a task: see `report_job`."""
    return reference(report_job(Store(store_url)))


def report_job(store: Store) -> Manifest:
    """Writes the job's report and keeps it, unless that has been done."""
    if done := read_manifest(store, "report"):
        return done
    return write_manifest(store, Manifest("report", {"report": store.put(NAME, report_html(store).encode())}, {}))


def report_html(store: Store) -> str:
    """The report of what a job has so far; the same text for a job that has not gone on.

    Raises:
        ConfigurationError: the job has not been initialised.
        StorageError: its files cannot be read.
    """
    return page(report_of(store))


def report_of(store: Store) -> Report:
    """The values of a job's report; see `report_html`."""
    made = read_manifest(store, "initialise")
    if made is None:
        raise ConfigurationError(f"the job in {store.url} has not been initialised: there is nothing to report yet")
    job = json.loads(read_file(store, made, "job"))
    ended = read_end(store)
    if "federation" in made.files:
        manifests = finished_steps(store, FEDERATED_STEPS)
        federation = json.loads(read_file(store, made, "federation"))
        return federated_report(manifests, read_records(store), federation, wanted(job), ended)
    manifests = finished_steps(store, SHOWN_STEPS)
    return local_report(manifests, epochs_of(store, manifests), tested_rows(store, manifests), wanted(job), ended)


def wanted(job: Mapping[str, Any]) -> list[str]:
    """The steps after which a job's report has all that it will have.

    Args:
        job: resolved, of either kind.
    """
    if "pods" not in job:
        return ["fit", "evaluate"]
    asked = {"evaluate": job["evaluate"] and job["operation"] != "predict", "compare": job["compare"]}
    return ["fit", *(name for name, is_asked in asked.items() if is_asked)]


def tested_rows(store: Store, manifests: Mapping[str, Manifest]) -> Tested | None:
    """Predictions and targets of the test rows, if there are any."""
    if "evaluate" not in manifests or "arrays" not in manifests["evaluate"].files:
        return None
    content = read_file(store, manifests["evaluate"], "arrays")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["preds"], arrays["targs"]


def epochs_of(store: Store, manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """The records of a local job's epochs so far."""
    if "fit" in manifests:
        return list(json.loads(read_file(store, manifests["fit"], "history")))
    return parsed_epochs((store.find(EPOCHS) or b"").decode(errors="replace"))
