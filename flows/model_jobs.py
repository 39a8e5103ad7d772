"""From a model object to a federated job over pods, and back to the model."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from bitfount_model import PyTorchBitfountModel
from bitfount_model.data.datastructure import DataStructure
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.early_stopping import EarlyStopping
from bitfount_model.federation.job import EVALUATE, FIT, PREDICT
from bitfount_model.files import write_atomically
from bitfount_model.metrics import default_metrics
from bitfount_model.reference import argument_problems
from bitfount_model.weights_files import read_weights, write_weights
from flows.entry_points import home_of
from flows.federated_console import FederatedView
from flows.federated_run import exchange_url, met_at, train
from flows.prefect_server import prefect_server
from flows.run import Surroundings
from flows.settings import read_pod
from flows.workspace import Workspace, new_job_id
from tasks.federated.exchange import Exchange
from tasks.federated.job_file import FederatedJobFile, check_federated_job
from tasks.federated.round_record import read_records
from tasks.manifest import read_file, read_manifest

MODEL_ARGUMENTS = ("datastructure", "schema", "batch_size", "epochs", "steps", "seed", "param_clipping")
"""Arguments of every model, which the job says in places of their own."""


@dataclass(frozen=True)
class Options:
    """Keywords of federated `fit`, `evaluate` and `predict`; all others are hyperparameters of the model.

    Attributes:
        pretrained_file: weights to begin with, as `model.serialize` writes them.
        model_out: where `fit` writes the final weights, beside those that the job keeps.
        auto_eval: whether pods test the result of `fit` on their test rows.
        require_all_pods: whether a pod that does not join ends the job.
        aggregator: name of the server's optimiser, or a mapping of keys of a job's `federation` section.
        secure_aggregation: pods' updates are seen only in their sum; at least 3 pods.
        epochs_between_parameter_updates: of a round, for a model that counts in epochs.
        steps_between_parameter_updates: of a round, for a model that counts in steps.
        early_stopping: an `EarlyStopping`, or its arguments as a mapping.
        extra_imports: for `serialize_model_source_code`.
        pods: the pods' .yaml files, for pods that run in this process; None reaches pods that are served elsewhere.
        store: where pods that are served elsewhere are met; default: `BITFOUNT_STORE`.
        home: folder of jobs; default: `BITFOUNT_HOME`, else `bitfount_runs`.
        job_id: name of the job; the same name continues it.
        tracking_uri: of MLflow; default: `MLFLOW_TRACKING_URI`, else a database in `home`.
        experiment: in MLflow.
        quorum: pods that a round needs; default: more than half.
        deadline_seconds: how long a round waits for pods.
        sign_with: file of the private key that signs the job, for pods that list whose jobs run.
    """

    pretrained_file: str | os.PathLike[str] | None = None
    model_out: str | os.PathLike[str] | None = None
    auto_eval: bool = True
    require_all_pods: bool = False
    aggregator: str | Mapping[str, Any] | None = None
    secure_aggregation: bool = False
    epochs_between_parameter_updates: int | None = None
    steps_between_parameter_updates: int | None = None
    early_stopping: EarlyStopping | Mapping[str, Any] | None = None
    extra_imports: list[str] | None = None
    pods: Sequence[str | os.PathLike[str]] | None = None
    store: str | None = None
    home: str | os.PathLike[str] | None = None
    job_id: str | None = None
    tracking_uri: str | None = None
    experiment: str = "bitfount-flows"
    quorum: int | None = None
    deadline_seconds: float = 600.0
    sign_with: str | os.PathLike[str] | None = None


OPTIONS = frozenset(field.name for field in fields(Options))


def fit(
    model: PyTorchBitfountModel, pod_identifiers: list[str], metrics: Mapping[str, Any] | None = None, **kwargs: Any
) -> dict[str, str]:
    """Trains over pods; afterwards the model holds the final weights, the common schema and how rows are encoded.

    Args:
        model: says class, data structure, batch size, epochs or steps, seed; its weights are not used.
        pod_identifiers: names of the pods.
        metrics: names of default metrics that pods compute on validation rows; None is all of them.
        kwargs: see `Options`; others are hyperparameters of the model.

    Returns:
        The last round's validation metrics, averaged over the pods' rows: name -> "%.4f".

    Raises:
        ConfigurationError: options or hyperparameters that cannot be.
        QuorumError: too few pods answered; the same `job_id` goes on.
    """
    options, asked, job_id = asked_of(FIT, model, pod_identifiers, metrics, kwargs)
    run(asked, job_id, options)
    store = workspace_of(options).store(job_id)
    made, fitted = read_manifest(store, "initialise"), read_manifest(store, "fit")
    if made is None or fitted is None:
        raise ConfigurationError(f"the job {job_id!r} in {store.url} has no result")
    saved = read_weights(read_file(store, fitted, "weights"), None, True)
    schema = type(model.schema).loads(read_file(store, made, "schema").decode())
    if saved.preparation is None:
        raise ConfigurationError(f"the weights of the job {job_id!r} do not say how rows are encoded")
    model.adopt(schema, saved.preparation, saved.parameters)
    if options.model_out is not None:
        write_weights(options.model_out, saved.parameters, saved.preparation)
    records = read_records(store)
    last: Mapping[str, float | None] = records[-1].metrics if records else {}
    return {name: f"{float('nan') if value is None else value:.4f}" for name, value in last.items()}


def evaluate(model: PyTorchBitfountModel, pod_identifiers: list[str], **kwargs: Any) -> dict[str, float]:
    """Metrics on the pods' test rows, averaged over rows, of the weights in `pretrained_file`.

    Args:
        model: as for `fit`; its weights are not used.
        pod_identifiers: names of the pods.
        kwargs: as for `fit`.
    """
    if kwargs.get("pretrained_file") is None:
        warnings.warn("evaluate over pods without pretrained_file: untrained weights are evaluated", stacklevel=5)
    options, asked, job_id = asked_of(EVALUATE, model, pod_identifiers, None, kwargs)
    summary = run(asked, job_id, options)
    return {name: float("nan") if value is None else value for name, value in summary["metrics"].items()}


def predict(model: PyTorchBitfountModel, pod_identifiers: list[str], **kwargs: Any) -> dict[str, list[np.ndarray]]:
    """Predictions for all rows of each pod that lets them leave, by the weights in `pretrained_file`.

    Args:
        model: as for `fit`; its weights are not used.
        pod_identifiers: names of the pods.
        kwargs: as for `fit`; `pretrained_file` must be among them.

    Returns:
        Pod -> one array for each row, in order.
    """
    options, asked, job_id = asked_of(PREDICT, model, pod_identifiers, None, kwargs)
    summary = run(asked, job_id, options)
    place = exchange_url(met_at(asked, place_of(options)), job_id, workspace_of(options).store(job_id))
    found = {pod: Exchange(place).predictions(pod) for pod in summary["predictions"]}
    return {pod: list(result.preds) for pod, result in found.items() if result is not None}


def asked_of(
    operation: str,
    model: PyTorchBitfountModel,
    pods: list[str],
    metrics: Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
) -> tuple[Options, FederatedJobFile, str]:
    """The job that a call asks for, and its id.

    Raises:
        ConfigurationError: all problems of one kind together.
    """
    options = Options(**{name: value for name, value in keywords.items() if name in OPTIONS})
    given = {name: value for name, value in keywords.items() if name not in OPTIONS}
    hyperparameters = hyperparameters_of(model, given)
    home = workspace_of(options).home
    name = type(model).__name__
    training = {
        **({"epochs": model.epochs} if model.epochs is not None else {"steps": model.steps}),
        "batch_size": model.batch_size,
        "seed": model.seed,
        "param_clipping": model.param_clipping,
        "pretrained_file": options.pretrained_file and str(Path(options.pretrained_file).resolve()),
        **{
            key: value
            for key in ("epochs_between_parameter_updates", "steps_between_parameter_updates")
            if (value := getattr(options, key)) is not None
        },
    }
    asked = check_federated_job(
        {
            "name": name,
            "experiment": options.experiment,
            "model": {
                "file": kept(home, source_of(model, options.extra_imports), ".py"),
                "class": name,
                "hyperparameters": hyperparameters,
            },
            "pods": pod_files(pods, options.pods) if options.pods is not None else list(pods),
            "datastructure": datastructure_of(model.datastructure),
            "schema": columns_of(operation, model, home),
            "training": training,
            "federation": federation_of(options),
            "metrics": metric_names(model, metrics),
            "evaluate": options.auto_eval or operation == EVALUATE,
            "operation": operation,
            "sign_with": options.sign_with and str(Path(options.sign_with).expanduser().resolve()),
        }
    )
    return options, asked, options.job_id or new_job_id(name)


def run(asked: FederatedJobFile, job_id: str, options: Options) -> dict[str, Any]:
    """Runs or continues the job; gives its summary."""
    workspace = workspace_of(options)
    tracking = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    (workspace.home / "prefect").mkdir(parents=True, exist_ok=True)
    with prefect_server(workspace.home / "prefect") as server:
        surroundings = Surroundings(workspace, server, FederatedView(sys.stderr), verbose=False)
        return train(asked, job_id, tracking, surroundings, place_of(options))


def hyperparameters_of(model: PyTorchBitfountModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that pods construct the model with: those of this object, and those given in their place.

    An argument of the constructor is found by the attribute of its name; one without such an attribute takes its default.

    Raises:
        ConfigurationError: the constructor takes no such argument, or lacks one.
    """
    cls = type(model)
    parameters = inspect.signature(cls.__init__).parameters
    names = [name for name in {**cls.fields_dict, **parameters} if name not in (*MODEL_ARGUMENTS, "self")]
    own = {name: vars(model)[name] for name in names if name in vars(model) and is_json(vars(model)[name])}
    arguments = {**own, **given}
    problems = list(argument_problems(cls, {"datastructure": None, "schema": None, **arguments}))
    if problems:
        close = {name: get_close_matches(name, OPTIONS, n=1) for name in given if name not in parameters}
        hints = [f" Did you mean the option {found[0]!r} by {name!r}?" for name, found in close.items() if found]
        raise ConfigurationError(
            f"{cls.__name__} cannot be constructed on the pods: {'; '.join(problems)}.{''.join(hints)}"
        )
    return arguments


