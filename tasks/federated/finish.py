"""From the last parameters to what a job leaves: weights, test metrics of every pod and together, predictions."""

from __future__ import annotations

import json

from bitfount_model import BitfountSchema
from bitfount_model.errors import BitfountError
from bitfount_model.federation import MetricSums
from bitfount_model.files import Content
from bitfount_model.types import Parameters
from bitfount_model.weights_files import preparation_of, to_safetensors
from tasks.federated.exchange import EVALUATION, PREDICTION
from tasks.federated.federation import Federation
from tasks.federated.messages import Asked
from tasks.federated.rounds import Rounds
from tasks.fit import finite
from tasks.manifest import Manifest, read_file, read_manifest, write_manifest
from tasks.results import prediction_table, to_parquet
from tasks.session import require
from tasks.store import Reference, Store


def keep_weights(federation: Federation, rounds: Rounds) -> Manifest:
    """Keeps the last parameters, the best ones beside them, and the history of the rounds, unless that has been done."""
    store, exchange = federation.store, federation.exchange
    if done := read_manifest(store, "fit"):
        return done
    files = {"weights": store.put("fit/weights.safetensors", _with_preparation(store, rounds.state.parameters))}
    best = rounds.best
    if best is not None:
        content = _with_preparation(store, exchange.weights(best.weights))
        files["best"] = store.put("fit/best.safetensors", content)
    history = [record.to_json() for record in rounds.records]
    files["history"] = store.put("fit/rounds.json", json.dumps(history, indent=1, allow_nan=False).encode())
    values = {
        "rounds": len(rounds.records),
        "seconds": round(sum(record.seconds for record in rounds.records), 3),
        "stopped_early": rounds.state.stopped,
        "val_stats": dict(rounds.records[-1].metrics) if rounds.records else {},
        "best_round": None if best is None else best.round_number,
        "best_metrics": {} if best is None else dict(best.metrics),
        "weights_sha256": files["weights"].sha256,
        "parameters_sha256": rounds.weights.sha256,
    }
    return write_manifest(store, Manifest("fit", files, values))


def ask_for_evaluation(federation: Federation, weights: Reference) -> None:
    """Asks every pod for the metrics of its test rows."""
    federation.exchange.ask(EVALUATION, Asked(federation.job.pods, weights))


def collect_evaluation(federation: Federation) -> Manifest:
    """The test metrics of every pod and together, unless they have been collected.

    Raises:
        QuorumError: too few pods answered.
    """
    store, exchange, job = federation.store, federation.exchange, federation.job
    if done := read_manifest(store, "evaluate"):
        return done
    collector = federation.collector(EVALUATION)
    answers: dict[str, MetricSums] = dict(collector.answers(job.pods, exchange.evaluation))
    federation.require_quorum("evaluation", len(answers), collector.missing)
    together = MetricSums({})
    for sums in answers.values():
        together = together.add(sums)
    tested = {pod: sums for pod, sums in answers.items() if sums.sums}
    rows = {pod: found.rows.test for pod in tested if (found := exchange.joined(pod)) is not None}
    values = {
        "metrics": as_numbers(together.mean()),
        "by_pod": {pod: as_numbers(sums.mean()) for pod, sums in tested.items()},
        "rows_by_pod": rows,
        "rows": sum(rows.values()),
        "missing": collector.missing,
    }
    exchange.close(EVALUATION)
    return write_manifest(store, Manifest("evaluate", {}, values))


def ask_for_predictions(federation: Federation, weights: Reference) -> None:
    """Asks every pod for predictions of all of its rows."""
    federation.exchange.ask(PREDICTION, Asked(federation.job.pods, weights))


def collect_predictions(federation: Federation) -> Manifest:
    """The predictions of every pod as a table each, unless they have been collected.

    Raises:
        QuorumError: too few pods answered.
        TrainingError: a pod's predictions have not the shape that the target needs.
    """
    store, exchange, job = federation.store, federation.exchange, federation.job
    if done := read_manifest(store, "predict"):
        return done
    made = require(store, "initialise")
    collector = federation.collector(PREDICTION)
    files: dict[str, Reference] = {}
    rows: dict[str, int] = {}
    problem = federation.model(BitfountSchema.loads(read_file(store, made, "schema").decode())).problem
    for pod, result in collector.answers(job.pods, exchange.predictions):
        try:
            table = prediction_table(
                result.preds,
                result.keys,
                problem=problem,
                targets=made.values["targets"],
                classes=made.values["classes"],
            )
        except BitfountError as error:
            collector.missing[pod] = f"{type(error).__name__}: {error}"
            continue
        files[pod] = store.put(f"predict/{pod}.parquet", to_parquet(table))
        rows[pod] = len(table)
    federation.require_quorum("prediction", len(files), collector.missing)
    exchange.close(PREDICTION)
    values = {"rows": sum(rows.values()), "rows_by_pod": rows, "missing": collector.missing}
    return write_manifest(store, Manifest("predict", files, values))


def _with_preparation(store: Store, parameters: Parameters) -> Content:
    """Parameters as a weights file that says how rows are encoded."""
    first = require(store, "initialise").files["weights"]
    return to_safetensors(parameters, preparation_of(store.mapped(first.name, first.sha256)))


def as_numbers(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: None where one is not defined."""
    return {name: finite(value) for name, value in metrics.items()}
