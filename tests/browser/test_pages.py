"""What a reviewer finds in MLflow, in Prefect and in the report of a federated job, with the eyes of a browser.

`make screenshots` keeps the pictures that are taken on the way, those of docs/images among them.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from mlflow import MlflowClient

from tests.browser.browser import WIDTH, Browser
from tests.browser.conftest import MODEL, Reviewed

PODS = ("north", "south", "west")
FIRST, SECOND = "hospitals-fedavg", "hospitals-fedadam"
RAW_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FOR_TRAINING = "workflowType=machine_learning"
PHONE = 400

SECTION = '[data-testid="experiment-view-compare-runs-section-header"]'
GRID = '[data-testid="draggable-chart-cards-grid"]'
CARD = '[data-testid="experiment-view-compare-runs-card"]'
MARKS = """
const marks = arguments[0].querySelectorAll('.scatterlayer path, .barlayer path');
return [...marks].filter(path => path.getTotalLength() > 5).length
"""
"""How many curves, points and bars a chart of MLflow has that can be seen."""
EMPTY_FIGURES = """
const drawn = svg => svg && [...svg.querySelectorAll('path')].some(path => path.getTotalLength() > 20);
return [...document.querySelectorAll('figure')].filter(each => !drawn(each.querySelector('svg'))).map(e => e.innerText)
"""
CUT_OFF = """
const sticksOut = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1
    || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
const rect = element => element.getBoundingClientRect();
return [
    ...(document.documentElement.scrollWidth > innerWidth ? ['the page'] : []),
    ...[...document.querySelectorAll('body *:not(svg *)')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1),
    ...[...document.querySelectorAll('svg text')].filter(e => sticksOut(rect(e), rect(e.closest('svg')))),
].map(element => element.outerHTML || element)
"""
"""What does not fit into its place on the page of a report."""


def metric(summary: dict[str, Any], name: str) -> str:
    """A test metric as people read it."""
    return f"{summary['metrics'][name]:.4f}"


def run_page(reviewed: Reviewed, summary: dict[str, Any], tab: str = "") -> str:
    return f"{reviewed.mlflow}/#/experiments/{experiment(reviewed)}/runs/{summary['mlflow_run_id']}{tab}?{FOR_TRAINING}"


def experiment(reviewed: Reviewed) -> str:
    return str(MlflowClient(reviewed.mlflow).get_run(reviewed.first["mlflow_run_id"]).info.experiment_id)


def runs_page(reviewed: Reviewed, query: str = "") -> str:
    return f"{reviewed.mlflow}/#/experiments/{experiment(reviewed)}/runs?{query}{FOR_TRAINING}"


def flow_run_page(reviewed: Reviewed, job_id: str) -> str:
    """The page of a job's flow run, as its name finds it."""
    asked = {"flow_runs": {"name": {"any_": [job_id]}}}
    (run,) = httpx.post(f"{reviewed.prefect}/api/flow_runs/filter", json=asked).raise_for_status().json()
    return f"{reviewed.prefect}/runs/flow-run/{run['id']}"


def artifact_page(browser: Browser, key: str) -> str:
    """The page of an artifact of the flow run that is shown."""
    return next(page for says, page in browser.links().items() if says.split("\n")[1:2] == [key])


def expand(browser: Browser, run: str) -> None:
    """Shows the runs that are nested in a run."""
    row = browser.until(lambda: next((row for row in browser.all(".ag-row") if run in row.text.split("\n")), None), run)
    browser.until(lambda: browser.all("button[data-component-id*=runnamecellrenderer]", row)[0].click() or True, run)


def charts(browser: Browser, *wanted: str) -> dict[str, dict[str, str]]:
    """Group -> metric -> what its chart says, of a page of MLflow's charts; every one of them must have drawn something.

    MLflow draws a chart when it comes into sight, and has an empty section for metrics without a group.

    Args:
        browser: shows the page.
        wanted: groups; none for all.
    """
    found: dict[str, dict[str, str]] = {}
    for place, heading in enumerate(browser.texts(SECTION)):
        group, count = heading.split("\n")[:2]
        if wanted and group not in wanted:
            continue
        for number in range(int(count.strip("()"))):
            what = f"a curve in chart {number + 1} of {group} {count}"
            said = browser.until(lambda place=place, number=number: drawn_chart(browser, place, number), what)
            found.setdefault(group, {})[said.split("\n")[0].removeprefix(f"{group}/")] = said
    return found


def drawn_chart(browser: Browser, section: int, number: int) -> str | None:
    """Brings a chart into sight, and gives what it says once there is something in it."""
    grid = browser.all(GRID)[section]
    cards = browser.all(CARD, grid)
    # Those of the next row come when this one is in sight.
    shown = cards[min(number, len(cards) - 1)] if cards else grid
    browser.into_sight(shown)
    return shown.text if number < len(cards) and browser.script(MARKS, shown) else None


def raw_ids(browser: Browser) -> list[str]:
    """The links that say an id in place of a name."""
    return [words for words in browser.links() if RAW_ID.search(words)]


def test_a_jobs_run_in_mlflow_says_result_model_pods_and_where_the_model_is(
    browser: Browser, reviewed: Reviewed
) -> None:
    browser.open(run_page(reviewed, reviewed.first), FIRST, "Finished", f"Registered models {MODEL} v1")
    browser.see(f"AUC {metric(reviewed.first, 'AUC')}, Accuracy {metric(reviewed.first, 'Accuracy')} on 143 test rows")
    browser.see("Model TumourClassifier, binary", "Pods north, south, west: 31 columns, target malignant; 341 training")
    browser.see(*(f"{pod} · {FIRST}" for pod in PODS), "bitfount.job : hospitals")
    browser.picture("mlflow_run", 690)
    browser.click("button", "Show more")
    browser.see(
        "Show less", "Rounds 10 of 10", "all (143 rows) north (79) south (50) west (14)", "mean of the pods alone"
    )
    assert raw_ids(browser) == []
    assert browser.driver.title


