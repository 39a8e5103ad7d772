"""Secure sums over pods that are processes of their own: the plain job's result, also where one is killed in mid-round."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitfount_model import codec
from bitfount_model.types import Parameters
from flows.signing_keys import make_key
from tests.flows.conftest import command
from tests.flows.federated.conftest import Train
from tests.flows.federated.site import Site, wait_for

PODS = ("gil", "hal", "ida", "jon", "kay")
LAST = PODS[-1]
pytestmark = pytest.mark.timeout(900)  # ten processes start on however few cores
SECURE = {"quorum": 3, "deadline_seconds": 150, "secure_aggregation": True}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, prefect_url: str) -> Iterator[Site]:
    """Five served pods that know each other's keys, and train in secure sums alone."""
    site = Site(tmp_path_factory.mktemp("known"), names=PODS)
    public = {pod: make_key(site.folder / f"{pod}.pem") for pod in PODS}
    for pod in PODS:
        peers = {other: key for other, key in public.items() if other != pod}
        site.write_pod(pod, policy={"secure_aggregation": True}, identity=f"{pod}.pem", peers=peers)
    site.serve(*PODS)
    yield site
    site.stop(*PODS)


def weights_of(home: Path, job_id: str) -> Parameters:
    (path,) = (home / "jobs" / job_id / "fit").glob("weights.safetensors")
    return codec.decode(path.read_bytes()).params


def furthest(found: Parameters, wanted: Parameters) -> float:
    return max(float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted)


def plain(site: Site, train: Train, home: Path, pods: tuple[str, ...], **sections: Any) -> Parameters:
    """What the same job gives with updates that are seen one by one, its pods in one process and with open policies."""
    folder = home.parent / "plain"
    other = Site(folder, names=PODS)
    for pod in PODS:
        (folder / f"{pod}.csv").write_bytes((site.folder / f"{pod}.csv").read_bytes())
    if (site.gate / f"{LAST}.2.raise").exists():
        other.raises(LAST, 2)
    job = other.write_job(deployed=False, pods=[f"{pod}.yaml" for pod in pods], **sections)
    assert train(job, job_id="plain", home=home).code == 0
    return weights_of(home, "plain")


def test_five_rounds_of_three_pods_are_within_two_to_the_minus_25_of_the_plain_job(
    known: Site, train: Train, tmp_path: Path
) -> None:
    pods = PODS[:3]
    wanted = plain(known, train, tmp_path / "plain-home", pods, rounds=5)
    job = known.write_job(deployed=True, rounds=5, pods=list(pods), federation=SECURE)
    ended = train(job, job_id="secure", home=tmp_path / "own")
    assert ended.code == 0, ended
    assert furthest(weights_of(tmp_path / "own", "secure"), wanted) <= 2**-25
    assert not list((known.store / "secure").rglob("updates"))


def test_a_pod_that_is_killed_in_mid_round_leaves_the_exact_sum_of_the_others(
    known: Site, train: Train, tmp_path: Path
) -> None:
    known.raises(LAST, 2)
    wanted = plain(known, train, tmp_path / "plain-home", PODS)
    known.clear()
    here = known.hold(LAST, 2)
    job = known.write_job(deployed=True, federation=SECURE)
    modeller = subprocess.Popen(
        command("train", job, "--home", tmp_path / "own", "--job-id", "killed-one", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here.exists, f"{LAST} to train in round 2")
    known.worker(LAST, "killed-one").kill()
    known.let_go(LAST, 2)
    _, err = modeller.communicate(timeout=400)
    assert modeller.returncode == 0, err
    record = json.loads((tmp_path / "own" / "jobs" / "killed-one" / "rounds" / "00002.json").read_text())
    assert record["pods"] == list(PODS[:4])
    assert furthest(weights_of(tmp_path / "own", "killed-one"), wanted) <= 2**-25
