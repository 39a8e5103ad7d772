"""The examples as a user runs them: each job through the command line, in a process and a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from marshmallow import Schema, fields
from ruamel.yaml import YAML
from safetensors.torch import load_file
from sklearn.datasets import load_diabetes
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from torch import nn

from bitfount_model import DataStructure, PercentageSplitter, load_model_class
from bitfount_model.federation import PUBLISHED, EarlyStopping
from bitfount_model.federation.policy import PodPolicy, _PolicySchema, policy_from_json
from flows.model_jobs import OPTIONS
from tasks.federated.job_file import (
    FederatedJobFile,
    FederatedJobSchema,
    check_federated_job,
    job_for_pods,
    with_own_seed,
)
from tasks.federated.pod_file import PodSchema, check_pod
from tasks.job import SPLITTERS, JobSchema
from tasks.simulation.job_file import SimulatedJobSchema, check_own_rows

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TRAIN_SECONDS = 240
OUTSIDE = ("BITFOUNT_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE")


@dataclass(frozen=True)
class Run:
    """One finished command: its JSON line, the words around it, and the folder that it ran in."""

    summary: dict[str, Any]
    words: str
    folder: Path

    @property
    def job(self) -> Path:
        """The job's own folder."""
        return Path(self.summary["weights"]).parents[1]

    @property
    def test_rows(self) -> pd.DataFrame:
        """The test rows' predictions, as they were written."""
        return pd.read_parquet(self.summary["test_predictions"])


def call(folder: Path, *arguments: str | Path) -> Run:
    """Runs `bitfount-flows`, which must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "bitfount-flows", *arguments, "--json"],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TRAIN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return Run(json.loads(done.stdout.splitlines()[-1]), done.stderr, folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all jobs, so that the databases in it are made once."""
    return tmp_path_factory.mktemp("home")


def train(name: str, home: Path, tmp_path_factory: pytest.TempPathFactory, *options: str) -> Run:
    """Trains an example from an empty folder."""
    folder = tmp_path_factory.mktemp(name) / "here"
    return call(folder, "train", EXAMPLES / name / "job.yaml", "--home", home, "--job-id", name, *options)