def test_every_metric_of_a_job_has_a_chart_with_a_curve_in_its_group(browser: Browser, reviewed: Reviewed) -> None:
    browser.open(run_page(reviewed, reviewed.first, "/model-metrics"), FIRST, "validation")
    drawn = charts(browser)
    assert {group: sorted(metrics) for group, metrics in drawn.items()} == {
        "test": ["AUC", "Accuracy"],
        "time": ["aggregate_seconds", "fit_seconds", "round_seconds", "wait_seconds"],
        "train": ["loss"],
        "update": ["bytes_down", "bytes_up", "largest_norm", "pods", "pods_missing"],
        "validation": ["AUC", "Accuracy", "loss"],
    }
    assert all(FIRST in said for metrics in drawn.values() for said in metrics.values())
    browser.picture("mlflow_charts")


def test_plots_and_the_report_are_among_the_runs_artifacts(browser: Browser, reviewed: Reviewed) -> None:
    browser.open(run_page(reviewed, reviewed.first, "/artifacts/plots/learning_curves.png"), FIRST, "report.html")
    browser.until(lambda: browser.script("return [...document.images].some(i => i.naturalWidth > 500)"), "the plot")
    browser.picture("mlflow_artifacts", 800)
    browser.open(run_page(reviewed, reviewed.first, "/artifacts/report.html"), FIRST)
    browser.within("iframe", "Learning curves", "Fairness of pods")


def test_pods_are_side_by_side_by_round(browser: Browser, reviewed: Reviewed) -> None:
    browser.open(runs_page(reviewed, "compareRunsMode=CHART&"), FIRST, SECOND, "validation")
    expand(browser, FIRST)
    runs = [FIRST, SECOND, *(f"{pod} · {FIRST}" for pod in PODS)]
    browser.see(*runs)
    drawn = charts(browser, "validation")
    for name in ("AUC", "Accuracy", "loss"):
        assert [run for run in runs if run not in drawn["validation"][name]] == []
    assert raw_ids(browser) == []
    browser.picture("mlflow_pods", 800)


def test_two_jobs_compared_say_what_differs(browser: Browser, reviewed: Reviewed) -> None:
    runs = json.dumps([summary["mlflow_run_id"] for summary in reviewed.summaries])
    place = f"runs={quote(runs)}&experiments={quote(json.dumps([experiment(reviewed)]))}"
    browser.open(f"{reviewed.mlflow}/#/compare-runs?{place}&{FOR_TRAINING}", f"Run Name: {FIRST} {SECOND}")
    browser.see("optimiser FedAvg FedAdam", "validation/AUC")
    browser.until(lambda: browser.has_colours(browser.all(".gl-canvas-focus")[0]), "lines in the plot")
    browser.picture("mlflow_compare", 860)


def test_the_registered_model_says_which_version_is_in_use_and_how_good_each_is(
    browser: Browser, reviewed: Reviewed
) -> None:
    browser.open(f"{reviewed.mlflow}/#/models/{MODEL}?{FOR_TRAINING}", f"model: {{reference: {MODEL}@champion}}")
    for version, alias, summary in zip((1, 2), ("champion", "challenger"), reviewed.summaries, strict=True):
        (row,) = [text for text in browser.texts("[role=row]") if f"Version {version}" in text]
        assert f"@ {alias}" in row and summary["job_id"] in row and f"AUC {metric(summary, 'AUC')}" in row
    assert raw_ids(browser) == []
    browser.picture("mlflow_model", 760)
    browser.open(f"{reviewed.mlflow}/#/models/{MODEL}/versions/1?{FOR_TRAINING}", "@ champion", f"Source Run : {FIRST}")
    browser.see("TumourClassifier", "all rows pooled")


def test_the_flow_run_in_prefect_has_names_tags_steps_and_a_summary_that_leads_to_mlflow(
    browser: Browser, reviewed: Reviewed
) -> None:
    browser.open(flow_run_page(reviewed, FIRST), f"Runs {FIRST} federated hospitals Completed")
    browser.click("li", "Task Runs")
    browser.see(*(f"{step} Completed" for step in ("register", "record", "package", "report")))
    browser.click("li", "Artifacts")
    browser.see(f"Progress of {FIRST}", f"Rounds of {FIRST}", "Summary of hospitals")
    assert raw_ids(browser) == []
    browser.picture("prefect_flow_run")
    pages = {key: artifact_page(browser, key) for key in ("rounds", "summary")}
    browser.open(pages["rounds"], "10 Items", " ".join(PODS), "trained in")
    browser.picture("prefect_rounds")
    browser.open(pages["summary"], f"AUC {metric(reviewed.first, 'AUC')}", "mean of the pods alone")
    browser.open(browser.links()["The run in MLflow"], FIRST, "Registered models", "Runs Models")


@pytest.mark.parametrize("width", [WIDTH, PHONE])
def test_the_report_is_whole_on_a_desk_and_on_a_phone(browser: Browser, reviewed: Reviewed, width: int) -> None:
    browser.resize(width)
    try:
        browser.open(f"file://{reviewed.first['report']}", f"job {FIRST}", metric(reviewed.first, "AUC"), *PODS)
        assert browser.script(EMPTY_FIGURES) == []
        assert browser.script(CUT_OFF) == []
        assert browser.script("return performance.getEntriesByType('resource').map(e => e.name)") == []
        browser.picture(f"report_{width}")
    finally:
        browser.resize(WIDTH)
