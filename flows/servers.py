"""The servers of a workspace: started so that they stay, found again by `servers.json`, and ended."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from bitfount_model.errors import ConfigurationError, StorageError
from flows.prefect_server import free_port
from flows.processes import Detached, end, is_free, listener, start
from flows.services import (
    MLFLOW_PASSWORD,
    PREFECT_AUTH,
    Service,
    Wanted,
    auth_config,
    auth_config_text,
    check_access,
    mlflow_service,
    prefect_headers,
    prefect_service,
    worker_service,
)

START_SECONDS = 120.0
LOCK_SECONDS = 180.0
POLL_SECONDS = 0.1
LAST_LINES = 15
"""How many lines of its log are shown of a server that does not start."""


class ServerStartError(StorageError):
    """A server ended, or did not answer, when it was started."""


@dataclass(frozen=True)
class Up:
    """A process of a workspace, as `servers.json` keeps it.

    Attributes:
        title: for people.
        pid: its id.
        started: when, in seconds since 1970.
        url: where it is reached.
        port: on which it listens; 0 for a worker.
        log: path of its log.
    """

    title: str
    pid: int
    started: float
    url: str
    port: int
    log: str

    @property
    def detached(self) -> Detached:
        """Its process."""
        return Detached(self.pid, self.started)

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self.detached.process() is not None


def up(wanted: Wanted, say: Callable[[str], None]) -> dict[str, Up]:
    """Starts what does not run yet, and waits until all of it answers.

    Args:
        wanted: ports of 0 stand for free ones.
        say: prints a line.

    Returns:
        "prefect", "mlflow" and perhaps "worker" -> what runs.

    Raises:
        ConfigurationError: an option is wrong, a port is taken, or authentication is missing.
        ServerStartError: a server does not start; what this call started is ended again.
        StorageError: the workspace cannot be written.
    """
    check_access(wanted, os.environ)
    home = wanted.workspace.home
    with _locked(home):
        known = read(home)
        running = {name: each for name, each in known.items() if each.is_running}
        for each in running.values():
            say(f"the {each.title} runs already: {each.url} (process {each.pid})")
        wanted = _with_free_ports(wanted, running)
        services = _services(wanted, os.environ)
        missing = {name: service for name, service in services.items() if name not in running}
        _check_ports(wanted, missing)
        if "mlflow" in missing and os.environ.get(MLFLOW_PASSWORD):
            auth_config(wanted.workspace).write_text(auth_config_text(wanted.workspace), encoding="utf-8")
        began: dict[str, Up] = {}
        try:
            # The servers start side by side; the worker asks Prefect, so that Prefect must answer first.
            for names in (("prefect", "mlflow"), ("worker",)):
                now = {name: missing[name] for name in names if name in missing}
                offsets = {name: _size(_log(home, name)) for name in now}
                for name, service in now.items():
                    began[name] = _start(home, name, service)
                    write(home, {**running, **began})
                for name, service in now.items():
                    _wait(service, began[name], offsets[name])
                    say(f"started the {service.title}: {service.url} (process {began[name].pid})")
        except BaseException:
            for each in reversed(began.values()):
                end(each.detached)
            write(home, running)
            raise
        return {**running, **began}


def down(home: Path, say: Callable[[str], None]) -> None:
    """Ends what `up` started in a workspace, the worker first.

    Args:
        home: the workspace.
        say: prints a line.

    Raises:
        StorageError: `servers.json` cannot be read or removed.
    """
    if not (home / "servers.json").exists():
        say(f"no servers of {home} run")
        return
    with _locked(home):
        for each in reversed(read(home).values()):
            if end(each.detached):
                say(f"ended the {each.title} (process {each.pid})")
            else:
                say(f"the {each.title} (process {each.pid}) had ended before; its log is {each.log}")
        write(home, {})


def exports(running: Mapping[str, Up]) -> list[str]:
    """The lines by which a shell's commands use the servers; passwords are named, not shown."""
    lines = [f"export PREFECT_API_URL={running['prefect'].url}", f"export MLFLOW_TRACKING_URI={running['mlflow'].url}"]
    if os.environ.get(PREFECT_AUTH):
        lines.append(f'export PREFECT_API_AUTH_STRING="${PREFECT_AUTH}"')
    if os.environ.get(MLFLOW_PASSWORD):
        lines.append(f'export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="${MLFLOW_PASSWORD}"')
    return lines


def read(home: Path) -> dict[str, Up]:
    """What `servers.json` says, whether it runs or not.

    Raises:
        StorageError: the file is not what `up` writes.
    """
    path = home / "servers.json"
    try:
        return {name: Up(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path} is not what `bitfount-flows up` writes ({error}): end the servers by their process ids, and remove the file"
        ) from error


