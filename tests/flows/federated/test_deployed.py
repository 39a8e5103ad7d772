"""Pods as processes of their own, reached through a real Prefect server and a shared folder; MLflow is a real server too."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from bitfount_model import BitfountSchema, DataStructure, load_model_class
from tests.flows.conftest import command
from tests.flows.federated.conftest import Embedded, Train
from tests.flows.federated.site import Site, wait_for
from tests.tracking_server import TrackingServer


def test_a_job_by_command_line_and_by_model_gives_the_bits_of_the_embedded_one(
    served: Site, embedded: Embedded, tmp_path: Path, mlflow_server: TrackingServer
) -> None:
    wanted = embedded(rounds=5)
    job = served.write_job(deployed=True, rounds=5)

    ended = subprocess.run(
        command(
            *("train", job, "--home", tmp_path / "own", "--job-id", "by-cli", "--json"),
            *("--tracking-uri", mlflow_server.uri),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert f'"weights_sha256": "{wanted["weights_sha256"]}"' in ended.stdout
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("bitfount-flows")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`bitfount.job_id` LIKE 'by-cli%'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags.get("bitfount.pod") for run in runs} == {None, *served.names}
    check_same_by_model(served, tmp_path, wanted)


def check_same_by_model(served: Site, tmp_path: Path, wanted: dict[str, Any]) -> None:
    cls = load_model_class(served.folder / "model.py")
    model = cls(datastructure=DataStructure(target="target"), schema=BitfountSchema(), epochs=5, batch_size=16, seed=5)
    out = tmp_path / "final.safetensors"
    options = {"store": str(served.store), "home": tmp_path / "by-model", "quorum": 2, "gate": str(served.gate)}

    stats = model.fit(pod_identifiers=list(served.names), model_out=out, **options)

    assert stats is not None and {"AUC", "validation_loss"} <= stats.keys()
    assert hashlib.sha256(out.read_bytes()).hexdigest() == wanted["weights_sha256"]
    tested = model.evaluate(pod_identifiers=list(served.names), pretrained_file=out, **options)
    assert tested["AUC"] == wanted["metrics"]["AUC"]


def test_two_jobs_at_once_do_not_mix(served: Site, embedded: Embedded, tmp_path: Path) -> None:
    seeds = {"first": 1, "second": 2}
    wanted = {
        name: embedded(f"embedded-{name}", training={"epochs": 4, "seed": seed, "batch_size": 16})
        for name, seed in seeds.items()
    }
    running = {}
    for name, seed in seeds.items():
        job = served.write_job(deployed=True, name=name, training={"epochs": 4, "seed": seed, "batch_size": 16})
        arguments = command("train", job, "--home", tmp_path / name / "own", "--job-id", name, "--json")
        running[name] = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for name, process in running.items():
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert wanted[name]["weights_sha256"] in out


def test_the_same_job_id_twice_at_once_is_refused(served: Site, train: Train, tmp_path: Path) -> None:
    job = served.write_job(deployed=True)
    here = served.hold("ann", 1)
    first = subprocess.Popen(
        command("train", job, "--home", tmp_path / "one", "--job-id", "twice", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here.exists, "the first to be in its first round")

    second = train(job, job_id="twice", home=tmp_path / "other")

    served.let_go("ann", 1)
    _, err = first.communicate(timeout=240)
    assert second.code == 2
    assert "running in another process" in second.err
    assert first.returncode == 0, err
