"""A pod's budget: counted before anything leaves, kept over restarts and kills, and never exceeded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitfount_model.errors import IntegrityError, PrivacyBudgetError, StorageError
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings, epsilon_spent
from bitfount_model.federation.privacy_ledger import PrivacyLedger

ASKED = PrivacySettings(clip=1.0, noise_multiplier=8.0, delta=1e-6)
WIDE = PrivacyBudget(epsilon=1e6, delta=1e-5)
SPENDER = """
import sys
from pathlib import Path
from bitfount_model.federation.privacy import PrivacyBudget, PrivacySettings
from bitfount_model.federation.privacy_ledger import PrivacyLedger

ledger = PrivacyLedger(Path(sys.argv[1]))
for number in range(1, 100_000):
    ledger.spend("job", number, PrivacySettings(1.0, 8.0, 1e-6), PrivacyBudget(1e6, 1e-5))
    print(number, flush=True)
"""
"""Counts releases without end, and says so after each."""


def budget_for(releases: int) -> PrivacyBudget:
    """What is enough for so many releases and for no more."""
    enough, more = (epsilon_spent([ASKED.noise_multiplier] * count, 1e-5) for count in (releases, releases + 1))
    return PrivacyBudget(epsilon=(enough + more) / 2, delta=1e-5)


def test_a_release_says_what_its_job_has_told_so_far_at_the_jobs_delta(tmp_path: Path) -> None:
    ledger = PrivacyLedger(tmp_path / "state")
    assert ledger.releases() == []
    for count in (1, 2, 3):
        spent = ledger.spend("a", count, ASKED, WIDE)
        assert spent.epsilon == epsilon_spent([8.0] * count, 1e-6) and spent.delta == 1e-6
    assert ledger.spend("b", 1, ASKED, WIDE).epsilon == epsilon_spent([8.0], 1e-6)
    assert [(one.job, one.round, one.clip, one.noise_multiplier) for one in ledger.releases()] == [
        ("a", 1, 1.0, 8.0),
        ("a", 2, 1.0, 8.0),
        ("a", 3, 1.0, 8.0),
        ("b", 1, 1.0, 8.0),
    ]


def test_the_budget_is_of_all_jobs_and_what_is_beyond_it_is_refused_and_not_counted(tmp_path: Path) -> None:
    ledger, budget = PrivacyLedger(tmp_path), budget_for(3)
    for job in "abc":
        ledger.require(ASKED, budget)
        ledger.spend(job, 1, ASKED, budget)
    again = PrivacyLedger(tmp_path)
    with pytest.raises(PrivacyBudgetError, match=r"budget is epsilon [\d.]+ at delta 1e-05: [\d.]+ is spent"):
        again.require(ASKED, budget)
    with pytest.raises(PrivacyBudgetError):
        again.spend("d", 1, ASKED, budget)
    assert [release.job for release in again.releases()] == ["a", "b", "c"]


def test_a_round_that_is_answered_twice_counts_twice(tmp_path: Path) -> None:
    ledger = PrivacyLedger(tmp_path)
    ledger.spend("a", 1, ASKED, WIDE)
    assert ledger.spend("a", 1, ASKED, WIDE).epsilon == epsilon_spent([8.0, 8.0], 1e-6)


def test_jobs_at_the_same_time_do_not_share_what_is_left(tmp_path: Path) -> None:
    budget = budget_for(5)

    def one(number: int) -> bool:
        try:
            PrivacyLedger(tmp_path).spend(f"job-{number}", 1, ASKED, budget)
        except PrivacyBudgetError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(12))) == 5
    assert len(PrivacyLedger(tmp_path).releases()) == 5


def test_a_killed_process_has_forgotten_nothing_that_it_may_have_sent(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(4)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines() if line]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    counted = [release.round for release in PrivacyLedger(tmp_path).releases()]
    assert counted[: len(told)] == told and len(counted) <= len(told) + 1
    with pytest.raises(PrivacyBudgetError):
        PrivacyLedger(tmp_path).require(ASKED, budget_for(len(counted)))
    assert PrivacyLedger(tmp_path).spend("job", 1, ASKED, WIDE).epsilon == epsilon_spent(
        [8.0] * (len(counted) + 1), 1e-6
    )


def test_a_line_that_was_never_finished_was_never_sent_and_is_replaced(tmp_path: Path) -> None:
    ledger = PrivacyLedger(tmp_path)
    ledger.spend("a", 1, ASKED, WIDE)
    with (tmp_path / "privacy.jsonl").open("ab") as stream:
        stream.write(b'{"job": "a", "rou')
    assert len(ledger.releases()) == 1
    ledger.spend("a", 2, ASKED, WIDE)
    assert [release.round for release in ledger.releases()] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"job": "a"}',
        b'{"job": "a", "round": 1, "clip": 1, "noise_multiplier": Infinity, "at": ""}',
        b'{"job": "a", "round": 1, "clip": 1, "noise_multiplier": -1, "at": ""}',
        b'{"job": "a", "round": 1, "clip": 1, "noise_multiplier": "8", "at": ""}',
    ],
)
def test_a_damaged_ledger_tells_nothing_more(tmp_path: Path, line: bytes) -> None:
    ledger = PrivacyLedger(tmp_path)
    ledger.spend("a", 1, ASKED, WIDE)
    with (tmp_path / "privacy.jsonl").open("ab") as stream:
        stream.write(line + b"\n")
    for call in (lambda: ledger.require(ASKED, WIDE), lambda: ledger.spend("a", 2, ASKED, WIDE)):
        with pytest.raises(IntegrityError, match="line 2 of .*privacy.jsonl is no release"):
            call()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = PrivacyLedger(tmp_path / "file" / "state")
    for call in (lambda: ledger.spend("a", 1, ASKED, WIDE), lambda: ledger.keyed_digest("rows")):
        with pytest.raises(StorageError, match="file/state, where what the pod has told is counted"):
            call()


def test_a_keyed_digest_is_the_same_for_the_same_pod_and_text_alone(tmp_path: Path) -> None:
    found = PrivacyLedger(tmp_path / "a").keyed_digest("rows")
    assert found == PrivacyLedger(tmp_path / "a").keyed_digest("rows") and len(found) == 64
    assert found != PrivacyLedger(tmp_path / "a").keyed_digest("other rows")
    assert found != PrivacyLedger(tmp_path / "b").keyed_digest("rows")
    (tmp_path / "a" / "privacy.key").write_bytes(b"short")
    with pytest.raises(IntegrityError, match="has 5 bytes, wanted 32"):
        PrivacyLedger(tmp_path / "a").keyed_digest("rows")