def is_json(value: Any) -> bool:
    """Whether a value travels as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def datastructure_of(structure: DataStructure) -> dict[str, Any]:
    """The arguments that travel; how rows are split is for each pod to say."""
    default = DataStructure()
    values = {name: getattr(structure, name) for name in DataStructure.fields_dict}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def columns_of(operation: str, model: PyTorchBitfountModel, home: Path) -> dict[str, Any]:
    """What the model's schema says to pods: types when training, all of it when trained weights are applied."""
    columns = model.schema.columns
    if not columns:
        return {}
    if operation != FIT and model.preparation is not None:
        return {"file": kept(home, model.schema.dumps().encode(), ".yaml")}
    types: dict[str, list[str]] = {}
    for column in columns:
        types.setdefault(column.semantic_type.value, []).append(column.name)
    return {"types": types}


def federation_of(options: Options) -> dict[str, Any]:
    """The job's section `federation`."""
    aggregator = options.aggregator
    section = {"optimiser": aggregator} if isinstance(aggregator, str) else dict(aggregator or {})
    own = {"early_stopping", "quorum", "deadline_seconds", "require_all_pods", "secure_aggregation"}
    if twice := sorted(own & section.keys()):
        raise ConfigurationError(f"aggregator: give {', '.join(twice)} as options of their own")
    stopping = options.early_stopping
    if isinstance(stopping, EarlyStopping):
        stopping = {name: value for name, value in asdict(stopping).items() if name != "lower_is_better"}
    return {
        **section,
        "early_stopping": None if stopping is None else dict(stopping),
        "quorum": options.quorum,
        "deadline_seconds": options.deadline_seconds,
        "require_all_pods": options.require_all_pods,
        "secure_aggregation": options.secure_aggregation,
    }


