"""W1: the servers that `up` starts listen on loopback and check hosts; reached from elsewhere, they need authentication."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from bitfount_model.errors import ConfigurationError
from flows.servers import Up, down, up
from flows.services import AUTHENTICATION, Wanted
from flows.workspace import Workspace

SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": "flows:sentinel-of-prefect",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "sentinel-of-mlflow",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "sentinel-of-flask",
}
PATHS = {
    "prefect": ("POST", "/api/flows/count"),
    "mlflow": ("GET", "/api/2.0/mlflow/experiments/search?max_results=1"),
}
LOGINS = {
    "prefect": SECRETS["PREFECT_SERVER_API_AUTH_STRING"],
    "mlflow": f"admin:{SECRETS['MLFLOW_AUTH_ADMIN_PASSWORD']}",
}
NAME = "flows.example.org"


@pytest.fixture(scope="module")
def guarded(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Up]]:
    """Servers, and a worker, as behind a reverse proxy: authentication on, and one name of elsewhere."""
    home = tmp_path_factory.mktemp("guarded")
    (home / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    wanted = Wanted(Workspace(home), prefect_port=0, mlflow_port=0, allowed_hosts=(NAME,), worker=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        try:
            yield up(wanted, print)
        finally:
            down(home, print)


def asked(server: Up, path: tuple[str, str], *, host: str | None = None, login: str | None = None) -> int:
    """The status of a request with a Host header and perhaps a user and password."""
    connection = http.client.HTTPConnection(str(urlsplit(server.url).netloc), timeout=30)
    headers = {"Host": host or f"127.0.0.1:{server.port}", "Content-Type": "application/json"}
    if login is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    connection.request(*path, body="{}" if path[0] == "POST" else None, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("name", PATHS)
def test_only_who_has_the_password_is_answered(guarded: dict[str, Up], name: str) -> None:
    assert asked(guarded[name], PATHS[name]) == 401
    for login in ("admin:wrong", "", ":", f"{LOGINS[name]}x", LOGINS[name].upper()):
        assert asked(guarded[name], PATHS[name], login=login) == 401, login
    assert asked(guarded[name], PATHS[name], login=LOGINS[name]) == 200


@pytest.mark.parametrize(("name", "refusal"), [("prefect", 400), ("mlflow", 403)])
def test_a_foreign_host_header_is_refused_whoever_asks(guarded: dict[str, Up], name: str, refusal: int) -> None:
    server = guarded[name]
    for host in (
        "evil.example.org",
        f"evil.{NAME}",
        f"{NAME}.evil.example.org",
        "10.0.0.1",
        f"evil.example.org:{server.port}",
    ):
        assert asked(server, PATHS[name], host=host, login=LOGINS[name]) == refusal, host
    for host in (NAME, f"{NAME}:{server.port}", "localhost", f"localhost:{server.port}", "127.0.0.1"):
        assert asked(server, PATHS[name], host=host, login=LOGINS[name]) == 200, host


def test_they_listen_on_loopback_alone(guarded: dict[str, Up]) -> None:
    for server in (guarded["prefect"], guarded["mlflow"]):
        sockets = [each for process in server.detached.family() for each in process.net_connections()]
        listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), timeout=5):
            pass


def test_no_password_is_in_a_command_line_a_log_or_the_list_of_servers(guarded: dict[str, Up]) -> None:
    family = [process for each in guarded.values() for process in each.detached.family()]
    home = Path(guarded["mlflow"].log).parent.parent
    files = [path for path in home.rglob("*") if path.suffix in {".log", ".json", ".ini", ".toml"}]
    seen = [" ".join(process.cmdline()) for process in family] + [path.read_text(errors="replace") for path in files]
    assert len(files) >= 4
    assert "sentinel" not in json.dumps(seen)


@pytest.mark.parametrize("missing", AUTHENTICATION)
@pytest.mark.parametrize("elsewhere", [{"host": "0.0.0.0"}, {"allowed_hosts": (NAME,)}])
def test_without_authentication_they_do_not_start_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, elsewhere: dict[str, object]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, "" if name == missing else value)
    wanted = Wanted(Workspace(tmp_path), 0, 0, **elsewhere)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"needs authentication: set {missing} in the environment"):
        up(wanted, print)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [(), ("*",), ("a.example.org:80",), ("a b",), ("http://a",), ("*evil.org",)])
def test_on_every_address_names_are_needed_and_everything_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="--allowed-hosts"):
        up(Wanted(Workspace(tmp_path), 0, 0, host="0.0.0.0", allowed_hosts=names), print)
