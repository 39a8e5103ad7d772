"""Approved models that turn on their pod: each is a named failure, nothing is reached, and the pod goes on with the next round."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

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
FIND_CHANNEL = """
import os, socket, stat, struct, json
channel = next(fd for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
os.set_blocking(channel, True)
def frame(header, body=b""):
    text = json.dumps(header).encode()
    os.write(channel, struct.pack("!IQ", len(text), len(body)) + text + body)
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return Team(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def pod(team: Team) -> Iterator[ConfinedSession]:
    """A pod whose own environment holds a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)
        session = ConfinedSession(pod_of(team), obedient_job(team), OBEDIENT, LIMITS)
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


def test_no_network_is_reached_not_even_the_machines_own(pod: ConfinedSession, team: Team, honest: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        address, name = server.getsockname(), f"\0{SENTINEL}-{os.getpid()}"
        local.bind(name)
        local.listen()
        server.settimeout(0)
        socket.create_connection(address).close()
        server.accept()[0].close()  # whoever is not confined reaches it

        error = failed(pod, team, honest, f"import socket; socket.create_connection({address!r}, timeout=10)")
        assert error.kind == "OSError" and error.met is not None and "a network" in error.met
        error = failed(pod, team, honest, "import socket; socket.getaddrinfo('example.org', 80)")
        assert error.met is not None and "a network" in error.met
        text = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})"
        assert "ConnectionRefusedError" in str(failed(pod, team, honest, text))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_secret_of_the_pod_is_read(pod: ConfinedSession, team: Team, honest: str) -> None:
    text = f"""
    import os
    from pathlib import Path
    found = ["own"] if {SENTINEL!r} in str(dict(os.environ)) else []
    seen = sorted(path.name for path in Path("/proc").glob("[0-9]*"))
    for path in [*Path("/proc").glob("[0-9]*/environ"), Path("/proc/{os.getpid()}/environ")]:
        try:
            found += [str(path)] if {SENTINEL!r}.encode() in path.read_bytes() else []
        except OSError as error:
            pass
    raise RuntimeError(f"found {{found}}, sees {{seen}}")
    """
    assert SENTINEL.encode() in Path(f"/proc/{os.getpid()}/environ").read_bytes() or os.environ["AWS_SECRET_ACCESS_KEY"]
    assert "found [], sees ['1']" in str(failed(pod, team, honest, text))


def test_nothing_is_open_but_what_it_needs(pod: ConfinedSession, team: Team, honest: str) -> None:
    text = """
    import os
    kinds = []
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{number}").partition(":")[0])
        except FileNotFoundError:
            pass  # that of the folder itself
    raise RuntimeError(f"open: {sorted(kinds)}, here: {os.listdir()}, at home: {os.listdir(os.environ['HOME'])}")
    """
    said = str(failed(pod, team, honest, text))
    assert "open: ['/dev/null', 'pipe', 'pipe', 'socket'], here: [], at home: []" in said


@pytest.mark.parametrize("call", ["os.kill({parent}, 9)", "os.kill({parent}, 0)", "os.killpg({group}, 9)"])
def test_no_other_process_is_ended(pod: ConfinedSession, team: Team, honest: str, call: str) -> None:
    text = "import os; " + call.format(parent=os.getpid(), group=os.getpgid(0))
    assert failed(pod, team, honest, text).kind == "ProcessLookupError"


def test_a_model_that_ends_all_it_sees_ends_itself(pod: ConfinedSession, team: Team, honest: str) -> None:
    error = attacked(pod, team, honest, "import os; os.kill(os.getppid(), 9)")
    assert isinstance(error, ConfinementError) and "SIGKILL ended it" in str(error)


@pytest.mark.parametrize("copies", ["wait", "go on"])
def test_processes_are_limited_and_none_stays(pod: ConfinedSession, team: Team, honest: str, copies: str) -> None:
    text = f"""
    import os, signal
    for number in range(2000):  # no more, should nothing stop it
        if os.fork() == 0 and {copies == "wait"}:
            signal.pause()
    raise RuntimeError("2000 processes")
    """
    error = failed(pod, team, honest, text)
    assert error.kind == "BlockingIOError" and error.met is not None and "processes" in error.met
    assert len(psutil.Process().children(recursive=True)) == 2, "the next one and its launcher"


@pytest.mark.parametrize("text", ["bytearray(2**36)", "import torch; torch.ones(2**31)"], ids=["python", "torch"])
def test_memory_is_limited(pod: ConfinedSession, team: Team, honest: str, text: str) -> None:
    error = failed(pod, team, honest, text)
    assert error.kind in ("MemoryError", "RuntimeError") and error.met == "its limit on memory"


@pytest.mark.parametrize(("files", "mebibytes"), [(1, 64), (64, 1)])
def test_what_is_written_is_limited(pod: ConfinedSession, team: Team, honest: str, files: int, mebibytes: int) -> None:
    text = f"""
    for number in range({files}):
        with open(f"giant-{{number}}", "wb") as file:
            for _ in range({mebibytes}):
                file.write(bytes({MIB}))
                file.flush()
    """
    error = failed(pod, team, honest, text)
    assert error.kind == "OSError" and error.met == "its limit on the size of files"


def test_no_file_of_others_is_written(pod: ConfinedSession, team: Team, honest: str) -> None:
    kept = team.gate / "pod.yaml"
    kept.write_text("policy")
    for text in (
        f"open({str(kept)!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.chmod({str(kept)!r}, 0o777)",
        f"open({str(team.gate / 'new')!r}, 'w')",
        "open('/proc/sys/kernel/pid_max', 'w')",
    ):
        error = failed(pod, team, honest, text)
        assert error.met is not None and "may write only those in its own" in error.met
    assert kept.read_text() == "policy" and not (team.gate / "new").exists()


def test_rights_are_not_taken_back(pod: ConfinedSession, team: Team, honest: str) -> None:
    text = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    remount = libc.mount(None, b"/", None, 0x20 | 0x1000, None)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
    nested = libc.unshare(0x10000000 | 0x00020000)  # a user namespace in which it is root
    again = libc.mount(None, b"/", None, 0x20 | 0x1000, None)
    raise RuntimeError(f"remount {remount}, again {again}, user {os.getuid() and 'nobody special'}")
    """
    assert "remount -1, again -1, user nobody special" in str(failed(pod, team, honest, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; os._exit(3)", "it ended itself, with status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV ended it, as compiled code does that fails"),
        ("import sys; model.gate = None; sys.exit(5)", "SystemExit"),
    ],
)
def test_a_model_that_ends_its_process_ends_nothing_else(
    pod: ConfinedSession, team: Team, honest: str, text: str, said: str
) -> None:
    assert said in str(attacked(pod, team, honest, text))


FORGERIES = {
    "no message": ("os.write(channel, b'\\xff' * 64)", "sends 4294967295 bytes of header"),
    "a body without end": ("os.write(channel, struct.pack('!IQ', 2, 2**60) + b'{}')", "at most"),
    "no JSON": ("os.write(channel, struct.pack('!IQ', 5, 0) + b'hello')", "no JSON"),
    "deep JSON": ("os.write(channel, struct.pack('!IQ', 10**5, 0) + b'[' * 10**5)", "no JSON"),
    "no object": ("frame([1, 2])", "no JSON object"),
    "an unknown message": ("frame({'run': 'this'})", "something else than an answer"),
    "batches that are none": (
        "frame({'batch': {'epoch': 'row 1'}})",
        "answers what it may not: batch, batches, epoch, epochs",
    ),
    "more rows than there are": (
        "frame({'answer': {'weight': 10**6, 'metrics': {}, 'train_loss': None, 'seconds': 0.1}})",
        "trained on 1000000 rows, there are 19",
    ),
    "a pickle as parameters": (
        "frame({'answer': {'weight': 1, 'metrics': {}, 'train_loss': None, 'seconds': 0.1}}, b'\\x80\\x04K\\x01.')",
        "sends parameters that are not the job's",
    ),
    "metrics that are none": (
        "frame({'answer': {'weight': 1, 'metrics': {'AUC': 'row 1'}, 'train_loss': None, 'seconds': 0.1}})",
        "answers metrics that are none",
    ),
}


@pytest.mark.parametrize(("text", "said"), FORGERIES.values(), ids=FORGERIES)
def test_forged_answers_are_refused(pod: ConfinedSession, team: Team, honest: str, text: str, said: str) -> None:
    error = attacked(pod, team, honest, f"{FIND_CHANNEL}\n{text}\nimport time\ntime.sleep(1000)")
    assert isinstance(error, ConfinementError) and said in str(error)


def test_an_error_that_is_forged_to_be_quoted_is_not(
    pod: ConfinedSession,
    team: Team,
    honest: str,
    plain_steps: None,
    tmp_path: Path,
) -> None:
    """A pod quotes errors that are made of settings alone; a model can say that its own is one."""
    told = {"kinds": ["ConfigurationError"], "text": f"row {SECRET}", "trace": "", "met": None, "transient": False}
    error = failed(pod, team, honest, f"{FIND_CHANNEL}\nframe({{'error': {told!r}}})\nimport time\ntime.sleep(1000)")
    own = {"kinds": [f"row {SECRET}", "Exception"]}
    other = failed(
        pod, team, honest, f"{FIND_CHANNEL}\nframe({{'error': {told | own!r}}})\nimport time\ntime.sleep(1000)"
    )
    for raised, kind in ((error, "ConfigurationError"), (other, "Exception")):

        def work(raised: Exception = raised) -> None:
            raise raised

        asked = Team(tmp_path / kind)
        with pytest.raises(PodError) as caught:
            PodWorker(asked.pod("ann"), asked.exchange(), 1)._task("fit", "fit", work)()
        assert str(SECRET) in str(raised), "its owner reads it"
        assert str(caught.value) == (
            f"pod 'ann' failed to fit: {kind} in the model or below it; its text, which may hold values, is in the pod's own log"
        )


def test_a_fit_past_its_deadline_is_ended(plain_steps: None, tmp_path: Path) -> None:
    team = Team(tmp_path / "team", names=("ann",))
    federation = team.initialised(quorum=1, deadline_seconds=3.0)
    before = running()
    worker = PodWorker(team.pod("ann"), federation.exchange, 1, lambda *asked: ConfinedSession(*asked, LIMITS))
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
    logging.basicConfig()
    team, allow = Team(Path(sys.argv[1])), json.loads(sys.argv[2])
    try:
        session = ConfinedSession(pod_of(team, with_policy(allow_unconfined=allow)), obedient_job(team), OBEDIENT, LIMITS)
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