def metric_names(model: PyTorchBitfountModel, metrics: Mapping[str, Any] | None) -> list[str] | None:
    """Metrics by their names, as pods know them.

    Raises:
        ConfigurationError: pods know no such metric.
    """
    if metrics is None:
        return None
    if not model.schema.columns:
        return list(metrics)  # what the target is, only pods know: they refuse names that they do not
    known = default_metrics(model.problem)
    if missing := [name for name in metrics if name not in known]:
        raise ConfigurationError(
            f"metrics: pods compute default metrics only; no {', '.join(missing)}, there are {', '.join(known)}"
        )
    return list(metrics)


def pod_files(pods: list[str], files: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The files of pods that run here, held against the names that the call gives.

    Raises:
        ConfigurationError: a name without a file, or a file too many.
    """
    named = {read_pod(Path(file)).name: str(Path(file).resolve()) for file in files}
    if set(named) != set(pods):
        raise ConfigurationError(f"pod_identifiers are {sorted(pods)}, the files in `pods` are of {sorted(named)}")
    return [named[pod] for pod in pods]


def source_of(model: PyTorchBitfountModel, extra_imports: list[str] | None) -> bytes:
    """The source of the model's class, as a module that runs on its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        model.serialize_model_source_code(path, extra_imports)
        return path.read_bytes()


def kept(home: Path, content: bytes, ending: str) -> str:
    """A file of this content whose name stays the same, so that the same call continues the same job."""
    path = home.resolve() / "sources" / f"{hashlib.sha256(content).hexdigest()}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return str(path)


def workspace_of(options: Options) -> Workspace:
    """Where jobs are kept."""
    return Workspace(home_of({"home": options.home}))


def place_of(options: Options) -> str | None:
    """Where pods that are served elsewhere are met, if the caller or the environment says it."""
    return options.store or os.environ.get("BITFOUNT_STORE")
