"""Pods that are killed, sleep, raise or are not there, and a modeller that is killed while pods stay up."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.flows.conftest import command
from tests.flows.federated.conftest import Embedded, Train
from tests.flows.federated.site import Site, rows_of, wait_for


def test_a_pod_that_is_killed_in_mid_fit_costs_its_update_and_comes_back(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    served.raises("bob", 2)
    wanted = embedded()
    served.clear()
    here = served.hold("bob", 2)
    job = served.write_job(deployed=True)
    modeller = subprocess.Popen(
        command("train", job, "--home", tmp_path / "own", "--job-id", "mid-fit"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(here.exists, "bob to train in round 2")

    served.worker("bob", "mid-fit").kill()
    served.let_go("bob", 2)

    out, _ = modeller.communicate(timeout=240)
    assert modeller.returncode == 0, out
    assert wanted["weights_sha256"] in out
    assert "round 2: pod bob is missing: its flow run ended as Crashed" in out
    assert wanted["pods"]["bob"]["rounds"] == 2


@pytest.mark.parametrize("pod", ["ann", "cat"])
def test_a_pod_that_is_killed_before_its_first_round(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path, pod: str
) -> None:
    served.raises(pod, 1)
    wanted = embedded()
    served.clear()
    here = served.hold(pod, 1)
    job = served.write_job(deployed=True)
    job_id = f"first-{pod}"
    modeller = subprocess.Popen(
        command("train", job, "--home", tmp_path / "own", "--job-id", job_id, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here.exists, f"{pod} to train in round 1")

    served.worker(pod, job_id).kill()
    served.let_go(pod, 1)

    out, err = modeller.communicate(timeout=240)
    assert modeller.returncode == 0, err
    assert wanted["weights_sha256"] in out


def test_the_modeller_is_killed_and_goes_on_with_pods_that_stayed_up(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    wanted = embedded(rounds=4)
    job = served.write_job(deployed=True, rounds=4)
    here = served.hold("cat", 3)
    home = tmp_path / "own"
    modeller = subprocess.Popen(
        command("train", job, "--home", home, "--job-id", "killed"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(here.exists, "cat to train in round 3")
    workers = {pod: served.worker(pod, "killed") for pod in served.names}

    modeller.kill()
    modeller.communicate()
    served.let_go("cat", 3)
    ended = train(job, job_id="killed", home=home)

    assert ended.code == 0, ended
    assert ended.summary["weights_sha256"] == wanted["weights_sha256"]
    for pod, worker in workers.items():
        assert served.log(pod).read_text().count("job killed: began") == 1, f"{pod} was started again"
        worker.wait(60)


def test_a_pod_that_sleeps_past_the_deadline_costs_its_update(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    federation = {"quorum": 2, "deadline_seconds": 4}
    served.raises("ann", 2)
    wanted = embedded(rounds=2)
    served.clear()
    served.hold("ann", 2)

    ended = train(served.write_job(deployed=True, federation=federation, rounds=2), job_id="sleepy")

    assert ended.code == 0, ended
    assert ended.summary["weights_sha256"] == wanted["weights_sha256"]
    assert "4 s" in ended.summary["pods"]["ann"]["missing"]["round 2"]


def test_below_quorum_the_job_ends_by_name_and_goes_on_when_started_again(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    wanted = embedded()
    for pod in ("ann", "bob"):
        served.raises(pod, 2)
    job = served.write_job(deployed=True)

    ended = train(job, job_id="few")

    assert ended.code == 7
    assert "round 2: 1 of 3 pods answered, the quorum is 2" in ended.err
    assert "pod 'ann' failed to fit: ValueError" in ended.err
    assert str(rows_of()[0].iloc[0, 0]) not in ended.err
    served.clear()
    again = train(job, job_id="few")
    assert again.code == 0, again
    assert again.summary["weights_sha256"] == wanted["weights_sha256"]


def test_a_pod_that_nobody_serves_is_named(served: Site, train: Train, tmp_path: Path) -> None:
    job = served.write_job(deployed=True, pods=[*served.names, "dan"])

    ended = train(job, job_id="unknown")

    assert ended.code == 0, ended
    assert "Prefect knows no pod/dan" in ended.summary["pods"]["dan"]["missing"]["initialise"]


def test_a_pod_whose_modeller_is_gone_gives_up_and_says_so(served: Site, tmp_path: Path, train: Train) -> None:
    served.write_pod("ann", patience_seconds=1)
    job = served.write_job(deployed=True, federation={"quorum": 1, "deadline_seconds": 2}, rounds=2)
    here = served.hold("bob", 1)
    modeller = subprocess.Popen(
        command("train", job, "--home", tmp_path / "own", "--job-id", "gone"), stdout=subprocess.DEVNULL
    )
    wait_for(here.exists, "bob to train in round 1")

    modeller.kill()
    modeller.wait()

    said = "job gone: ended: pod 'ann' has waited"
    wait_for(lambda: said in served.log("ann").read_text(), "ann to give up")
    served.write_pod("ann")
    served.let_go("bob", 1)


def test_a_pod_that_is_killed_between_rounds_loses_nothing_that_it_sent(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    wanted = {3: embedded("whole")["weights_sha256"]}
    served.raises("bob", 3)
    wanted[2] = embedded("without")["weights_sha256"]
    served.clear()
    here = served.hold("ann", 2)
    modeller = subprocess.Popen(
        command(
            *("train", served.write_job(deployed=True), "--home", tmp_path / "own", "--job-id", "between", "--json")
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here.exists, "ann to train in round 2")
    answer = served.store / "between" / "rounds" / "00002" / "updates" / "bob.json"
    wait_for(answer.exists, "bob to answer round 2")

    served.worker("bob", "between").kill()
    served.let_go("ann", 2)

    out, err = modeller.communicate(timeout=240)
    assert modeller.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    # In round 3 it is started again, or its end is seen only while the round waits for it.
    rounds = summary["pods"]["bob"]["rounds"]
    assert summary["weights_sha256"] == wanted[rounds]
    assert set(summary["pods"]["bob"]["missing"]) == (set() if rounds == 3 else {"round 3"})


def test_nonsense_in_place_of_an_update_costs_that_update(
    served: Site, train: Train, embedded: Embedded, tmp_path: Path
) -> None:
    served.raises("bob", 2)
    wanted = embedded()
    served.clear()
    here = served.hold("bob", 2)
    modeller = subprocess.Popen(
        command(
            *("train", served.write_job(deployed=True), "--home", tmp_path / "own", "--job-id", "nonsense", "--json")
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here.exists, "bob to train in round 2")

    answer = served.store / "nonsense" / "rounds" / "00002" / "updates" / "bob.json"
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.write_text('{"pod": "bob", "weight": 1e99}')
    served.let_go("bob", 2)

    out, err = modeller.communicate(timeout=240)
    assert modeller.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["weights_sha256"] == wanted["weights_sha256"]
    assert "SerializationError" in summary["pods"]["bob"]["missing"]["round 2"]
    assert summary["pods"]["bob"]["rounds"] == 2
