"""From pods that are asked to the parameters of round 0: who joins, what the columns are, how all pods encode rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from bitfount_model import BitfountSchema, DataStructure, PyTorchBitfountModel
from bitfount_model.data import Preparation
from bitfount_model.errors import QuorumError
from bitfount_model.federation import PodStatistics, merge_schemas, merge_statistics
from bitfount_model.federation.job_model import chosen_metrics
from bitfount_model.parameters import public_states
from bitfount_model.serialization import dump
from bitfount_model.weights_files import preparation_of, read_weights, to_safetensors
from tasks.federated.exchange import JOIN
from tasks.federated.federation import Federation, listed
from tasks.federated.messages import Joined, Start
from tasks.initialise import as_json, check_classes, class_names
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.session import threads
from tasks.versions import installed_versions


def join_pods(federation: Federation) -> dict[str, Any]:
    """Waits until pods have joined, compares their tables and publishes the common schema, unless that has been done.

    Returns:
        `{"joined": pods, "missing": pod -> reason}`.

    Raises:
        QuorumError: too few pods joined.
        SchemaMismatchError: their tables do not fit together; lists every difference, pod by pod.
        SerializationError: a pod joined with nonsense.
    """
    exchange, job = federation.exchange, federation.job
    if exchange.common() is not None:
        return {"joined": list(job.pods), "missing": {}}
    collector = federation.collector(JOIN)
    joined = {pod: answer.schema for pod, answer in collector.answers(job.pods, exchange.joined)}
    federation.require_quorum("joining", len(joined), collector.missing)
    if federation.require_all_pods and collector.missing:
        raise QuorumError(
            f"the job wants all of its pods (require_all_pods), {len(collector.missing)} did not join"
            f"{listed(collector.missing)}",
            collector.missing,
        )
    exchange.put_common(merge_schemas(joined))
    return {"joined": list(joined), "missing": collector.missing}


def initialise(federation: Federation, absent: Mapping[str, str]) -> Manifest:
    """Merges the pods' statistics, makes the first parameters and keeps what later steps need, unless that has been done.

    Args:
        federation: whose pods have joined.
        absent: pod -> why it did not join, where that is known.

    Raises:
        QuorumError: too few pods sent statistics.
        BitfountError: statistics, model or first weights cannot be used.
    """
    store, exchange = federation.store, federation.exchange
    schema = exchange.common()
    if schema is None:
        raise QuorumError("no pods have joined: the common schema is not known")
    if done := read_manifest(store, "initialise"):
        exchange.put_start(_start_of(federation, done, schema))
        return done
    structure = DataStructure(**federation.job.datastructure)
    preparation, missing = preparation_for(federation, schema, structure)
    joined = {pod: found for pod in federation.job.pods if (found := exchange.joined(pod)) and pod not in missing}
    with threads(federation.job.threads):
        model = federation.model(schema)
        check_classes(model)
        chosen_metrics(model, federation.job.metrics)
        if federation.pretrained is not None:
            model.update_params(read_weights(federation.pretrained, model.get_param_states(), True).parameters)
    missing = {
        **{pod: absent.get(pod, "it did not join") for pod in federation.job.pods if pod not in joined},
        **missing,
    }
    manifest = keep(federation, model, schema, preparation, joined, missing)
    exchange.put_start(_start_of(federation, manifest, schema))
    return manifest


def preparation_for(
    federation: Federation, schema: BitfountSchema, structure: DataStructure
) -> tuple[Preparation, dict[str, str]]:
    """How all pods encode rows: as the job says, else made of their statistics; and which pods sent none."""
    job, exchange = federation.job, federation.exchange
    if job.preparation is not None:
        return Preparation.from_json(job.preparation), {}
    collector = federation.collector(JOIN)
    joined = [pod for pod in job.pods if exchange.joined(pod) is not None]
    sent: dict[str, PodStatistics] = dict(collector.answers(joined, exchange.statistics))
    federation.require_quorum("statistics", len(sent), collector.missing)
    return merge_statistics(sent, schema, structure), collector.missing


def keep(
    federation: Federation,
    model: PyTorchBitfountModel,
    schema: BitfountSchema,
    preparation: Preparation,
    joined: dict[str, Joined],
    missing: dict[str, str],
) -> Manifest:
    """Writes the first artifacts and the step's manifest."""
    store, job = federation.store, federation.job
    states = public_states(model)  # nobody trains this model
    files = {
        "job": store.put("job.json", store.get("job.json")),
        "federation": store.put("federation.json", as_json(job.to_json())),
        "model": store.put("model.py", federation.source),
        "schema": store.put("schema.yaml", schema.dumps().encode()),
        "datastructure": store.put("datastructure.json", as_json(dump(model.datastructure))),
        "weights": store.put("initialise/weights.safetensors", to_safetensors(states, preparation)),
    }
    rows = {
        pod: {"train": j.rows.train, "validation": j.rows.validation, "test": j.rows.test} for pod, j in joined.items()
    }
    digests = "".join(joined[pod].rows.digest for pod in sorted(joined))
    values = {
        "job_id": job.job_id,
        "name": federation.name,
        "experiment": federation.experiment,
        "model_class": type(model).__name__,
        "hyperparameters": job.hyperparameters,
        "problem": model.problem.value,
        "source": {"kind": "pods", "name": ", ".join(sorted(joined))},
        "data_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "rows": {part: sum(counts[part] for counts in rows.values()) for part in ("train", "validation", "test")},
        "rows_by_pod": rows,
        "pods": list(job.pods),
        "missing": missing,
        "columns": len(schema.columns),
        "features": model.datastructure.input_size,
        "targets": model.datastructure.targets,
        "classes": class_names(model),
        "seed": job.seed,
        "batch_size": job.batch_size,
        "epochs": job.epochs,
        "steps": job.steps,
        "rounds": job.rounds,
        "parameters_count": sum(tensor.numel() for tensor in states.values()),
        "code_version": version("bitfount-flows"),
        "packages": installed_versions(),
    }
    return write_manifest(store, Manifest("initialise", files, values))


def _start_of(federation: Federation, manifest: Manifest, schema: BitfountSchema) -> Start:
    """What rounds begin with, from what is kept."""
    weights = federation.store.mapped(manifest.files["weights"].name, manifest.files["weights"].sha256)
    preparation = preparation_of(weights)
    if preparation is None:
        raise QuorumError(f"{manifest.files['weights'].name} does not say how rows are encoded")
    return Start(schema, preparation, tuple(sorted(manifest.values["rows_by_pod"])))
