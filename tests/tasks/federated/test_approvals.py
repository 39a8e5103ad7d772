"""What an owner approves: exactly these bytes, one class of them, found by reading alone; kept in a folder of the owner's."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bitfount_model.errors import ConfigurationError, IntegrityError, ModelFileError, StorageError
from bitfount_model.federation.book import APPROVED, REVOKED, Approval
from tasks.federated.approvals import Approvals, approval_for, classes_in, lines_of
from tasks.federated.pod_state import PodState
from tests.tasks.federated.team import SOURCE


@pytest.fixture
def state(tmp_path: Path) -> PodState:
    """A pod's private folder, not made yet."""
    return PodState(tmp_path / "pods" / "ann", "ann")


def approved(state: PodState, source: bytes = SOURCE) -> Approval:
    approval = approval_for(source, "model.py", None)
    state.approve(source, approval)
    return approval


def test_an_approval_says_what_who_and_when_and_keeps_the_bytes(state: PodState) -> None:
    approval = approved(state)
    sha256 = hashlib.sha256(SOURCE).hexdigest()
    assert (approval.sha256, approval.class_name, approval.size) == (sha256, "Net", len(SOURCE))
    assert "@" in approval.who and approval.when.endswith("+00:00")
    assert state.approval_of(sha256) == approval
    assert (state.folder / "approvals" / f"{sha256}.py").read_bytes() == SOURCE
    kept = json.loads((state.folder / "approvals" / f"{sha256}.json").read_bytes())
    assert set(kept) == {"sha256", "class", "file_name", "who", "when", "bytes"}
    (line,) = state.audit.lines()
    assert (line.decision.what, line.decision.model) == (APPROVED, sha256)


def test_what_was_revoked_is_not_approved_any_more_and_the_log_says_so(state: PodState) -> None:
    sha256 = approved(state).sha256
    state.revoke(sha256, "ann@host")
    assert state.approval_of(sha256) is None and state.approvals.all() == []
    assert list((state.folder / "approvals").iterdir()) == []
    assert [line.decision.what for line in state.audit.lines()] == [APPROVED, REVOKED]


def test_the_folder_is_for_its_owner_alone_also_if_it_was_open_before(state: PodState) -> None:
    state.prepare()
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    state.folder.chmod(0o777)
    state.prepare()
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "ann"):
        with pytest.raises(ConfigurationError, match="Name another one under `state`"):
            PodState(folder, "ann").prepare()


def test_a_log_that_cannot_be_written_lets_nothing_be_approved(state: PodState) -> None:
    state.prepare()
    (state.folder / "audit.jsonl").mkdir()
    with pytest.raises(StorageError):
        approved(state)
    assert state.approvals.all() == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"sha256": 3}'])
def test_a_damaged_approval_approves_nothing(state: PodState, damage: bytes) -> None:
    sha256 = approved(state).sha256
    (state.folder / "approvals" / f"{sha256}.json").write_bytes(damage)
    with pytest.raises(IntegrityError, match="approve the model again, or revoke it") as caught:
        state.approval_of(sha256)
    assert str(state.folder) not in str(caught.value)
    approved(state)
    assert state.approval_of(sha256) is not None


def test_an_approval_under_another_name_approves_nothing(state: PodState) -> None:
    sha256, other = approved(state).sha256, "0" * 64
    (state.folder / "approvals" / f"{sha256}.json").rename(state.folder / "approvals" / f"{other}.json")
    with pytest.raises(IntegrityError):
        state.approval_of(other)
    assert state.approval_of(sha256) is None


@pytest.mark.parametrize("name", ["", "../ann", "A" * 64, "a" * 63, "a" * 64 + "\n", "/etc/passwd"])
def test_what_is_no_sha256_is_approved_by_no_file(tmp_path: Path, name: str) -> None:
    assert Approvals(tmp_path).of(name) is None


def test_the_beginning_of_a_sha256_names_an_approval_where_only_one_begins_so(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    whole = approval_for(SOURCE, "model.py", None)
    for sha256 in ("ab" + "0" * 62, "ab" + "1" * 62, "cd" + "0" * 62):
        approvals.put(SOURCE, replace(whole, sha256=sha256))
    assert approvals.named("c") == "cd" + "0" * 62
    assert approvals.named("AB1") == "ab" + "1" * 62
    with pytest.raises(ConfigurationError, match="'ab' is the beginning of 2 approvals: ab0"):
        approvals.named("ab")
    for none in ("e", "*", "ab" + "0" * 63):
        with pytest.raises(ConfigurationError, match="no approval begins with"):
            approvals.named(none)
    with pytest.raises(ConfigurationError):
        approvals.named("")


HELPERS = b"""
class Layer(nn.Module):
    class Inner(PyTorchBitfountModel): ...

if True:
    class Base(bitfount_model.PyTorchBitfountModel): ...

try:
    class Net(Base): ...
except ImportError:
    class Other(Base): ...

def make():
    class Hidden(Base): ...
"""


def test_classes_are_found_by_reading_and_the_model_classes_among_them() -> None:
    assert [(each.name, each.line, each.is_model) for each in classes_in(HELPERS)] == [
        ("Layer", 2, False),
        ("Base", 6, True),
        ("Net", 9, True),
        ("Other", 11, True),
    ]
    assert approval_for(HELPERS, "model.py", "Net").class_name == "Net"
    with pytest.raises(ConfigurationError, match="defines 3 model classes, Base, Net, Other: say which"):
        approval_for(HELPERS, "model.py", None)
    for missing in ("Hidden", "Inner", "net"):
        with pytest.raises(ConfigurationError, match=f"no class {missing}; its classes are: Layer, Base, Net, Other"):
            approval_for(HELPERS, "model.py", missing)
    with pytest.raises(ConfigurationError, match="shows no model class"):
        approval_for(b"class Net: ...", "model.py", None)


@pytest.mark.parametrize("source", [b"class Net(:", b"\xff", b"a = '\x00'", b"(" * 1000])
def test_what_is_not_python_cannot_be_approved(source: bytes) -> None:
    with pytest.raises(ModelFileError, match="not Python"):
        approval_for(source, "model.py", None)


def test_an_owner_sees_what_runs_and_not_what_a_terminal_makes_of_it() -> None:
    hidden = (
        'open("/rows")  # \x1b[2K\x1b[1A\n'  # would erase the line on a terminal
        "if user != 'none\u202e \u2066# is admin\u2069':\n"  # would show in another order
        "\tx = 1\u200b\r"  # a line of its own to Python, and a letter that has no width
        "größe = 1\x0c\n"
    )
    assert list(lines_of(hidden.encode())) == [
        'open("/rows")  # \\x1b[2K\\x1b[1A',
        "if user != 'none\\u202e \\u2066# is admin\\u2069':",
        "    x = 1\\u200b",
        "größe = 1\\x0c",
    ]
    assert list(lines_of(b"# coding: latin-1\ngr\xf6\xdfe = 1")) == ["# coding: latin-1", "größe = 1"]
