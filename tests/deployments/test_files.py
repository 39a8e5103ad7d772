"""`deployments/`: Dockerfile and compose.yaml by their linters, and what they name by what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

from flows.cli import cli
from flows.settings import read_pod

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deployments"
COMPOSE: dict[str, Any] = YAML(typ="safe").load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PODS = ("north", "south", "west")
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")


def instructions() -> Iterator[tuple[str, str]]:
    """Instruction and argument of each line of the Dockerfile."""
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if line and not line.startswith("#"):
            name, _, argument = line.partition(" ")
            yield name, argument.strip()


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """(source, target) of what is mounted."""
    found = []
    for volume in service.get("volumes", []):
        source, target = (volume["source"], volume["target"]) if isinstance(volume, dict) else volume.split(":")[:2]
        found.append((source.replace("${ROWS:-../examples/hospitals/data}", "../examples/hospitals/data"), target))
    return found


def test_compose_file_follows_the_specification() -> None:
    said = subprocess.run(
        [
            Path(sys.executable).with_name("check-jsonschema"),
            "--builtin-schema",
            "vendor.compose-spec",
            FOLDER / "compose.yaml",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout


def test_dockerfile_passes_its_linter() -> None:
    said = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", FOLDER / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout


def test_dockerfile_copies_files_that_are_there_and_let_into_the_build() -> None:
    stages = {argument.split(" AS ")[-1] for name, argument in instructions() if name == "FROM"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for name, argument in instructions():
        if name != "COPY":
            continue
        if argument.startswith("--from="):
            assert argument.removeprefix("--from=").split()[0] in stages
            continue
        copied |= {source.removeprefix("./") for source in argument.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert copied == let_in


def test_image_is_pinned_constrained_and_not_run_by_root() -> None:
    images = [argument.split(" AS ")[0] for name, argument in instructions() if name == "FROM"]
    images += [service["image"] for service in SERVICES.values()]
    assert all(re.search(r":[^:]*\d+[.-]\d+", image) and "latest" not in image for image in images), images
    assert "--constraint constraints.txt" in DOCKERFILE and "whl/cpu" in DOCKERFILE
    version = re.search(r"python:(\d+\.\d+)\.", images[0])
    assert version is not None
    assert f"Python {version[1]}" in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert [argument for name, argument in instructions() if name == "USER"][-1] not in {"root", "0"}


def test_a_site_has_all_that_a_federation_needs() -> None:
    assert SERVICES.keys() == {"postgres", "minio", "buckets", "prefect", "mlflow", "worker", *PODS}
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "buckets" else "service_healthy"
            assert condition == {"condition": wanted}, (name, other)
            assert "healthcheck" in SERVICES[other] or other == "buckets"
            assert set(service["networks"]) & set(SERVICES[other]["networks"]), f"{name} cannot reach {other}"
    assert all("databases" not in SERVICES[pod]["networks"] for pod in (*PODS, "worker")), (
        "the databases are the servers' alone"
    )
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))


def test_mounted_files_are_there_and_named_volumes_are_declared(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "examples/hospitals/make_pods.py", tmp_path], check=True, capture_output=True
    )
    for service in SERVICES.values():
        for source, _ in mounts(service):
            if source.startswith("../examples/hospitals/data/"):
                assert (tmp_path / Path(source).name).is_file()
            elif source.startswith("."):
                assert (FOLDER / source).is_file(), source
            else:
                assert source in COMPOSE["volumes"], source
    used = {source for service in SERVICES.values() for source, _ in mounts(service)}
    assert COMPOSE["volumes"].keys() <= used


@pytest.mark.parametrize("pod", PODS)
def test_a_pods_file_is_read_and_finds_its_rows_where_they_are_mounted(pod: str) -> None:
    settings = read_pod(FOLDER / "site_pods" / f"{pod}.yaml")
    assert settings.name == pod
    targets = {target: source for source, target in mounts(SERVICES[pod])}
    assert targets["/pod.yaml"] == f"./site_pods/{pod}.yaml"
    assert str(settings.data["csv"]) in targets
    bucket = str(settings.store).removeprefix("s3://").partition("/")[0]
    assert f"store/{bucket}" in SERVICES["buckets"]["command"]


@pytest.mark.parametrize("pod", PODS)
def test_a_pods_command_is_one_of_the_command_line(pod: str) -> None:
    program, *arguments = OURS[pod]["command"]
    assert program == "bitfount-flows"
    found: click.Command = cli
    while isinstance(found, click.Group):
        found, (_, *arguments) = found.commands[arguments[0]], arguments
    found.make_context(found.name, arguments)


@pytest.mark.parametrize("name", ["prefect", "worker", "mlflow"])
def test_commands_and_options_of_servers_are_known(name: str) -> None:
    arguments = OURS[name]["command"]
    words = arguments[: next(place for place, word in enumerate(arguments) if word.startswith("-"))]
    said = subprocess.run([sys.executable, "-m", *words, "--help"], capture_output=True, text=True, check=True).stdout
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    assert all(re.search(rf"{option}\b", said) for option in options)


def test_no_password_is_written_down_and_every_variable_is_explained() -> None:
    example = dict(
        line.split("=", 1) for line in (FOLDER / ".env.example").read_text().splitlines() if not line.startswith("#")
    )
    used = set(VARIABLE.findall((FOLDER / "compose.yaml").read_text(encoding="utf-8")))
    assert used == example.keys()
    secret = re.compile("PASSWORD|SECRET|AUTH$|AUTH_STRING|ACCESS_KEY$")
    assert {value for name, value in example.items() if secret.search(name)} == {""}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name) and name != "MLFLOW_BASIC_AUTH_FAIL_CLOSED":
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {value}"
    git = subprocess.run(["git", "check-ignore", "--quiet", FOLDER / ".env"], cwd=ROOT, check=False)
    assert git.returncode in {0, 128}, "a filled-in .env must not be committed"
