"""The report of a job: its values against the raw records, its page as a browser reads it."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, mean_absolute_error, precision_score, r2_score, recall_score

from bitfount_model.errors import ConfigurationError
from tasks.ending import keep_end
from tasks.epochs import append_epoch, parsed_epochs
from tasks.layout import EPOCHS
from tasks.manifest import Manifest, write_manifest
from tasks.report.charts import svg
from tasks.report.step import report_html, report_job, report_of
from tasks.report.values import OVER_ALL, STATES, Bars, Lines, Matrix, Points, Presence, Report, Section, Series, Stack
from tasks.store import Store
from tests.tasks.federated_folder import PODS, federated_folder, rounds
from tests.tasks.job_folder import history, initialised, job_folder

HOSTILE = '<script>alert("1")</script>'
VOID = {"meta", "br", "img", "path", "use", "rect", "link", "hr", "input"}


class Page(HTMLParser):
    """A page taken apart; it must close what it opens."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def section(report: Report, key: str) -> Section:
    return next(each for each in report.sections if each.key == key)


def evaluated_by_hand(store: Store, preds: np.ndarray, targs: np.ndarray) -> None:
    """The step `evaluate` with these predictions."""
    buffer = io.BytesIO()
    np.savez(buffer, preds=preds, targs=targs)
    files = {"arrays": store.put("evaluate/arrays.npz", buffer.getvalue())}
    write_manifest(store, Manifest("evaluate", files, {"metrics": {"AUC": 0.9}, "rows": len(targs)}))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """A local job with two classes, one of which is named as an attacker would."""
    store = Store(tmp_path / "job")
    manifest = initialised(store, "demo-1")
    write_manifest(store, Manifest("initialise", manifest.files, {**manifest.values, "classes": ["b & c", HOSTILE]}))
    job_folder(tmp_path / "job", steps=("fit",))
    numbers = np.random.default_rng(3)
    evaluated_by_hand(store, numbers.random((50, 1)), numbers.integers(0, 2, 50))
    return store


@pytest.fixture
def federated(tmp_path: Path) -> Store:
    return federated_folder(tmp_path / "job")


# -- what it says ---------------------------------------------------------------------------------------------------------


def test_fairness_is_each_pods_test_metric_with_the_gap_between_best_and_worst(federated: Store) -> None:
    raw = json.loads(federated.get("steps/evaluate.json"))["values"]
    found = section(report_of(federated), "fairness")
    (table,) = found.tables
    assert table.head == ("pod", "training rows", "test rows", "AUC", "F1")
    aucs = [raw["by_pod"][pod]["AUC"] for pod in PODS]
    assert [row[3] for row in table.rows] == [f"{value:.4f}" for value in (*aucs, 0.85, max(aucs) - min(aucs))]
    assert [row[4] for row in table.rows] == ["0.5000", "0.5000", "not defined", "0.5000", "0.0000"]
    assert [row[:3] for row in table.rows[:4]] == [
        ("ann", "100", "20"),
        ("bob", "200", "20"),
        ("cat", "300", "20"),
        ("all pods", "600", "60"),
    ]


def test_a_pod_has_one_colour_in_all_charts(federated: Store) -> None:
    colours: dict[str, set[int]] = {}
    for each in report_of(federated).sections:
        for chart in each.charts:
            if isinstance(chart, Lines | Bars):
                for series in chart.series:
                    colours.setdefault(series.name, set()).add(series.colour)
    assert colours == {"ann": {0}, "bob": {1}, "cat": {2}, "all pods": {OVER_ALL}}


def test_curves_are_of_each_pod_and_over_all_with_gaps_where_a_pod_was_missing(federated: Store) -> None:
    raw = [json.loads(federated.get(f"rounds/0000{number}.json")) for number in (1, 2, 3)]
    loss, validation_loss, auc = section(report_of(federated), "learning").charts
    assert isinstance(loss, Lines) and isinstance(auc, Lines) and isinstance(validation_loss, Lines)
    by_name = {series.name: series.values for series in loss.series}
    assert by_name["cat"] == (raw[0]["train_loss"]["cat"], None, raw[2]["train_loss"]["cat"])
    assert by_name["all pods"] == pytest.approx([np.mean(list(each["train_loss"].values())) for each in raw])
    assert {series.name: series.values for series in auc.series}["all pods"] == tuple(
        each["metrics"]["AUC"] for each in raw
    )
    assert [series.name for series in validation_loss.series] == ["all pods"], "no pod says it"


def test_a_metric_that_is_nowhere_defined_has_no_chart(federated: Store) -> None:
    assert "Validation F1" not in {chart.title for chart in section(report_of(federated), "learning").charts}


