"""Approved models that turn on their pod: each is a named failure, nothing is reached, and the pod goes on with the next round."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from bitfount_model import codec
from bitfount_model.errors import ConfinedModelError, ConfinementError, PodError
from tasks.federated import pod_worker
from tasks.federated.confined.session import ConfinedSession
from tasks.federated.exchange import round_phase
from tasks.federated.pod_worker import PodWorker
from tasks.federated.rounds import Rounds
from tests.tasks.federated.confined.ready import LIMITS, MIB, OBEDIENT, made_ready, obedient_job, order, pod_of
from tests.tasks.federated.team import SECRET, Team, plain_step

SENTINEL = "sentinel-of-the-store-0815"
WAIT_SECONDS = 120
PROBE = """
import errno, json, os
def tried(call):
    try:
        return repr(call())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
{text}
pipe = os.open(gate / "said", os.O_RDWR)
os.write(pipe, json.dumps(said).encode())
"""
FORGE = """
import json, os, stat, struct, time
channel = next(fd for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
os.set_blocking(channel, True)
def frame(header, body=b""):
    text = json.dumps(header).encode()
    opened = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}")}
    shared = next(fd for fd, name in opened.items() if "memfd" in name)
    os.pwrite(shared, body, 0)
    os.write(channel, struct.pack("!IQ", len(text), len(body)) + text)
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return Team(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def pod(team: Team) -> Iterator[ConfinedSession]:
    """A pod whose own environment holds a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)
        session = ConfinedSession(pod_of(team), obedient_job(team), OBEDIENT, limits=LIMITS)
        made_ready(session)
        yield session
        session.close()


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's steps without Prefect around them."""
    monkeypatch.setattr(pod_worker, "step", plain_step)


@pytest.fixture(scope="module")
def honest(pod: ConfinedSession) -> str:
    """The digest of what a round gives when nobody attacks."""
    return codec.digest(pod.fit(2, pod.parameters).delta)


def attacked(pod: ConfinedSession, team: Team, honest: str, text: str) -> Exception:
    """How a round ends in which the model runs a text; the next one gives what it always gives."""
    file = order(team, dedent(text))
    with pytest.raises((ConfinedModelError, ConfinementError)) as caught:
        pod.fit(1, pod.parameters)
    file.unlink()
    assert codec.digest(pod.fit(2, pod.parameters).delta) == honest
    return caught.value


def failed(pod: ConfinedSession, team: Team, honest: str, text: str) -> ConfinedModelError:
    """The same, where the model's code raises."""
    error = attacked(pod, team, honest, text)
    assert isinstance(error, ConfinedModelError), error
    return error


def probed(pod: ConfinedSession, team: Team, text: str) -> Any:
    """What a text finds, as `said`, when the model runs it; through a pipe, as a model can write to no file."""
    pipe, file = team.gate / "said", order(team, PROBE.format(text=dedent(text)))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pod.fit(1, pod.parameters)
        return json.loads(os.read(reader, 4096))
    finally:
        os.close(reader)
        for path in (pipe, file):
            path.unlink()


def test_no_network_is_reached_not_even_the_machines_own(pod: ConfinedSession, team: Team, honest: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        address, name = server.getsockname(), f"\0{SENTINEL}-{os.getpid()}"
        local.bind(name)
        local.listen()
        socket.create_connection(address).close()
        server.accept()[0].close()  # whoever is not confined reaches it
        text = f"""
        import socket
        said = [
            tried(lambda: socket.create_connection({address!r}, timeout=10)),
            tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"row", {address!r})),
            tried(lambda: socket.socket(socket.AF_INET6).connect(("::1", {address[1]}))),
            tried(lambda: socket.socket(socket.AF_UNIX).connect({name!r})),
        ]
        """
        *internet, abstract = probed(pod, team, text)
        assert set(internet) <= {"ENETUNREACH", "EADDRNOTAVAIL"} and abstract == "ECONNREFUSED"
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    error = failed(pod, team, honest, "import socket; socket.create_connection(('192.0.2.1', 80), timeout=10)")
    assert error.kind == "OSError" and error.met is not None and "a network" in error.met and not error.transient


def test_no_secret_of_the_pod_is_read(pod: ConfinedSession, team: Team) -> None:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SENTINEL
    text = f"""
    from pathlib import Path
    seen = sorted(path.name for path in Path("/proc").glob("[0-9]*"))
    secret = {SENTINEL!r}.encode()
    read = [tried(lambda path=path: secret in (Path("/proc") / path / "environ").read_bytes()) for path in seen]
    of_the_pod = tried(lambda: Path("/proc/{os.getpid()}/environ").read_bytes())
    said = [seen, read, of_the_pod, secret.decode() in str(dict(os.environ))]
    """
    assert probed(pod, team, text) == [["1"], ["False"], "ENOENT", False]


def test_nothing_of_the_pod_is_open_but_what_they_talk_through(pod: ConfinedSession, team: Team) -> None:
    text = """
    import stat
    said = []
    for number in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{number}"):
            state = os.fstat(int(number))
            said += [] if stat.S_ISCHR(state.st_mode) else [[state.st_dev, state.st_ino]]
    """
    own = {(state.st_dev, state.st_ino): name for name, state in opened()}
    shared = sorted(own[found] for found in map(tuple, probed(pod, team, text)) if found in own)
    assert set(shared) == {"/memfd", "pipe"}, "the bodies, and what it prints"
    text = 'said = [os.getcwd() == os.environ["HOME"] == os.environ["TMPDIR"], os.getcwd()]'
    assert probed(pod, team, text) == [True, pod._process._parts.scratch]  # type: ignore[union-attr]
    assert not list(Path(pod._process._parts.scratch).iterdir()), "nothing comes out of it"  # type: ignore[union-attr]


def opened() -> Iterator[tuple[str, os.stat_result]]:
    """What this process has open."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder itself, which is closed by then
            yield str(path.readlink()).partition(":")[0], os.stat(path)


def test_no_other_process_is_ended(pod: ConfinedSession, team: Team) -> None:
    text = f"""
    said = [
        tried(lambda: os.kill({os.getpid()}, 9)),
        tried(lambda: os.kill({os.getpid()}, 0)),
        tried(lambda: os.killpg({os.getpgid(0)}, 9)),
        tried(lambda: os.kill(-1, 9)),
        tried(lambda: os.kill(os.getppid(), 9)),
    ]
    """
    # Its parent is number 0 to it: its own group, of which the kernel spares the first process of a namespace.
    assert probed(pod, team, text) == [*["ESRCH"] * 4, "None"]


def test_no_file_of_others_is_written(pod: ConfinedSession, team: Team) -> None:
    kept, new = team.gate / "pod.yaml", team.gate / "new"
    kept.write_text("policy")
    text = f"""
    said = [
        tried(lambda: open({str(kept)!r}, "w")),
        tried(lambda: os.remove({str(kept)!r})),
        tried(lambda: os.chmod({str(kept)!r}, 0o777)),
        tried(lambda: open({str(new)!r}, "w")),
        tried(lambda: open("/proc/sys/kernel/pid_max", "w")),
        tried(lambda: open("/dev/shm/own", "w").write("its own")),
        tried(lambda: open("own", "w").write("its own")),
    ]
    """
    assert probed(pod, team, text) == [*["EROFS"] * 5, "7", "7"]
    assert kept.read_text() == "policy" and not new.exists() and not Path("/dev/shm/own").exists()


def test_what_is_written_is_limited(pod: ConfinedSession, team: Team) -> None:
    text = f"""
    def fill(name, pieces):
        with open(name, "wb", buffering=0) as file:
            return sum(file.write(bytes({MIB})) for _ in range(pieces)) // {MIB}
    said = [tried(lambda: fill("giant", 64)), tried(lambda: [fill(f"small-{{number}}", 1) for number in range(64)])]
    for name in os.listdir():
        if name.startswith(("giant", "small")):
            os.remove(name)
    """
    assert probed(pod, team, text) in (["EFBIG", "ENOSPC"], ["ENOSPC", "ENOSPC"])


def test_rights_are_not_taken_back(pod: ConfinedSession, team: Team) -> None:
    """Neither with what it has, nor as the root of a user namespace within its own."""
    text = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    remount = 0x20 | 0x1000  # MS_REMOUNT | MS_BIND, and not MS_RDONLY
    said = [libc.mount(None, b"/", None, remount, None), os.getuid() != 0, libc.setuid(0)]
    if os.fork() == 0:
        inner = libc.unshare(0x10000000 | 0x00020000)  # CLONE_NEWUSER | CLONE_NEWNS
        os._exit(libc.mount(None, b"/", None, remount, None) + 1 + 2 * (inner + 1))
    said.append(os.waitstatus_to_exitcode(os.wait()[1]) in (0, 2))
    """
    assert probed(pod, team, text) == [-1, True, -1, True]


def test_memory_is_limited(pod: ConfinedSession, team: Team, honest: str) -> None:
    text = """
    try:
        said = len(bytearray(2**36))
    except MemoryError:
        said = "MemoryError"
    """
    assert probed(pod, team, text) == "MemoryError"
    error = failed(pod, team, honest, "import torch; torch.ones(2**31)")
    assert error.kind == "RuntimeError" and error.met == "its limit on memory"


def test_processes_are_limited_and_none_stays(pod: ConfinedSession, team: Team, honest: str) -> None:
    text = """
    import os, signal
    for number in range(2000):  # no more, should nothing stop it
        if os.fork() == 0:
            signal.pause()
    """
    before = running()
    error = failed(pod, team, honest, text)
    assert error.kind == "BlockingIOError" and error.met is not None and "processes" in error.met
    assert len(running()) == len(before), "the next process and its launcher are all that there is"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; os._exit(3)", "the model's process has ended: it ended itself, with status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV ended it, as compiled code does that fails"),
    ],
)
def test_a_model_that_ends_its_process_ends_nothing_else(
    pod: ConfinedSession, team: Team, honest: str, text: str, said: str
) -> None:
    error = attacked(pod, team, honest, text)
    assert isinstance(error, ConfinementError) and said in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("os.write(channel, b'\\xff' * 64)", "sends 4294967295 bytes of header"),
        (
            "frame({'answer': {'weight': 10**6, 'metrics': {}, 'train_loss': None, 'seconds': 0.1}})",
            "trained on 1000000 rows, there are 19",
        ),
        (
            "frame({'answer': {'weight': 1, 'metrics': {}, 'train_loss': None, 'seconds': 0.1}}, b'\\x80\\x04K\\x01.')",
            "sends parameters that are not the job's",
        ),
    ],
    ids=["no message", "more rows than there are", "a pickle as parameters"],
)
def test_forged_answers_are_refused(pod: ConfinedSession, team: Team, honest: str, text: str, said: str) -> None:
    error = attacked(pod, team, honest, f"{FORGE}\n{text}\ntime.sleep(1000)")
    assert isinstance(error, ConfinementError) and said in str(error)