@pytest.fixture(scope="module")
def breast_cancer(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("breast_cancer", home, tmp_path_factory)


@pytest.fixture(scope="module")
def diabetes(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("diabetes", home, tmp_path_factory)


@pytest.fixture(scope="module")
def digits_images(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = tmp_path_factory.mktemp("digits")
    script = EXAMPLES / "digits_images" / "make_images.py"
    subprocess.run([sys.executable, script, data], check=True, capture_output=True, timeout=TRAIN_SECONDS)
    return train("digits_images", home, tmp_path_factory, "--set", f"data.csv={data / 'digits.csv'}")


@pytest.fixture(scope="module")
def original_style(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("original_style", home, tmp_path_factory)


@pytest.fixture(params=["breast_cancer", "diabetes", "digits_images", "original_style"])
def example(request: pytest.FixtureRequest) -> Run:
    """Each of the examples."""
    run: Run = request.getfixturevalue(request.param)
    return run


def test_the_tumour_classifier_tells_the_test_rows_apart(breast_cancer: Run) -> None:
    rows, metrics = breast_cancer.test_rows, breast_cancer.summary["metrics"]
    assert metrics["AUC"] >= 0.98
    assert metrics["AUC"] == pytest.approx(roc_auc_score(rows["target"] == "1", rows["score_1"]), abs=1e-6)
    assert metrics["Accuracy"] == pytest.approx(accuracy_score(rows["target"], rows["prediction"]), abs=1e-6)


def test_the_tumour_classifier_predicts_every_row_that_its_job_names(breast_cancer: Run) -> None:
    predictions = pd.read_parquet(breast_cancer.summary["predictions"])
    assert predictions.columns.tolist() == ["key", "prediction", "score_0", "score_1"]
    assert predictions["key"].tolist() == list(range(569))


def test_a_trained_job_predicts_and_evaluates_rows_that_come_later(
    breast_cancer: Run, home: Path, tmp_path: Path
) -> None:
    source = "{sklearn: breast_cancer}"
    place = ("--job-id", "breast_cancer", "--home", home, "--data", source)
    predicted = call(tmp_path, "predict", *place, "--out", tmp_path / "later.parquet").summary
    assert predicted["rows"] == 569
    later, first = pd.read_parquet(predicted["predictions"]), pd.read_parquet(breast_cancer.summary["predictions"])
    pd.testing.assert_frame_equal(later, first)
    assert call(tmp_path, "evaluate", *place).summary["metrics"]["AUC"] >= 0.98


def test_the_regressor_predicts_in_the_unit_of_its_target(diabetes: Run) -> None:
    rows, metrics = diabetes.test_rows, diabetes.summary["metrics"]
    assert list(metrics) == ["R2", "MAE", "RMSE"]
    assert metrics["R2"] == pytest.approx(r2_score(rows["target"], rows["prediction"]), abs=1e-5)
    assert abs(rows["prediction"].mean() - rows["target"].mean()) < 20
    assert rows["target"].between(25, 346).all()


def test_the_regressor_is_as_good_as_the_same_network_in_plain_pytorch(diabetes: Run) -> None:
    start = load_file(diabetes.job / "initialise" / "weights.safetensors")
    assert diabetes.summary["metrics"]["R2"] == pytest.approx(r2_of_plain_pytorch(start, steps=200), abs=0.03)


def r2_of_plain_pytorch(start: dict[str, torch.Tensor], steps: int) -> float:
    """The example's network from the same first weights and the same split, and nothing else of this project."""
    frame = load_diabetes(as_frame=True).frame
    split = PercentageSplitter(validation_percentage=15, test_percentage=20).split(frame, seed=42)
    table = frame.drop(columns="target").to_numpy()
    table = (table - table[split.train].mean(axis=0)) / table[split.train].std(axis=0)
    rows, targets = torch.tensor(table, dtype=torch.float32), torch.tensor(frame["target"].to_numpy())
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    network.load_state_dict(start)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003, weight_decay=0.1)
    orders = np.random.default_rng(0)
    batches: list[torch.Tensor] = []
    while len(batches) < steps:
        batches += torch.tensor(orders.permutation(split.train)).split(32)
    for batch in batches[:steps]:
        optimizer.zero_grad()
        wanted = (targets[batch].float() - 150) / 75
        nn.functional.mse_loss(network(rows[batch]).squeeze(1), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network(rows[split.test]).squeeze(1) * 75 + 150
    return float(r2_score(targets[split.test], predicted))


def test_the_regressor_trains_exactly_the_steps_of_its_job(diabetes: Run) -> None:
    history = json.loads((diabetes.job / "fit" / "history.json").read_text())
    # 287 training rows are 9 batches; 200 steps are 22 passes and 2 whole batches.
    assert [record["rows"] for record in history] == [22 * 287 + 2 * 32]


def test_the_image_model_reads_digits_from_their_files(digits_images: Run) -> None:
    rows, metrics = digits_images.test_rows, digits_images.summary["metrics"]
    assert metrics["Accuracy"] >= 0.95
    assert metrics["Accuracy"] == pytest.approx(accuracy_score(rows["label"], rows["prediction"]), abs=1e-6)
    assert len(rows) == digits_images.summary["test_rows"] == 359
    assert rows["key"].str.fullmatch(r"digit-\d{4}").all()
    assert rows["key"].is_unique


def test_a_model_in_the_style_of_the_original_trains_with_another_import_line(original_style: Run) -> None:
    text = (EXAMPLES / "original_style" / "model.py").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if "bitfount_model" in line] == [
        "from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn"
    ]
    assert original_style.summary["metrics"]["Accuracy"] >= 0.95
    (record,) = json.loads((original_style.job / "fit" / "history.json").read_text())
    stats = record["val_stats"]
    assert stats["val_error"] == pytest.approx(1 - stats["val_acc"])


def test_what_a_job_says_it_wrote_is_there(example: Run) -> None:
    weights = Path(example.summary["weights"])
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == example.summary["weights_sha256"]
    assert all(tensor.isfinite().all() for tensor in load_file(weights).values())
    assert len(example.test_rows) == example.summary["test_rows"] > 0
    assert list((example.job / "plots").glob("*.png"))


def test_a_job_ends_as_a_finished_run_in_mlflow(example: Run) -> None:
    database = sqlite3.connect(example.summary["tracking_uri"].removeprefix("sqlite:///"))
    query = "SELECT status FROM runs WHERE run_uuid = ?"
    found = database.execute(query, (example.summary["mlflow_run_id"],)).fetchall()
    database.close()
    assert found == [("FINISHED",)]


def test_a_job_leaves_nothing_where_it_was_started_and_no_noise_behind(example: Run) -> None:
    assert list(example.folder.iterdir()) == []
    assert "Traceback" not in example.words
    assert "Warning" not in example.words


# What the pages show and list is what there is.


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def keys_of(schema: Schema, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of a schema's keys, sections and what is in them."""
    found: list[tuple[str, ...]] = []
    for name, field in schema.fields.items():
        here = (*path, field.data_key or name)
        found += [here, *(keys_of(field.schema, here) if isinstance(field, fields.Nested) else [])]
    return found


def keys_listed(text: str) -> set[tuple[str, ...]]:
    """The keys that tables name, each first in its row."""
    return {tuple(name.split(".")) for name in re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)}


def defaults_listed(text: str) -> dict[tuple[str, ...], str]:
    """Key -> what its row says in the column `default`, in the tables that have one."""
    found: dict[tuple[str, ...], str] = {}
    for table in re.findall(r"^\| key \|.*\| default \|\n(?:\|.*\n)+", text, flags=re.MULTILINE):
        for name, default in re.findall(r"^\| `([\w.]+)` \|.*\| ?(.*?) ?\|$", table, flags=re.MULTILINE):
            found[tuple(name.split("."))] = default
    return found


def defaults_of(schema: Schema, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Key -> how a page says that it is required, or its default; of keys that are neither, a page says what it likes."""
    found: dict[tuple[str, ...], str] = {}
    for name, field in schema.fields.items():
        here = (*path, field.data_key or name)
        if isinstance(field, fields.Nested):
            found |= defaults_of(field.schema, here)
        elif field.required:
            found[here] = "required"
        elif (text := in_words(field.load_default)) is not None:
            found[here] = text
    return found


def defaults_of_class(cls: type, path: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """The same for a section that is the arguments of a class."""
    parameters = inspect.signature(cls).parameters.values()
    return {(*path, each.name): text for each in parameters if (text := in_words(each.default)) is not None}


def in_words(default: Any) -> str | None:
    """A default as a page writes it."""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        return f"{default:g}"
    return f"`{default}`" if isinstance(default, str) else None


def wrong_defaults(text: str, so: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], tuple[str | None, str]]:
    """Key -> (what the page says, what is so). A page may go on after a comma: `0, none`."""
    listed = defaults_listed(text)
    return {key: (listed.get(key), said) for key, said in so.items() if listed.get(key, "").partition(",")[0] != said}


def leaves(keys: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Keys that are no sections."""
    every = set(keys)
    return every - {key[:place] for key in every for place in range(1, len(key))}


def parts_of_the_page_on_jobs() -> tuple[str, str, str]:
    """What it says of local jobs, of federated ones, and of simulated ones."""
    page = (ROOT / "docs" / "job_file.md").read_text(encoding="utf-8")
    local, federated, simulated = re.split(r"\n# A (?:federated|simulated) job\n", page)
    return local, federated, simulated


def test_the_page_on_job_files_names_every_key_of_a_local_job_and_no_other() -> None:
    keys = {key for key in keys_of(JobSchema()) if key[:2] != ("predict", "data")} | {("predict", "data")}
    assert keys_listed(parts_of_the_page_on_jobs()[0]) == leaves(keys)


def test_the_page_on_job_files_names_every_key_of_a_federated_job_and_no_other() -> None:
    federated = parts_of_the_page_on_jobs()[1]
    assert keys_listed(federated) == leaves(keys_of(FederatedJobSchema()))
    settings = {field.name for field in dataclasses.fields(EarlyStopping) if field.init}
    for key, wanted in (("early_stopping", settings), ("best", {"metric", "mode"})):
        (row,) = re.findall(rf"^\| `federation.{key}` \|.*$", federated, flags=re.MULTILINE)
        assert set(re.findall(r"[{ ](\w+): ", row)) == wanted


def test_the_page_on_job_files_names_every_key_that_a_simulated_job_has_and_a_local_one_has_not() -> None:
    own = {key for key in keys_of(SimulatedJobSchema()) if key[0] in ("simulate", "training", "federation")}
    assert keys_listed(parts_of_the_page_on_jobs()[2]) == leaves(own)


def test_the_page_on_pod_files_names_every_key_of_a_pod_and_its_policy_and_no_other() -> None:
    page = (ROOT / "docs" / "pod_file.md").read_text(encoding="utf-8")
    policy = keys_of(_PolicySchema(), ("policy",))
    assert {key[1] for key in policy} == {field.name for field in dataclasses.fields(PodPolicy)}
    assert keys_listed(page) == leaves([*keys_of(PodSchema()), *policy])


def test_the_defaults_on_the_pages_are_those_of_jobs_pods_and_policies() -> None:
    local, federated, simulated = parts_of_the_page_on_jobs()
    pod = (ROOT / "docs" / "pod_file.md").read_text(encoding="utf-8")
    splitters = {
        key: said for kind, cls in SPLITTERS.items() for key, said in defaults_of_class(cls, ("splitter", kind)).items()
    }
    policy = defaults_of(_PolicySchema(), ("policy",))
    of_local = {key: said for key, said in defaults_of(JobSchema()).items() if key[:2] != ("predict", "data")}
    sections = ("model", "datastructure")  # of a federated job: the page sends the reader to those of a local one
    of_federated = {key: said for key, said in defaults_of(FederatedJobSchema()).items() if key[0] not in sections}
    structure = defaults_of_class(DataStructure, ("datastructure",))
    assert wrong_defaults(local, {**of_local, **splitters, **structure}) == {}
    assert wrong_defaults(federated, of_federated) == {}
    own = ("simulate", "training", "federation")
    assert wrong_defaults(simulated, {k: v for k, v in defaults_of(SimulatedJobSchema()).items() if k[0] in own}) == {}
    assert wrong_defaults(pod, {**defaults_of(PodSchema()), **splitters, **policy}) == {}


def test_the_page_on_federated_training_names_every_option_and_every_server_optimiser() -> None:
    page = (ROOT / "docs" / "federated.md").read_text(encoding="utf-8")
    of_section = {text.partition("\n")[0]: text for text in page.split("\n## ")}
    assert keys_listed(of_section["From Python"]) == {(name,) for name in OPTIONS}
    shown = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", of_section["Server optimisers"], flags=re.MULTILINE)
    found = {name: {key: float(value) for key, value in re.findall(r"`(\w+)` ([\d.]+)", text)} for name, text in shown}
    assert found == PUBLISHED


@pytest.mark.parametrize("page", ["README.md", "docs/job_file.md", "docs/pod_file.md", "docs/simulate.md"])
def test_the_jobs_and_pods_that_the_pages_show_are_what_they_say(page: str) -> None:
    shown = [YAML(typ="safe").load(text) for text in blocks(page, "yaml") if text.startswith(("name:", "#"))]
    assert shown
    for value in shown:
        if "pods" in value:
            check_whole(check_federated_job(value))
        elif "policy" in value:
            policy_from_json(check_pod(value).policy)
        else:
            check_own_rows(value)


def check_whole(job: FederatedJobFile) -> None:
    """Settings that only show to be wrong when pods are sent them."""
    pods = [Path(pod).stem for pod in job.pods]
    job_for_pods(with_own_seed(replace(job, schema={**job.schema, "file": None})), "shown", pods, b"")


@pytest.mark.parametrize("page", ["README.md", "docs/model_class.md"])
def test_the_models_that_the_pages_show_are_models(page: str, tmp_path: Path) -> None:
    models = [text for text in blocks(page, "python") if "class " in text and "def create_model" in text]
    assert models
    for number, text in enumerate(models):
        file = tmp_path / f"model_{number}.py"
        file.write_text(text, encoding="utf-8")
        load_model_class(file)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_the_links_of_the_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if not leads_somewhere(ROOT / page, target)] == []


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link's file is there, and has the heading that is behind its `#`."""
    name, _, heading = target.partition("#")
    file = page.parent / name if name else page
    if not file.exists() or not heading:
        return file.exists()
    prose = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    # As GitHub makes them: lower case, blanks to hyphens, nothing else but letters, digits and underscores.
    return heading in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