def test_timing_adds_up_to_the_seconds_of_the_rounds(federated: Store) -> None:
    raw = [json.loads(federated.get(f"rounds/0000{number}.json")) for number in (1, 2, 3)]
    stack, fits = section(report_of(federated), "timing").charts
    assert isinstance(stack, Stack) and isinstance(fits, Lines)
    parts = np.array([series.values for series in stack.series], dtype=float)
    np.testing.assert_allclose(parts.sum(axis=0), [each["seconds"] for each in raw])
    np.testing.assert_allclose(parts[1:], [[1.0] * 3, [0.5] * 3])
    assert {series.name: series.values for series in fits.series}["cat"] == (3.0, None, 3.0)
    rows = {row[0]: row[1:] for table in section(report_of(federated), "timing").tables for row in table.rows}
    assert rows["round"] == ("12 s", "4 s", "4 s")
    assert rows["cat"] == ("6 s", "3 s", "3 s")


def test_participation_says_who_took_part_and_why_not(federated: Store) -> None:
    report = report_of(federated)
    (chart,) = section(report, "participation").charts
    assert isinstance(chart, Presence)
    assert chart.states[2] == ("took part", "missing", "took part")
    assert section(report, "participation").tables[0].rows[2] == ("cat", "2", "1", "0")
    assert section(report, "reasons").tables[0].rows == (("cat", "round 2", "its disk is full"),)


def test_the_comparison_says_who_could_not_be_trained(federated: Store) -> None:
    found = section(report_of(federated), "comparison")
    assert "cat could not be trained: it has too few rows" in found.words
    assert ("all rows pooled", "0.8600", "0.5000") in found.tables[0].rows


def test_privacy_is_said_as_it_is(federated: Store) -> None:
    words = " ".join(section(report_of(federated), "privacy").words)
    assert "No noise was added, and updates travelled as they are" in words
    assert "800 bytes" in words


def test_the_confusion_matrix_is_that_of_scikit_learn(local: Store) -> None:
    with np.load(io.BytesIO(local.get("evaluate/arrays.npz"))) as arrays:
        truth, decided = arrays["targs"], (arrays["preds"][:, 0] > 0.5).astype(int)
    found = section(report_of(local), "decisions")
    (matrix,) = found.charts
    assert isinstance(matrix, Matrix)
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(truth, decided))
    assert found.tables[0].rows[1][2:] == (
        f"{recall_score(truth, decided):.4f}",
        f"{precision_score(truth, decided):.4f}",
    )


def test_numbers_are_held_against_the_true_ones(tmp_path: Path) -> None:
    store = Store(tmp_path / "job")
    manifest = initialised(store, "demo-1")
    values = {**manifest.values, "problem": "regression", "classes": None, "targets": ["size"]}
    write_manifest(store, Manifest("initialise", manifest.files, values))
    truth = np.arange(2000.0)
    preds = truth[:, None] + np.random.default_rng(3).normal(size=(2000, 1))
    preds[7] = np.nan
    evaluated_by_hand(store, preds, truth)
    found = section(report_of(store), "agreement")
    (points,) = found.charts
    assert isinstance(points, Points) and len(points.actual) == 500
    there = np.arange(2000) != 7
    assert found.tables[0].rows == (
        (
            "size",
            f"{r2_score(truth[there], preds[there]):.4f}",
            f"{mean_absolute_error(truth[there], preds[there]):.4f}",
        ),
    )
    assert "agreement" in Page(report_html(store)).sections


def test_versions_and_digests_are_those_of_the_manifests(federated: Store) -> None:
    digests, packages = section(report_of(federated), "origin").tables
    assert ("weights", json.loads(federated.get("steps/fit.json"))["values"]["weights_sha256"]) in digests.rows
    assert ("rows", "cd" * 32) in digests.rows
    assert packages.rows == (("bitfount-flows", "0.1.0"), ("python", "3.11.2"), ("torch", "2.13.0"))


# -- jobs that are not finished -------------------------------------------------------------------------------------------


def test_a_job_that_failed_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    store = federated_folder(tmp_path / "job", steps=("initialise",), records=rounds(2))
    keep_end(store, "failed", "QuorumError: <too few>")
    report = report_of(store)
    assert report.state.startswith("failed: QuorumError: <too few> (2 of 3 rounds done; still to do: fit, evaluate")
    assert section(report, "again").code == ("bitfount-flows train JOB.yaml --job-id cells-1",)
    assert Page(report_html(store)).sections[:2] == ["summary", "learning"]


def test_a_job_before_its_first_round_has_no_empty_sections(tmp_path: Path) -> None:
    store = federated_folder(tmp_path / "job", steps=("initialise",), records=[])
    assert Page(report_html(store)).sections == ["summary", "privacy", "origin", "again"]
    assert "<svg" not in report_html(store)