def write(home: Path, servers: Mapping[str, Up]) -> None:
    """Writes `servers.json`, whole or not at all; nothing that runs is no file."""
    path = home / "servers.json"
    if not servers:
        path.unlink(missing_ok=True)
        return
    new = home / "servers.json.new"
    new.write_text(json.dumps({name: asdict(each) for name, each in servers.items()}, indent=2), encoding="utf-8")
    new.replace(path)


def _services(wanted: Wanted, environ: Mapping[str, str]) -> dict[str, Service]:
    services = {"prefect": prefect_service(wanted, environ), "mlflow": mlflow_service(wanted, environ)}
    return services | ({"worker": worker_service(wanted, environ)} if wanted.worker else {})


def _with_free_ports(wanted: Wanted, running: Mapping[str, Up]) -> Wanted:
    ports = {"prefect": wanted.prefect_port, "mlflow": wanted.mlflow_port}
    chosen = {name: running[name].port if name in running else port or free_port() for name, port in ports.items()}
    return replace(wanted, prefect_port=chosen["prefect"], mlflow_port=chosen["mlflow"])


def _check_ports(wanted: Wanted, missing: Mapping[str, Service]) -> None:
    for name, port in (("prefect", wanted.prefect_port), ("mlflow", wanted.mlflow_port)):
        if name in missing and not is_free(wanted.host, port):
            raise ConfigurationError(
                f"port {port} of {wanted.host} is taken by {listener(port)}: end it, or choose another port with"
                f" --{name}-port (0: a free one)"
            )
    if wanted.prefect_port == wanted.mlflow_port:
        raise ConfigurationError(f"--prefect-port and --mlflow-port are both {wanted.mlflow_port}; wanted two ports")


def _start(home: Path, name: str, service: Service) -> Up:
    log = _log(home, name)
    process = start(service.command, service.environment, log)
    port = int(service.url.rpartition(":")[2].partition("/")[0]) if "://" in service.url else 0
    return Up(service.title, process.pid, process.started, service.url, port, str(log))


def _wait(service: Service, process: Up, offset: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not process.is_running:
            raise ServerStartError(
                f"the {service.title} ended when it was started. {_last_words(service, process, offset)}"
            )
        if _answers(service):
            return
        time.sleep(POLL_SECONDS)
    raise ServerStartError(
        f"the {service.title} did not answer within {START_SECONDS:g} s. {_last_words(service, process, offset)}"
    )


def _answers(service: Service) -> bool:
    """Whether it is up: a server answers, a worker is known to Prefect by its name."""
    asks_for_worker = service.answers_at.endswith("/filter")
    request = urllib.request.Request(  # noqa: S310 - our own address
        service.answers_at,
        data=b"{}" if asks_for_worker else None,
        headers={"Content-Type": "application/json", **prefect_headers(os.environ)} if asks_for_worker else {},
    )
    with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 - our own address
            if not asks_for_worker:
                return True
            workers = json.load(answer)
        name = service.command[service.command.index("--name") + 1]
        return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)
    return False


def _last_words(service: Service, process: Up, offset: int) -> str:
    """The end of what it has printed since this start, without passwords."""
    with Path(process.log).open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").rstrip().splitlines()[-LAST_LINES:]
    text = "\n".join(f"  {line}" for line in lines)
    for secret in _secrets(service.environment):
        text = text.replace(secret, "***")
    return f"The end of {process.log}:\n{text}"


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """What may be in a server's log and must not be printed: passwords in URLs, and variables named for secrets."""
    urls = (value.partition("://")[2].rpartition("@")[0].partition(":")[2] for value in environment.values())
    words = ("PASSWORD", "SECRET", "AUTH_STRING", "TOKEN", "ACCESS_KEY")
    named = (value for name, value in environment.items() if any(word in name.upper() for word in words))
    return sorted({secret for secret in (*urls, *named) if len(secret) > 3}, key=len, reverse=True)


def _log(home: Path, name: str) -> Path:
    return (home / "logs" / f"{name}.log").resolve()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One `up` or `down` of a workspace at a time; a second one waits.

    Raises:
        StorageError: the workspace cannot be written, or the other takes too long.
    """
    try:
        (home / "logs").mkdir(parents=True, exist_ok=True)
        (home / "prefect").mkdir(exist_ok=True)
        with FileLock(home / "servers.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise StorageError(f"another up or down of {home} has been at work for {LOCK_SECONDS:g} s; end it") from error
    except OSError as error:
        raise StorageError(f"cannot write in {home}: {error.strerror}. Choose another folder with --home.") from error