def test_an_error_that_is_forged_to_be_quoted_is_not(
    pod: ConfinedSession,
    team: Team,
    honest: str,
    plain_steps: None,
    tmp_path: Path,
) -> None:
    """A pod quotes errors that are made of settings alone; a model can say that its own is one."""
    told = {"kinds": ["ConfigurationError"], "text": f"row {SECRET}", "trace": "", "met": "memory", "transient": False}
    error = failed(pod, team, honest, f"{FORGE}\nframe({{'error': {told!r}}})\ntime.sleep(1000)")

    def work() -> None:
        raise error

    asked = Team(tmp_path / "asked")
    with pytest.raises(PodError) as caught:
        PodWorker(asked.pod("ann"), asked.exchange(), 1)._task("fit", "fit", work)()
    assert str(SECRET) in str(error), "its owner reads it"
    assert str(caught.value) == (
        "pod 'ann' failed to fit: ConfigurationError in the model or below it (it seems to have met its limit on memory); its"
        " text, which may hold values, is in the pod's own log"
    )


def test_a_fit_past_its_deadline_is_ended(plain_steps: None, tmp_path: Path) -> None:
    team = Team(tmp_path / "team", names=("ann",))
    federation = team.initialised(quorum=1, deadline_seconds=3.0)
    before = running()
    worker = PodWorker(team.pod("ann"), federation.exchange, 1, lambda *asked: ConfinedSession(*asked, limits=LIMITS))
    Rounds(federation).open()
    hang = team.tell("ann", 1, "hang")
    try:
        while worker.advance():
            pass
        reason = federation.exchange.failure(round_phase(1), "ann", 1)
        assert reason == "pod 'ann' failed to fit: it took longer than the deadline of 3 s"
        assert hang.exists() and running() == before
    finally:
        worker.close()


