"""`bitfount-flows runs | show | compare`: what people see of jobs, from their folders alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.cli import cli
from flows.workspace import only_once
from tasks.ending import end_kept, keep_end
from tasks.layout import EPOCHS
from tasks.manifest import Manifest, write_manifest
from tasks.store import Store
from tests.flows.conftest import MODEL, Ended
from tests.tasks.federated_folder import federated_folder, rounds
from tests.tasks.job_folder import history, job_folder

Main = Callable[[list[Any]], Ended]
Write = Callable[..., Path]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """The folder of jobs of a workspace with none."""
    folder = tmp_path / "home" / "jobs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Result]:
    """Calls a command over the workspace; what it raises is raised."""

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [*map(str, arguments), "--home", str(tmp_path / "home")])

    return call


def finished(store: Store, job: dict[str, Any] | None = None) -> Store:
    """The job has been recorded; its settings are these."""
    if job is not None:
        Path(store.location("job.json")).write_text(json.dumps(job))
    write_manifest(
        store, Manifest("record", {}, {"run_id": "abc123", "experiment_id": "1", "tracking_uri": "sqlite://"})
    )
    return store


def local_job(folder: Path, job_id: str, **training: Any) -> Store:
    """A finished local job."""
    store = job_folder(folder / job_id, job_id=job_id)
    return finished(store, {"name": "demo", "data": {"csv": "a.csv"}, "training": {"epochs": 4, "seed": 7, **training}})


def listed(look: Callable[..., Result]) -> dict[str, dict[str, Any]]:
    """Job id -> what `runs --json` says of it."""
    return {job["job_id"]: job for job in json.loads(look("runs", "--json").stdout)["jobs"]}


# -- runs -----------------------------------------------------------------------------------------------------------------


def test_a_workspace_that_is_not_there_has_no_jobs(tmp_path: Path, look: Callable[..., Result]) -> None:
    assert look("runs").stdout.startswith("there are no jobs in ")
    assert json.loads(look("runs", "--json").stdout) == {"jobs": [], "problems": []}
    assert not (tmp_path / "home").exists(), "looking makes nothing"


def test_finished_jobs_of_both_kinds_say_what_came_out(jobs: Path, look: Callable[..., Result]) -> None:
    local_job(jobs, "here")
    finished(federated_folder(jobs / "there"))
    found = listed(look)
    here, there = found["here"], found["there"]
    assert (here["kind"], here["state"], here["done"], here["asked"], here["unit"]) == (
        "local",
        "finished",
        4,
        4,
        "epochs",
    )
    assert (here["metric"], here["value"], here["metric_rows"], here["seconds"]) == ("AUC", 0.9931, "test", 12.5)
    assert (there["kind"], there["state"], there["done"], there["asked"]) == ("federated", "finished", 3, 3)
    assert (there["unit"], there["value"], there["seconds"]) == ("rounds", 0.85, 12.0)
    words = look("runs").stdout
    assert "4 of 4 epochs" in words and "3 of 3 rounds" in words and "AUC 0.9931 (test)" in words


def test_a_job_that_counts_steps_says_so(jobs: Path, look: Callable[..., Result]) -> None:
    local_job(jobs, "done", epochs=None, steps=2000)
    assert "2,000 steps" in look("runs").stdout and "epochs" not in look("runs").stdout


def test_the_newest_job_is_the_first(jobs: Path, look: Callable[..., Result]) -> None:
    for age, job_id in enumerate(("new", "older", "oldest")):
        store = local_job(jobs, job_id)
        os.utime(store.location("job.json"), (1e9 - age, 1e9 - age))
    assert list(listed(look)) == ["new", "older", "oldest"]


def test_a_running_job_is_known_by_its_lock_and_says_how_far_it_is(jobs: Path, look: Callable[..., Result]) -> None:
    federated_folder(jobs / "now", steps=("initialise",), records=rounds(2))
    with only_once(jobs / "now"):
        found = listed(look)["now"]
    assert (found["state"], found["reason"], found["done"], found["asked"]) == ("training", None, 2, 3)
    assert (found["metric"], found["metric_rows"], found["seconds"]) == ("AUC", "validation", 8.0)
    assert listed(look)["now"]["state"] == "stopped", "its process is gone"


def test_looking_keeps_no_job_from_starting(jobs: Path, look: Callable[..., Result]) -> None:
    local_job(jobs, "one")
    with only_once(jobs / "one"):
        pass
    for _ in range(3):
        look("runs")
        with only_once(jobs / "one"):
            pass


def test_a_job_that_failed_says_why_and_a_killed_one_that_it_cannot(jobs: Path, look: Callable[..., Result]) -> None:
    keep_end(job_folder(jobs / "failed", steps=("initialise",)), "failed", "DataError: no [bold]rows[/bold]")
    job_folder(jobs / "killed", steps=("initialise",)).put(EPOCHS, json.dumps(history(1)[0]).encode())
    found = listed(look)
    assert (found["failed"]["state"], found["failed"]["reason"]) == ("failed", "DataError: no [bold]rows[/bold]")
    assert (found["killed"]["state"], found["killed"]["done"]) == ("stopped", 1)
    assert "! failed failed: DataError: no [bold]rows[/bold]" in look("runs").stdout
    assert "! killed stopped: its process ended without a word" in look("runs").stdout


def test_a_job_that_goes_on_forgets_how_it_ended_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "job")
    with pytest.raises(KeyboardInterrupt), end_kept(store):
        raise KeyboardInterrupt
    assert json.loads(store.get("ended.json")) == {"state": "stopped", "reason": "interrupted"}
    with end_kept(store):
        pass
    assert not store.has("ended.json")


BROKEN: dict[str, Callable[[Path], object]] = {
    "no job at all": lambda job: (job / "notes.txt").write_text("mine"),
    "half a manifest": lambda job: (job / "steps" / "fit.json").write_text('{"step": "fit", "fi'),
    "a manifest of something else": lambda job: (job / "steps" / "evaluate.json").write_text('{"values": [1]}'),
    "no object": lambda job: (job / "job.json").write_text("[]"),
    "bytes": lambda job: (job / "job.json").write_bytes(b"\xff\xfe"),
    "a folder for a file": lambda job: ((job / "job.json").unlink(), (job / "job.json").mkdir()),
    "no history": lambda job: (job / "fit" / "history.json").unlink(),
    "sections of other kinds": lambda job: (job / "job.json").write_text('{"name": {}, "training": 3}'),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_folder_is_one_line_that_names_it(damage: str, jobs: Path, look: Callable[..., Result]) -> None:
    local_job(jobs, "good")
    (jobs / "bad").mkdir()
    if damage != "no job at all":
        local_job(jobs, "bad")
    BROKEN[damage](jobs / "bad")
    ended = look("runs")
    assert ended.exit_code == 0 and ended.exception is None
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("!")]
    assert line.startswith("! bad: ")
    assert set(listed(look)) == {"good"}
    shown = look("show", "bad")
    assert shown.exit_code == 5 and "bad: " in shown.output and "Traceback" not in shown.output


def test_names_of_any_script_are_shown_as_they_are(jobs: Path, look: Callable[..., Result]) -> None:
    finished(federated_folder(jobs / "cells", name="größe [red]北[/red]", metric="Ä|[b]"))
    assert "größe [red]北[/red]" in look("runs").stdout
    shown = look("show", "cells").stdout
    assert "größe [red]北[/red]" in shown and "Ä|[b]" in shown


def test_looking_loads_neither_torch_nor_prefect_nor_mlflow(jobs: Path) -> None:
    local_job(jobs, "one")
    code = (
        "import sys; from flows.cli import cli\n"
        f"for words in (['runs'], ['show', 'one'], ['compare', 'one', 'one']): cli([*words, '--home', {str(jobs.parent)!r}],"
        " standalone_mode=False)\n"
        "print({'torch', 'prefect', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


# -- show -----------------------------------------------------------------------------------------------------------------


def test_show_prints_settings_pods_metrics_files_and_curves(jobs: Path, look: Callable[..., Result]) -> None:
    finished(federated_folder(jobs / "cells-1"))
    shown = look("show", "cells").stdout
    for words in ("training.epochs", "ann", "0.9000", "not defined", "training loss", "validation AUC", "abc123"):
        assert words in shown
    assert "! cat was missing in round 2: its disk is full" in shown
    assert "fit/weights.safetensors" in shown


def test_show_as_json_has_what_the_manifests_have(jobs: Path, look: Callable[..., Result]) -> None:
    store = finished(federated_folder(jobs / "cells-1"))
    shown = json.loads(look("show", "cells-1", "--json").stdout)
    raw = json.loads(store.get("steps/evaluate.json"))["values"]
    assert shown["metrics"] == raw["metrics"]
    assert {pod: part["metrics"] for pod, part in shown["pods"].items()} == raw["by_pod"]
    assert shown["pods"]["cat"]["missing"] == {"round 2": "its disk is full"}
    assert shown["files"]["fit/weights.safetensors"] == len(b"trained")


def test_the_beginning_of_an_id_is_enough_where_one_job_has_it(jobs: Path, look: Callable[..., Result]) -> None:
    for job_id in ("nightly", "nightly-2", "weekly"):
        local_job(jobs, job_id)
    assert "weekly" in look("show", "w").stdout
    assert look("show", "nightly").exit_code == 0, "a whole id is no beginning"
    several = look("show", "night")
    assert several.exit_code == 2 and "nightly, nightly-2" in several.output
    missing = look("show", "x")
    assert missing.exit_code == 2 and "there are: nightly, nightly-2, weekly" in missing.output
    assert look("show", "../home").exit_code == 2


def test_show_writes_the_report_of_a_job_that_is_not_finished(
    jobs: Path, tmp_path: Path, look: Callable[..., Result]
) -> None:
    federated_folder(jobs / "cells-1", steps=("initialise",), records=rounds(1))
    assert look("show", "cells-1", "--html", tmp_path / "r.html").exit_code == 0
    assert "1 of 3 rounds done" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert look("show", "cells-1", "--html", tmp_path / "no" / "r.html").exit_code == 5


# -- compare --------------------------------------------------------------------------------------------------------------


def test_compare_gives_differences_to_the_first_and_the_settings_that_differ(
    jobs: Path, look: Callable[..., Result]
) -> None:
    local_job(jobs, "one")
    store = job_folder(jobs / "two", job_id="two", metrics={"AUC": 0.9831, "Brier Loss": None})
    finished(store, {"name": "demo", "data": {"csv": "a.csv"}, "training": {"epochs": 8, "seed": 7}})
    found = json.loads(look("compare", "one", "two", "--json").stdout)
    assert found["differences"]["AUC"] == [0.0, pytest.approx(-0.01)]
    assert found["differences"]["Brier Loss"] == [0.0, None]
    assert found["settings"] == {"training.epochs": [4, 8]}
    assert found["warnings"] == []
    words = look("compare", "one", "two").stdout
    assert "0.9831 (-0.0100)" in words and "training.epochs" in words


def changed(store: Store, **values: Any) -> None:
    """The rows that the job has read are others."""
    path = Path(store.location("steps/initialise.json"))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "values": {**manifest["values"], **values}}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_digest": "00" * 32}, "its rows are others than those of one"),
        ({"rows": {"train": 398, "validation": 57, "test": 100}}, "it has 100 test rows and one 114"),
        ({"seed": 8}, "its seed or splitter is another one"),
        ({"targets": ["other"]}, "it predicts other, and one target"),
    ],
)
def test_compare_says_when_numbers_are_not_of_the_same_rows(
    values: dict[str, Any], words: str, jobs: Path, look: Callable[..., Result]
) -> None:
    local_job(jobs, "one")
    changed(local_job(jobs, "two"), **values)
    ended = look("compare", "one", "two")
    assert ended.exit_code == 0
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("!")]
    assert line.startswith(f"! two: {words}")


def test_compare_takes_jobs_of_both_kinds_and_jobs_that_have_not_begun(jobs: Path, look: Callable[..., Result]) -> None:
    local_job(jobs, "one")
    finished(federated_folder(jobs / "two"))
    keep_end(Store(jobs / "three"), "failed", "DataError: no rows")
    found = json.loads(look("compare", "one", "two", "three", "--json").stdout)
    assert found["metrics"]["AUC"] == [0.9931, 0.85, None]
    assert [warning.split(":")[0] for warning in found["warnings"]] == ["two", "three"]


# -- a job that really ran ------------------------------------------------------------------------------------------------


def test_a_job_leaves_its_report_in_its_folder_and_among_the_runs_artifacts(
    main: Main, job_file: Write, home: Path, look: Callable[..., Result]
) -> None:
    from mlflow import MlflowClient
    from prefect.client.orchestration import get_client

    ended = main(["train", job_file(), "--home", home, "--job-id", "looked-at", "--json"])
    assert ended.code == 0, ended
    summary = ended.summary
    kept = (home / "jobs" / "looked-at" / "report.html").read_bytes()
    assert Path(summary["report"]).read_bytes() == kept
    client = MlflowClient(summary["tracking_uri"])
    sizes = {item.path: item.file_size for item in client.list_artifacts(summary["mlflow_run_id"])}
    assert sizes["report.html"] == len(kept)
    note = client.get_run(summary["mlflow_run_id"]).data.tags["mlflow.note.content"]
    assert "`report.html`" in note

    assert look("show", "looked-at", "--html", home / "again.html").exit_code == 0
    assert (home / "again.html").read_bytes() == kept
    assert listed(look)["looked-at"]["state"] == "finished"
    assert not (home / "jobs" / "looked-at" / "scratch" / "epochs.jsonl").exists()

    with get_client(sync_client=True) as prefect:
        (run,) = [run for run in prefect.read_flow_runs() if run.name == "looked-at"]
        (page,) = [found for found in prefect.read_artifacts() if found.flow_run_id == run.id]
    assert set(run.tags) == {"local", "tumours"}
    assert page.key == "summary" and page.type == "markdown"
    assert "AUC" in str(page.data) and summary["mlflow_run_id"] in str(page.data)


def test_a_model_that_fails_is_seen_with_its_epochs_so_far(
    main: Main, job_file: Write, home: Path, look: Callable[..., Result]
) -> None:
    source = MODEL.replace(
        '        x, y = batch\n        return {"validation_loss"',
        "        if self.current_epoch == 1:\n            raise RuntimeError('no more')\n"
        '        x, y = batch\n        return {"validation_loss"',
    )
    assert main(["train", job_file(source), "--home", home, "--job-id", "bad", "--json"]).code == 4
    found = listed(look)["bad"]
    assert (found["state"], found["done"], found["asked"]) == ("failed", 1, 3)
    assert "no more" in found["reason"]
    assert look("show", "bad", "--html", home / "bad.html").exit_code == 0
    assert "no more" in (home / "bad.html").read_text(encoding="utf-8")


def test_commands_that_look_are_in_the_help() -> None:
    words = CliRunner().invoke(cli, ["--help"]).output
    assert all(f"  {name} " in words for name in ("runs", "show", "compare"))
