"""What owners and modellers do by command: approve a model, list, revoke, read the log; make a key, sign a job."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.settings import read_pod
from tests.flows.conftest import Ended, command
from tests.flows.federated.conftest import Train
from tests.flows.federated.site import MODEL, Site, wait_for

Call = Callable[[Sequence[str | Path]], Ended]
SHA256 = hashlib.sha256(MODEL.encode()).hexdigest()


@pytest.fixture
def pod(site: Site) -> Path:
    """The file of a pod that runs approved models alone."""
    return site.write_pod("ann", policy={"models": "approved"})


def log_of(call: Call, pod: Path) -> dict[str, Any]:
    return call(["pod", "audit", pod, "--json"]).summary


def test_a_model_is_shown_approved_listed_and_revoked(site: Site, pod: Path, command_line: Call) -> None:
    assert "no model is approved for pod ann" in command_line(["pod", "approvals", pod]).out
    ended = command_line(["pod", "approve", pod, site.folder / "model.py", "--yes"])
    assert ended.code == 0, ended
    shown = [line for line in ended.out.splitlines() if line[:3].strip().isdigit()]
    assert [line.split("  ", 1)[1] for line in shown] == MODEL.splitlines()
    line = MODEL.splitlines().index("class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):") + 1
    assert f"classes:  Net (line {line})" in ended.out and f"sha256:   {SHA256}" in ended.out
    state = site.folder / ".bitfount-pods" / "ann"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    (listed,) = command_line(["pod", "approvals", pod, "--json"]).summary["approvals"]
    assert (listed["sha256"], listed["class_name"], listed["size"]) == (SHA256, "Net", len(MODEL.encode()))
    assert "Net" in command_line(["pod", "approvals", pod]).out
    assert command_line(["pod", "revoke", pod, "zz"]).code == 2
    assert f"revoked for pod ann: sha256 {SHA256}" in command_line(["pod", "revoke", pod, SHA256[:6]]).out
    assert command_line(["pod", "approvals", pod, "--json"]).summary["approvals"] == []
    assert [line["what"] for line in log_of(command_line, pod)["lines"]] == ["approved", "revoked"]


@pytest.mark.parametrize(
    ("source", "arguments", "code", "said"),
    [
        (MODEL, [], 2, "no terminal to ask on"),
        (MODEL, ["--yes", "--class", "Nett"], 2, "defines no class Nett; its classes are: Net"),
        ("x = 1\n", ["--yes"], 2, "shows no model class"),
        ("class (", ["--yes"], 4, "is not Python"),
        (None, ["--yes"], 4, "cannot read the model file"),
    ],
)
def test_what_cannot_be_approved_says_why_and_nothing_is(
    site: Site, pod: Path, command_line: Call, source: str | None, arguments: list[str], code: int, said: str
) -> None:
    file = site.folder / "other.py"
    if source is not None:
        file.write_text(source)
    ended = command_line(["pod", "approve", pod, file, *arguments])
    assert (ended.code, said in ended.err) == (code, True), ended
    assert command_line(["pod", "approvals", pod, "--json"]).summary["approvals"] == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 130), ("", 130)])
def test_on_a_terminal_the_owner_is_asked(site: Site, pod: Path, command_line: Call, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    approving = subprocess.Popen(
        command("pod", "approve", pod, site.folder / "model.py"), stdin=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, f"{answer}\n".encode())
    out, _ = approving.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert approving.returncode == code, out
    assert "May Net run beside the rows of pod ann?" in out
    assert len(command_line(["pod", "approvals", pod, "--json"]).summary["approvals"]) == (code == 0)


def test_the_log_is_checked_and_names_its_first_bad_line(site: Site, pod: Path, command_line: Call) -> None:
    assert "0 lines" in command_line(["pod", "audit", pod]).out
    for _ in range(2):
        command_line(["pod", "approve", pod, site.folder / "model.py", "--yes"])
    command_line(["pod", "revoke", pod, SHA256])
    log = log_of(command_line, pod)
    path = read_pod(pod).private().audit.path
    assert log["head"] == hashlib.sha256(path.read_bytes().splitlines()[-1]).hexdigest()
    shown = command_line(["pod", "audit", pod])
    assert shown.code == 0 and f"head {log['head']}" in shown.out and "revoked" in shown.out
    first = log["lines"][0]["sha256"]
    assert command_line(["pod", "audit", pod, "--head", first]).code == 0
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    assert command_line(["pod", "audit", pod]).code == 0, "a chain cannot know that its end is missing"
    cut = command_line(["pod", "audit", pod, "--head", log["head"]])
    assert cut.code == 5 and "changed or cut off" in cut.err
    path.write_bytes(whole.replace(b"class Net", b"class Nat", 1))
    bad = command_line(["pod", "audit", pod, "--json"])
    assert bad.code == 5 and "line 1 of the audit log was changed" in bad.err
    path.write_bytes(whole + b'{"job": nu')
    torn = command_line(["pod", "audit", pod])
    assert torn.code == 0 and "the last 10 bytes are of a line whose writer was ended" in torn.out


def test_a_key_is_made_for_its_owner_alone_and_never_replaced(tmp_path: Path, command_line: Call) -> None:
    file = tmp_path / "modeller.pem"
    made = command_line(["keys", "make", file])
    assert made.code == 0 and made.out.startswith("ssh-ed25519 ")
    assert Path(f"{file}.pub").read_text() == made.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PRIVATE" in file.read_text() and "PRIVATE" not in made.out
    before = file.read_bytes()
    again = command_line(["keys", "make", file])
    assert again.code == 2 and "is there already" in again.err
    file.unlink()
    assert command_line(["keys", "make", file]).code == 2, "half a pair is no reason to make another"
    assert not file.exists() and before
    seen = subprocess.run(["ssh-keygen", "-l", "-f", f"{file}.pub"], capture_output=True, text=True, check=True)
    assert "(ED25519)" in seen.stdout


def test_embedded_pods_run_what_is_approved_and_refuse_what_was_revoked(
    site: Site, pod: Path, command_line: Call, train: Train
) -> None:
    job = site.write_job(deployed=False, compare=True, federation={"quorum": 2, "require_all_pods": True})
    refused = train(job)
    assert refused.code == 7 and "is not approved: the pod's owner reads it and runs" in refused.err, refused
    (place,) = set(re.findall(r"`bitfount-flows pod approve POD.yaml (\S+)`", refused.err))
    assert command_line(["pod", "approve", pod, place, "--yes"]).code == 0
    trained = train(job)
    assert trained.code == 0 and trained.summary["rounds"] == 3, trained
    assert "ann" in trained.summary["comparison"]["alone"]
    command_line(["pod", "revoke", pod, SHA256])
    assert train(job, job_id="job-2").code == 7
    found = [(line["what"], line["job"], line["round_number"]) for line in log_of(command_line, pod)["lines"]]
    assert found == [
        ("approved", None, None),
        ("joined", "job-1", None),
        ("summarised", "job-1", None),
        *(("trained", "job-1", number) for number in (1, 2, 3)),
        ("evaluated", "job-1", None),
        ("revoked", None, None),
        ("refused", "job-2", None),
    ]
    assert not (site.folder / ".bitfount-pods" / "bob").exists(), "an embedded pod makes no folder"


def test_a_signed_job_is_taken_and_the_same_job_unsigned_is_not(
    site: Site, tmp_path: Path, command_line: Call, train: Train
) -> None:
    key = site.folder / "modeller.pem"
    public = command_line(["keys", "make", key]).out.strip()
    site.write_pod("ann", policy={"modellers": [public]})
    every = {"quorum": 2, "require_all_pods": True}
    unsigned = train(site.write_job(deployed=False, federation=every), job_id="job-2")
    assert unsigned.code == 7 and "it is not signed" in unsigned.err, unsigned
    signed = train(site.write_job(deployed=False, federation=every, sign_with="modeller.pem"))
    assert signed.code == 0, signed
    exchange = Path(signed.summary["weights"]).parents[1] / "exchange"
    assert json.loads((exchange / "job.sig.json").read_text())["public_key"] == public
    gone = train(site.write_job(deployed=False, sign_with="gone.pem"), job_id="job-3")
    assert gone.code == 2 and "sign_with: cannot read the key" in gone.err


def test_a_served_pod_needs_no_restart_to_heed_what_its_owner_approves(
    tmp_path: Path, prefect_url: str, command_line: Call, train: Train
) -> None:
    site = Site(tmp_path / "site", names=("dora",))
    pod = site.write_pod("dora", policy={"models": "approved"})
    job = site.write_job(deployed=True, federation={"quorum": 1, "deadline_seconds": 150})
    site.serve("dora")
    try:
        refused = train(job)
        assert refused.code == 7 and "is not approved" in refused.err, refused
        source = site.store / "job-1" / "model.py"
        assert f"pod approve POD.yaml {source}`" in refused.err.replace("\n", "")
        assert command_line(["pod", "approve", pod, source, "--yes"]).code == 0
        trained = train(job)
        assert trained.code == 0 and trained.summary["rounds"] == 3, trained
        wait_for(lambda: "job job-1: ended: finished" in site.log("dora").read_text(), "the pod to end its run")
        command_line(["pod", "revoke", pod, SHA256])
        assert train(job, job_id="job-2").code == 7
        site.stop("dora")
    finally:
        site.kill_all()
    log = log_of(command_line, pod)
    assert [line["what"] for line in log["lines"]] == [
        "refused", "approved", "joined", "summarised", "trained", "trained", "trained", "evaluated", "revoked", "refused",
    ]  # fmt: skip