def running() -> set[int]:
    """The processes that this one has started."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


SCRIPT = """
import json, logging, sys
from pathlib import Path

import torch

from bitfount_model import codec
from bitfount_model.errors import ConfigurationError
from tasks.federated.confined.session import ConfinedSession
from tests.tasks.federated.confined.ready import LIMITS, OBEDIENT, made_ready, obedient_job, pod_of
from tests.tasks.federated.team import Team, with_policy

if __name__ == "__main__":
    logging.basicConfig(force=True)
    team, allow = Team(Path(sys.argv[1])), json.loads(sys.argv[2])
    try:
        session = ConfinedSession(pod_of(team, with_policy(allow_unconfined=allow)), obedient_job(team), OBEDIENT, limits=LIMITS)
    except ConfigurationError as error:
        sys.exit(str(error))
    made_ready(session)
    print(codec.digest(session.fit(2, session.parameters).delta), flush=True)
    if (team.gate / "wait").exists():
        sys.stdin.read()
    session.close()
"""


def command(team: Team, *, allow: bool, forbidden: bool) -> list[str]:
    """A pod in a process of its own, where the kernel allows no user namespaces if that is wanted."""
    own = [sys.executable, "-c", SCRIPT, str(team.folder), json.dumps(allow)]
    refused = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    return ["unshare", "-r", "sh", "-c", refused, "sh", *own] if forbidden else own


def test_a_model_ends_with_its_pod(team: Team, honest: str) -> None:
    wait = team.gate / "wait"
    wait.touch()
    pod = subprocess.Popen(
        command(team, allow=False, forbidden=False), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert pod.stdout is not None and pod.stdin is not None
    assert pod.stdout.readline().strip() == honest
    family = psutil.Process(pod.pid).children(recursive=True)
    assert len(family) == 2, "the model's process and its launcher"

    pod.kill()

    pod.wait(WAIT_SECONDS)
    _, left = psutil.wait_procs(family, timeout=WAIT_SECONDS)
    assert not left
    pod.stdin.close()
    pod.stdout.close()
    wait.unlink()


def test_where_the_kernel_does_not_confine_the_pod_refuses_unless_its_owner_allows(team: Team, honest: str) -> None:
    refused = subprocess.run(
        command(team, allow=False, forbidden=True), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert refused.returncode == 1 and refused.stdout == ""
    assert "pod 'ann' refuses the job 'job-1': its machine does not let a model be shut off" in refused.stderr
    assert "allow_unconfined: true" in refused.stderr

    allowed = subprocess.run(
        command(team, allow=True, forbidden=True), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert allowed.stdout.strip() == honest, allowed.stderr
    assert "pod ann, job job-1: the model is NOT shut off" in allowed.stderr
