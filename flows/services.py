"""Prefect server, MLflow server and worker, each as a command and its environment: pure functions of what was asked for."""

from __future__ import annotations

import base64
import ipaddress
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bitfount_model.errors import ConfigurationError
from flows.environment import SERVER
from flows.workspace import Workspace
from tasks.mlflow_client import quiet_mlflow_environment

POOL = "bitfount"
"""The work pool of the worker."""
PREFECT_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
MLFLOW_SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105 - the name of a variable
MLFLOW_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
AUTHENTICATION = (PREFECT_AUTH, MLFLOW_SECRET, MLFLOW_PASSWORD)
"""The variables that turn authentication on."""
HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
MLFLOW_AUTH_CONFIG = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Wanted:
    """What `bitfount-flows up` is asked for.

    Attributes:
        workspace: whose runs the servers show.
        prefect_port: port of the Prefect server.
        mlflow_port: port of the MLflow server.
        host: IPv4 address to listen on.
        allowed_hosts: names under which others reach the servers.
        prefect_db: PostgreSQL behind Prefect, with `${NAME}` for passwords; None for SQLite.
        mlflow_db: the same for MLflow.
        artifacts: where MLflow keeps files, a folder or URL; None for the workspace's own.
        worker: whether a process worker is started too.
    """

    workspace: Workspace
    prefect_port: int
    mlflow_port: int
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    prefect_db: str | None = None
    mlflow_db: str | None = None
    artifacts: str | None = None
    worker: bool = False

    @property
    def is_local(self) -> bool:
        """Whether nobody from elsewhere is to reach the servers."""
        return ipaddress.IPv4Address(self.host).is_loopback and not self.allowed_hosts

    @property
    def address(self) -> str:
        """Under which this machine reaches them."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not listened on

    @property
    def prefect_url(self) -> str:
        """Of Prefect's API."""
        return f"http://{self.address}:{self.prefect_port}/api"

    @property
    def mlflow_url(self) -> str:
        """Of MLflow."""
        return f"http://{self.address}:{self.mlflow_port}"


@dataclass(frozen=True)
class Service:
    """One process to start.

    Attributes:
        title: for people.
        command: program and arguments, without secrets.
        environment: all of its variables.
        url: where users reach it.
        answers_at: what gives an answer once it is up; for the worker, a question to Prefect.
    """

    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    url: str
    answers_at: str