def test_a_local_job_that_trains_shows_its_epochs_so_far(tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job", steps=("initialise",))
    lines = [json.dumps(record) for record in history(3)]
    store.put(EPOCHS, "\n".join([lines[0], *lines, '{"epoch": 4, "tra']).encode())
    report = report_of(store)
    assert "3 epochs done, 4 epochs wanted" in report.state
    chart = section(report, "learning").charts[0]
    assert isinstance(chart, Lines) and chart.steps == (1, 2, 3)


def test_one_epoch_is_a_table_and_no_chart(tmp_path: Path) -> None:
    store = job_folder(tmp_path / "job", steps=("initialise", "fit"), records=history(1))
    found = section(report_of(store), "learning")
    assert found.charts == () and ("AUC", "0.7000") in found.tables[0].rows


def test_a_chart_of_one_curve_has_its_name(local: Store) -> None:
    titles = [chart.title for chart in section(report_of(local), "learning").charts]
    assert titles == ["Loss", "Validation AUC", "Validation Brier Loss"]


def test_epochs_after_a_kill_in_the_middle_of_a_line_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "epochs.jsonl"
    first, second, third = history(3)
    append_epoch(path, first)
    with path.open("a") as stream:
        stream.write(json.dumps(second)[:20])
    append_epoch(path, second)
    append_epoch(path, third)
    assert parsed_epochs(path.read_text()) == [first, second, third]


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has not been initialised"):
        report_html(Store(tmp_path / "nothing"))


# -- the page -------------------------------------------------------------------------------------------------------------


def test_the_page_has_all_sections_of_a_federated_job(federated: Store) -> None:
    page = Page(report_html(federated))
    assert page.sections == [
        *("summary", "learning", "fairness", "comparison", "participation", "reasons", "timing", "privacy"),
        *("origin", "again"),
    ]
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 2 + 1 + 2
    assert "not defined" in page.words


@pytest.mark.parametrize("kind", ["local", "federated"])
def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(kind: str, request: pytest.FixtureRequest) -> None:
    text = report_html(request.getfixturevalue(kind))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "form", "base"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.findall(r"url\((?!#)", text) and "@import" not in text
    policies = [a.get("content") or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_are_there_once_and_references_find_theirs(federated: Store) -> None:
    text = report_html(federated)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)


def test_hostile_and_foreign_names_are_text(tmp_path: Path) -> None:
    pods = ("größe", "北", HOSTILE)
    text = report_html(federated_folder(tmp_path / "job", pods=pods, metric='"><img src=x>', name=HOSTILE))
    page = Page(text)
    assert HOSTILE in page.words and "北" in page.words and "größe" in page.words
    assert not {tag for tag, _ in page.tags} & {"script", "img"}


def test_hostile_names_of_classes_are_text(local: Store) -> None:
    page = Page(report_html(local))
    assert HOSTILE in page.words and "b & c" in page.words
    assert "script" not in {tag for tag, _ in page.tags}


def test_many_pods_and_many_rounds_are_one_page_of_a_bearable_size(tmp_path: Path) -> None:
    pods = tuple(f"pod-{number:02d}" for number in range(24))
    text = report_html(federated_folder(tmp_path / "job", pods=pods, records=rounds(300, pods)))
    assert len(text) < 2_000_000
    assert all(pod in text for pod in pods)


def test_a_second_report_has_the_same_bytes_and_the_step_is_done_once(federated: Store) -> None:
    kept = report_job(federated)
    assert report_html(federated).encode() == federated.get("report.html", kept.files["report"].sha256)
    assert report_job(federated) == kept


# -- charts ---------------------------------------------------------------------------------------------------------------

CHARTS = [
    Lines("one step", "round", (1,), (Series("a", 0, (0.5,)),)),
    Lines("gaps only between", "round", (1, 2, 3), (Series("a", 0, (0.5, None, 0.7)),)),
    Lines("huge and tiny", "round", (1, 2), (Series("a", 0, (1e-9, 1e300)), Series("b", 12, (-1.0, float("inf"))))),
    Stack("one", "round", (4,), (Series("a", 0, (0.0,)),)),
    Bars("negative", (Series("a", 0, (-0.5,)), Series("b", 1, (None,))), -0.1),
    Bars("nothing is defined", (Series("a", 0, (None,)),), None),
    Matrix("no rows of a class", ("a", "b"), ((0, 0), (3, 1))),
    Matrix("many classes", tuple(map(str, range(30))), tuple((1,) * 30 for _ in range(30))),
    Points("one row", (3.0,), (3.0,)),
    Presence("one", "round", (1,), ("a",), ((next(iter(STATES)),),)),
]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{type(chart).__name__}: {chart.title}")
def test_every_chart_is_drawn_the_same_twice_and_holds_no_colour_of_its_own(chart: object) -> None:
    drawn = svg(chart, "key")  # type: ignore[arg-type]
    assert drawn == svg(chart, "key")  # type: ignore[arg-type]
    Page(drawn)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", drawn))
    assert colours <= {"#ffffff", "#000000"}, "dark screens need colours of the page"
