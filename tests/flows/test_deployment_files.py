"""The files of deployments/ and the commands that deploy a file: what they name is there, and what is wrong is refused."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from ruamel.yaml import YAML

from bitfount_model.errors import ConfigurationError, QuorumError
from flows.deploy import ENVIRONMENT, RESTARTED, install_automations, read_automations
from flows.deployed import as_overrides
from flows.deployed_run import LogStream, job_id_of, killed_in_a_row
from flows.settings import checked_destination, checked_source, read_job, read_pod, read_retraining
from tasks.retraining.outcome import tell_automations
from tests.flows.conftest import Ended

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "deployments"
DEPLOYMENTS = YAML(typ="safe").load(FILES / "prefect.yaml")["deployments"]

Main = Callable[[Sequence[str | Path]], Ended]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_parameter_is_an_argument_of_its_flow(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    arguments = inspect.signature(getattr(import_module(module), name).fn).parameters
    assert set(deployment.get("parameters", {})) <= set(arguments)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_file_that_a_deployment_names_is_right(deployment: dict[str, Any]) -> None:
    readers = {"job_file": read_job, "retraining_file": read_retraining}
    given = deployment.get("parameters", {})
    for parameter, read in readers.items():
        if parameter in given:
            read(ROOT / given[parameter])
    for parameter, check in {"data": checked_source, "out": checked_destination}.items():
        if parameter in given:
            check(given[parameter])
    pod_file = deployment["work_pool"]["job_variables"]["env"].get("BITFOUNT_POD_FILE")
    if pod_file:
        assert read_pod(ROOT / pod_file).name == deployment["name"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_runs_beat_as_the_automations_want_it(deployment: dict[str, Any]) -> None:
    assert ENVIRONMENT.items() <= deployment["work_pool"]["job_variables"]["env"].items()


def test_automations_look_at_runs_that_go_on_when_they_are_started_again() -> None:
    notice, restart = (each.model_dump(mode="json") for each in read_automations(FILES / "automations.yaml"))
    assert notice["trigger"]["match_related"]["prefect.resource.id"] == f"prefect.tag.{RESTARTED}"
    assert restart["trigger"]["match"]["prefect.resource.name"] == notice["name"]
    restarted = {each["name"] for each in DEPLOYMENTS if RESTARTED in each["tags"]}
    assert restarted == {"local", "federated", "nightly", "batch"}  # a pod's run is started again by the modeller


def test_automations_that_are_the_same_are_left_as_they_are(
    main: Main, home: Path, tmp_path: Path, prefect_url: str
) -> None:
    changed = tmp_path / "automations.yaml"
    changed.write_text((FILES / "automations.yaml").read_text().replace("within: 65", "within: 66"))

    def installed(*file: Path) -> dict[str, Any]:
        assert main(["automations", *file, "--home", home]).code == 0
        made = httpx.post(f"{prefect_url}/automations/filter", json={}).json()
        return {each["name"]: each["trigger"]["id"] for each in made}

    first, again, updated = installed(), installed(), installed(changed)
    assert first == again
    assert set(updated) == set(first)
    assert [name for name in first if updated[name] != first[name]] == [
        "bitfount: notice runs whose process was killed"
    ]


def test_a_file_without_automations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "automations.yaml"
    with pytest.raises(ConfigurationError, match="wanted a file with a list `automations`"):
        read_automations(path)
    path.write_text("automations: [{name: a, trigger: {type: never}}]")
    with pytest.raises(ConfigurationError, match="not an automation"):
        read_automations(path)


def test_a_job_file_is_deployed_and_updated(
    main: Main, job_file: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    job = job_file(name="ward-3", schema={})
    first = main(["deploy", job, "--home", home, "--cron", "0 2 * * *", "--timezone", "Europe/London", "--json"])
    second = main(["deploy", job, "--home", home, "--cron", "0 3 * * *", "--json"])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.summary == second.summary
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name("training/ward-3")
        automations = [each.name for each in client.read_automations()]
        client.delete_deployment(made.id)
    assert made.parameters["job_file"] == str(job)
    assert [each.schedule.model_dump()["cron"] for each in made.schedules] == ["0 3 * * *"]
    assert len(automations) == len(set(automations))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cron", "every night"], "wanted five fields"),
        (["--cron", "0 2 * * *", "--timezone", "Atlantis/Capital"], "wanted five fields"),
        (["--tracking-uri", "http://me:secret@mlflow"], "holds a password"),
        (["--store", "s3://key:secret@bucket"], "holds a password"),
    ],
)
def test_what_is_wrong_is_refused_and_no_secret_is_shown(
    arguments: list[str], said: str, main: Main, job_file: Callable[..., Path], home: Path
) -> None:
    ended = main(["deploy", job_file(), "--home", home, *arguments])
    assert ended.code == 2
    assert said in ended.err
    assert "secret" not in ended.err + ended.out


def test_a_wrong_job_is_refused_as_by_train(main: Main, job_file: Callable[..., Path], home: Path) -> None:
    job = job_file(training={"epochs": -1})
    deployed, trained = (main([command, job, "--home", home]) for command in ("deploy", "train"))
    assert (deployed.code, deployed.err) == (trained.code, trained.err)
    assert deployed.code == 2


def test_without_a_server_it_says_which_variable_to_set(
    main: Main, job_file: Callable[..., Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    ended = main(["deploy", job_file(), "--home", home])
    assert ended.code == 2
    assert "PREFECT_API_URL" in ended.err


def test_overrides_are_those_of_the_command_line(job_file: Callable[..., Path]) -> None:
    overrides = {"training.epochs": 5, "predict": None, "data": {"csv": "été: 1.csv"}}
    job = read_job(job_file(), as_overrides(overrides))
    assert (job.training["epochs"], job.predict, Path(job.data["csv"]).name) == (5, None, "été: 1.csv")


def test_runs_of_one_moment_have_jobs_of_their_own() -> None:
    one, other = "01a21689-dce6-7c07-8c2c-19901f910bd4", "01a21689-dce6-7a96-a73e-322ab4c24d17"
    assert job_id_of("tumours", one) == job_id_of("tumours", one) == "tumours-1f910bd4"
    assert job_id_of("tumours", one) != job_id_of("tumours", other)
    assert len(job_id_of("x" * 200, one)) <= 80


@pytest.mark.parametrize(
    ("states", "kills"),
    [
        ([], 0),
        (["SCHEDULED", "PENDING", "RUNNING"], 0),
        (["RUNNING", "CRASHED", "SCHEDULED", "RUNNING", "CRASHED"], 2),
        (["RUNNING", "CRASHED", "RUNNING", "FAILED", "RUNNING", "CRASHED"], 1),
    ],
)
def test_kills_are_counted_until_a_run_ends_otherwise(states: list[str], kills: int) -> None:
    assert killed_in_a_row(states) == kills


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, *values: str) -> None:
        self.lines.append(text % values)


def test_whole_lines_go_to_the_log() -> None:
    log = Log()
    stream = LogStream(log)  # type: ignore[arg-type]
    for text in ("epoch 1", "/3\nepoch 2/3\n\n", "100 % done", "\n"):
        assert stream.write(text) == len(text)
    assert log.lines == ["epoch 1/3", "epoch 2/3", "100 % done"]


def test_a_run_that_ends_badly_says_it_by_a_state(prefect_url: str) -> None:
    from prefect import flow

    from flows.deployed_run import ended

    @flow(persist_result=False)
    def bad(error: str) -> Any:
        def body() -> Any:
            raise {"quorum": QuorumError, "configuration": ConfigurationError}[error](f"no {error}")

        return ended(body)

    below, wrong = bad("quorum", return_state=True), bad("configuration", return_state=True)
    assert (below.name, below.type.value, below.message) == ("BelowQuorum", "FAILED", "no quorum")
    assert (wrong.name, wrong.message) == ("Failed", "no configuration")


def test_a_run_that_was_killed_too_often_does_nothing_more(prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow

    from flows import deployed_run

    monkeypatch.setattr(deployed_run, "states_of", lambda run_id: ["RUNNING", "CRASHED"] * deployed_run.MOST_KILLS)

    @flow(persist_result=False)
    def killed() -> Any:
        return deployed_run.ended(lambda: pytest.fail("it was started again"))

    state = killed(return_state=True)
    assert (state.name, state.type.value) == ("KilledTooOften", "FAILED")
    assert "killed 3 times" in state.message


def test_the_example_of_a_notification_is_one() -> None:
    (told,) = read_automations(FILES / "notifications.yaml")
    assert told.actions[0].type == "call-webhook"


def test_the_example_of_a_notification_posts_what_a_retraining_decided(prefect_url: str, tmp_path: Path) -> None:
    told: Queue[str] = Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        block = str(Webhook(url=f"http://127.0.0.1:{server.server_port}/secret").save("retrainings"))
        installed = tmp_path / "notifications.yaml"
        installed.write_text((FILES / "notifications.yaml").read_text().replace(str(UUID(int=0)), block))
        install_automations(installed)
        message, deadline = "", time.monotonic() + 120
        while not message and time.monotonic() < deadline:  # the server takes a moment to hear of a new automation
            tell_automations("kept", "tumours", {"why": "AUC 0.91 is worse than 0.94"})
            with suppress(Empty):
                message = told.get(timeout=5)
        server.shutdown()
    assert "tumours: bitfount.retraining.kept: AUC 0.91 is worse than 0.94" in message
