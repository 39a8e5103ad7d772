"""What compose.yaml describes, without containers: PostgreSQL behind Prefect and MLflow, an S3 store, and three pods."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import s3fs
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from psycopg import sql
from sqlalchemy import URL

from flows.servers import down, up
from flows.services import Wanted
from flows.workspace import Workspace
from tests.flows.conftest import Ended, command
from tests.flows.federated.site import Site
from tests.object_store import ObjectStore, object_store
from tests.postgres import postgres

SECRETS = {
    "DB_PASSWORD": "p@ss:w/rd%41",  # with what has a meaning in a URL
    "PREFECT_SERVER_API_AUTH_STRING": "flows:of-prefect",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a-password-of-mlflow",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-flask",
}
ROUNDS = 3

pytestmark = pytest.mark.timeout(900)  # a dozen processes, of which each imports for seconds on a busy machine


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """An S3 server."""
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def databases() -> Iterator[URL]:
    """A PostgreSQL server with a database for each of the two servers, and a role that owns both."""
    with postgres() as url, psycopg.connect(libpq(url), autocommit=True) as connection:
        role = sql.SQL("CREATE ROLE flows LOGIN PASSWORD {}").format(SECRETS["DB_PASSWORD"])
        connection.execute(role)
        for name in ("prefect", "mlflow"):
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER flows").format(sql.Identifier(name)))
        connection.close()
        yield url.set(username="flows", password=SECRETS["DB_PASSWORD"])


@pytest.fixture(scope="module")
def clients(databases: URL, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of modeller and pods, with the servers up."""
    home = tmp_path_factory.mktemp("servers")
    place = f"{databases.host}:{databases.port}"
    wanted = Wanted(
        Workspace(home),
        prefect_port=0,
        mlflow_port=0,
        prefect_db=f"postgresql://flows:${{DB_PASSWORD}}@{place}/prefect",
        mlflow_db=f"postgresql://flows:${{DB_PASSWORD}}@{place}/mlflow",
        artifacts=f"s3://{store.bucket}/mlflow",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        try:
            running = up(wanted, print)
            assert not [*home.rglob("prefect.db"), *home.rglob("mlflow.db")], "nothing is in SQLite"
            yield {
                **{name: value for name, value in os.environ.items() if name not in SECRETS},
                "PREFECT_API_URL": running["prefect"].url,
                "PREFECT_API_AUTH_STRING": SECRETS["PREFECT_SERVER_API_AUTH_STRING"],
                "MLFLOW_TRACKING_URI": running["mlflow"].url,
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"],
            }
        finally:
            down(home, print)


@pytest.fixture
def pods(clients: Mapping[str, str], store: ObjectStore, tmp_path: Path) -> Iterator[Site]:
    """Three pods that are served, and meet modellers in the bucket."""
    site = Site(tmp_path / "site")
    url = store.url
    for name in site.names:
        site.write_pod(name, store=url)
    site.write_job(deployed=True, rounds=ROUNDS, store=url)
    site.write_job(deployed=False, rounds=ROUNDS, name="embedded")
    settings = {
        PREFECT_API_URL: clients["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: clients["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(settings), pytest.MonkeyPatch.context() as patch:
        for name, value in clients.items():
            patch.setenv(name, value)
        try:
            site.serve(*site.names)
            yield site
            site.stop(*site.names)
        finally:
            site.kill_all()


def libpq(url: URL) -> str:
    """The URL as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def run(environment: Mapping[str, str], *arguments: str | Path) -> Ended:
    """The command line in a process of its own."""
    ended = subprocess.run(
        command(*arguments), env=dict(environment), capture_output=True, text=True, timeout=400, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def rows_of(databases: URL, database: str, query: str) -> list[tuple[Any, ...]]:
    """What PostgreSQL itself says."""
    with psycopg.connect(libpq(databases.set(database=database))) as connection:
        return connection.execute(query).fetchall()


def test_a_federated_job_gives_the_bits_of_the_embedded_one_and_is_kept_in_postgresql_and_s3(
    pods: Site, clients: Mapping[str, str], databases: URL, store: ObjectStore, tmp_path: Path
) -> None:
    job = ("train", pods.folder / "job.yaml", "--job-id", "job-1")
    federated = run(clients, *job, "--json", "--home", tmp_path / "modeller")
    assert federated.code == 0, federated.err
    embedded = run(
        {name: value for name, value in clients.items() if not name.startswith("MLFLOW_TRACKING")},
        *("train", pods.folder / "embedded.yaml", "--json", "--home", tmp_path / "embedded"),
    )
    assert embedded.code == 0, embedded.err

    assert federated.summary["weights_sha256"] == embedded.summary["weights_sha256"]
    check_mlflow(databases, store, federated.summary, set(pods.names))
    check_prefect(databases, set(pods.names))


def check_mlflow(databases: URL, store: ObjectStore, summary: dict[str, Any], pods: set[str]) -> None:
    kept = rows_of(
        databases,
        "mlflow",
        "SELECT runs.status, pod.value FROM runs JOIN tags job ON job.run_uuid = runs.run_uuid AND job.key = 'bitfount.job_id'"
        " LEFT JOIN tags pod ON pod.run_uuid = runs.run_uuid AND pod.key = 'bitfount.pod' WHERE job.value LIKE 'job-1%'",
    )
    assert sorted(kept, key=str) == sorted([("FINISHED", pod) for pod in (None, *pods)], key=str)
    steps = rows_of(
        databases,
        "mlflow",
        f"SELECT count(DISTINCT step) FROM metrics WHERE run_uuid = '{summary['mlflow_run_id']}' AND key LIKE 'validation/%'",
    )
    assert steps == [(ROUNDS,)]

    files = s3fs.S3FileSystem()
    weights = [path for path in files.find(f"{store.bucket}/mlflow") if path.endswith("weights.safetensors")]
    assert summary["weights_sha256"] in {hashlib.sha256(files.cat(path)).hexdigest() for path in weights}
    client = MlflowClient()
    run_id = summary["mlflow_run_id"]
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/"), (
        "clients need no key of the bucket"
    )
    assert client.list_artifacts(run_id)


def check_prefect(databases: URL, pods: set[str]) -> None:
    runs = rows_of(databases, "prefect", "SELECT name, state_type::text FROM flow_run WHERE name LIKE 'job-1 %'")
    assert sorted(runs) == sorted((f"job-1 · {pod}", "COMPLETED") for pod in pods)
    [(count,)] = rows_of(databases, "prefect", "SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'")
    assert count > len(pods) * ROUNDS