def check_access(wanted: Wanted, environ: Mapping[str, str]) -> None:
    """Refuses servers that others could use without a password.

    Raises:
        ConfigurationError: says which variables or options are missing or wrong.
    """
    try:
        is_loopback = ipaddress.IPv4Address(wanted.host).is_loopback
    except ValueError as error:
        raise ConfigurationError(
            f"--host {wanted.host}: wanted an IPv4 address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ) from error
    if wrong := [name for name in wanted.allowed_hosts if not HOST_NAME.fullmatch(name)]:
        raise ConfigurationError(
            f"--allowed-hosts {','.join(wrong)}: wanted names or addresses as clients use them, without port, such as"
            " prefect.example.org or *.example.org"
        )
    missing = [name for name in AUTHENTICATION if not environ.get(name)]
    if not wanted.is_local and missing:
        raise ConfigurationError(
            "the servers would be reached from elsewhere, and that needs authentication: set"
            f" {', '.join(missing)} in the environment, or leave out --host and --allowed-hosts"
        )
    if not is_loopback and not wanted.allowed_hosts:
        raise ConfigurationError(
            f"--host {wanted.host} needs --allowed-hosts too: the names by which clients reach the servers, separated by"
            " commas; requests with other names are refused"
        )
    if environ.get(MLFLOW_PASSWORD) and not environ.get(MLFLOW_SECRET):
        raise ConfigurationError(f"{MLFLOW_PASSWORD} is set, and MLflow then needs {MLFLOW_SECRET} too")


def prefect_service(wanted: Wanted, environ: Mapping[str, str]) -> Service:
    """The Prefect server.

    Raises:
        ConfigurationError: its database's URL is wrong.
    """
    home = (wanted.workspace.home / "prefect").resolve()
    database = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    if wanted.prefect_db is not None:
        database = _postgresql(wanted.prefect_db, "--prefect-db", "postgresql+asyncpg")
    names = (*wanted.allowed_hosts, *(() if wanted.is_local else (wanted.address,)))
    public = f"http://{(*wanted.allowed_hosts, wanted.address)[0]}:{wanted.prefect_port}/api"
    return Service(
        title="Prefect server",
        command=(
            *(sys.executable, "-m", "flows.prefect_server", str(wanted.prefect_port), "--host", wanted.host),
            *(("--allowed-hosts", *names) if names else ()),
        ),
        environment={
            **SERVER,
            "PREFECT_UI_API_URL": public,
            **_without(environ, "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
            "PREFECT_HOME": str(home),
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
        },
        url=wanted.prefect_url,
        answers_at=f"{wanted.prefect_url}/health",
    )


def mlflow_command(host: str, port: int) -> tuple[str, ...]:
    """MLflow's server as one process, to be followed by further options."""
    return (
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    )


def mlflow_service(wanted: Wanted, environ: Mapping[str, str]) -> Service:
    """The MLflow server.

    Raises:
        ConfigurationError: its database's URL is wrong, or a package is missing.
    """
    database = wanted.workspace.tracking_uri
    if wanted.mlflow_db is not None:
        _require("psycopg", "--mlflow-db")
        database = _postgresql(wanted.mlflow_db, "--mlflow-db", "postgresql+psycopg")
    options = ["--allowed-hosts", ",".join(_with_ports(_mlflow_names(wanted)))]
    if origins := [f"{scheme}://{name}" for name in wanted.allowed_hosts for scheme in ("https", "http")]:
        options += ["--cors-allowed-origins", ",".join(_with_ports(origins))]
    if wanted.artifacts is not None or not wanted.is_local:
        if (wanted.artifacts or "").startswith("s3:"):
            _require("boto3", "--artifacts")
        options += ["--artifacts-destination", wanted.artifacts or wanted.workspace.artifacts.as_uri()]
    else:  # as `train` does without a server, so that either finds what the other has recorded
        options += ["--default-artifact-root", wanted.workspace.artifacts.as_uri()]
    authentication = {}
    if environ.get(MLFLOW_PASSWORD):
        _require("flask_wtf", MLFLOW_PASSWORD)
        options += ["--app-name", "basic-auth"]
        authentication = {
            "MLFLOW_AUTH_CONFIG_PATH": str(auth_config(wanted.workspace)),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        }
    return Service(
        title="MLflow server",
        command=(*mlflow_command(wanted.host, wanted.mlflow_port), *options),
        environment={
            **quiet_mlflow_environment(),
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "PYTHONWARNINGS": "ignore",
            **authentication,
            **_without(environ, "MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_ARTIFACTS_DESTINATION"),
            "MLFLOW_BACKEND_STORE_URI": database,  # as an argument, everybody on this machine could read its password
        },
        url=wanted.mlflow_url,
        answers_at=f"{wanted.mlflow_url}/health",
    )


def auth_config(workspace: Workspace) -> Path:
    """The file that tells MLflow where its users are kept."""
    return (workspace.home / "mlflow-auth.ini").resolve()


def auth_config_text(workspace: Workspace) -> str:
    """What the file says: no password, and users in a SQLite file of their own."""
    database = str((workspace.home / "mlflow-auth.db").resolve())
    return MLFLOW_AUTH_CONFIG.format(database=database.replace("%", "%%"))


def worker_service(wanted: Wanted, environ: Mapping[str, str]) -> Service:
    """A process worker on the work pool `bitfount`, which is made if it is not there."""
    home = wanted.workspace.home.resolve()
    authentication = {"PREFECT_API_AUTH_STRING": environ[PREFECT_AUTH]} if environ.get(PREFECT_AUTH) else {}
    if environ.get(MLFLOW_PASSWORD):
        authentication |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": environ[MLFLOW_PASSWORD]}
    return Service(
        title="worker",
        command=(
            *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"),
            *("--name", worker_name(home), "--install-policy", "never"),
        ),
        environment={
            **quiet_mlflow_environment(),
            **authentication,
            **_without(environ, *AUTHENTICATION),
            "BITFOUNT_HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": wanted.prefect_url,
            "MLFLOW_TRACKING_URI": wanted.mlflow_url,
        },
        url=f"work pool {POOL}",
        answers_at=f"{wanted.prefect_url}/work_pools/{POOL}/workers/filter",
    )


def worker_name(home: Path) -> str:
    """The worker's name in Prefect: one for each workspace."""
    return f"{home.resolve().name or 'root'} of this machine"


def prefect_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """How a request to Prefect says who asks."""
    secret = environ.get(PREFECT_AUTH)
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}


def _mlflow_names(wanted: Wanted) -> list[str]:
    return ["localhost", "127.0.0.1", *({*wanted.allowed_hosts, wanted.address} - {"localhost", "127.0.0.1"})]


def _with_ports(names: list[str]) -> list[str]:
    """Each name without a port and, as MLflow compares the port too, with any."""
    return [text for name in sorted(names) for text in (name, f"{name}:*")]


def _postgresql(url: str, option: str, driver: str) -> str:
    from bitfount_model.data.database_url import literal_secrets, parsed_url, resolved_url

    try:
        if literal_secrets(url):
            raise ConfigurationError(
                "it holds a password, which other users of this machine can read in the list of processes: write ${NAME} in"
                " its place, and set the environment variable NAME"
            )
        resolved = resolved_url(parsed_url(url))
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from None
    if resolved.get_backend_name() != "postgresql":
        raise ConfigurationError(f"{option}: a {resolved.get_backend_name()} database; wanted postgresql://…")
    return resolved.set(drivername=driver).render_as_string(hide_password=False)


def _require(module: str, what: str) -> None:
    if find_spec(module) is None:
        raise ConfigurationError(f"{what} needs the package {module}: pip install -c constraints.txt -e '.[servers]'")


def _without(environ: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}
