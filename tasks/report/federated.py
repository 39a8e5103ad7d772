"""From a federated job's manifests and round records to the values of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.federated.compare import comparison_rows
from tasks.federated.round_record import RoundRecord
from tasks.manifest import Manifest
from tasks.report.shared import (
    Ended,
    counted,
    facts_of,
    filled,
    going_on,
    length_of,
    metric_rows,
    origin,
    seconds_text,
    state_of,
)
from tasks.report.values import (
    OVER_ALL,
    STATES,
    Bars,
    Lines,
    Presence,
    Report,
    Section,
    Series,
    Stack,
    Table,
)
from tasks.run_contents import figure

ALL_PODS = "all pods"
REASONS_SHOWN = 20
LOSSES = ("loss", "validation_loss", "val_loss")
Legend = tuple[tuple[str, int], ...]


def federated_report(
    manifests: Mapping[str, Manifest],
    records: Sequence[RoundRecord],
    federation: Mapping[str, Any],
    wanted: Sequence[str],
    ended: Ended,
) -> Report:
    """What the report of a federated job says.

    Args:
        manifests: step -> manifest of the finished steps, `initialise` among them.
        records: of the closed rounds.
        federation: the job as pods know it.
        wanted: the steps that make the job complete.
        ended: how it ended, if it is not finished.
    """
    made = manifests["initialise"].values
    pods = pods_of(made, records)
    legend: Legend = (*((pod, place) for place, pod in enumerate(pods)), (ALL_PODS, OVER_ALL))
    progress = f"{len(records)} of {counted(made['rounds'], 'round')} done"
    state = state_of(manifests, wanted, progress, ended)
    nothing: dict[str, Any] = {"metrics": {}, "by_pod": {}, "rows": 0}
    evaluated = manifests["evaluate"].values if "evaluate" in manifests else nothing
    compared = manifests["compare"].values if "compare" in manifests else None
    return Report(
        name=made["name"],
        job_id=made["job_id"],
        kind="federated",
        state=state,
        facts=(
            *facts_of(made),
            ("Pods", ", ".join(pods)),
            ("Training", training_text(made, federation)),
            ("Rounds", progress + best_text(manifests)),
        ),
        metrics=metric_rows(evaluated["metrics"]),
        metrics_of=f"{evaluated['rows']:,} test rows of {counted(len(evaluated['by_pod']), 'pod')}",
        sections=filled(
            [
                learning(records, legend),
                fairness(made, evaluated, legend),
                comparison(compared),
                participation(records, pods),
                absences(records, made, evaluated),
                timing(records, legend),
                privacy(records, federation, manifests),
                origin(manifests),
                going_on(made["job_id"], state == "finished", "pods with the same rows"),
            ]
        ),
    )


def pods_of(made: Mapping[str, Any], records: Sequence[RoundRecord]) -> list[str]:
    """Every pod that the job named, that joined, or that was asked in a round."""
    asked = {pod for record in records for pod in (*record.pods, *record.missing)}
    return sorted(asked | set(made["rows_by_pod"]) | set(made["pods"]))


def training_text(made: Mapping[str, Any], federation: Mapping[str, Any]) -> str:
    """How pods train and how their updates are added."""
    unit, number = length_of(made)
    weights = "weighted by rows" if federation["weighted"] else "each pod alike"
    return (
        f"{counted(number, unit)}, {counted(federation['between_updates'], unit)} a round; {federation['optimiser']},"
        f" {weights}; quorum {federation['quorum']}"
    )


def best_text(manifests: Mapping[str, Manifest]) -> str:
    """Which round was best, if the job chose one."""
    best = manifests["fit"].values["best_round"] if "fit" in manifests else None
    return "" if best is None else f"; round {best} was the best"


def learning(records: Sequence[RoundRecord], legend: Legend) -> Section | None:
    """Losses and validation metrics by round, of each pod and over all; None before the first round."""
    if not records:
        return None
    steps = tuple(record.round_number for record in records)
    losses = Lines(
        "Training loss",
        "round",
        steps,
        curves([r.train_loss for r in records], [mean(r.train_loss) for r in records], legend),
    )
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    validated = [
        Lines(
            "Validation loss" if name in LOSSES else f"Validation {name}",
            "round",
            steps,
            curves([pod_values(r, name) for r in records], [r.metrics.get(name) for r in records], legend),
        )
        for name in sorted(names, key=lambda name: name not in LOSSES)
    ]
    charts = tuple(chart for chart in (losses, *validated) if chart.series)
    return Section(
        "learning",
        "Learning curves",
        words=("The loss over all pods is their mean; a metric over all pods is averaged over their validation rows.",),
        charts=charts,
        legend=legend,
    )


def pod_values(record: RoundRecord, name: str) -> dict[str, float | None]:
    """Pod -> a metric of its validation rows."""
    return {pod: stats.get(name) for pod, stats in record.by_pod.items()}


def curves(
    by_round: Sequence[Mapping[str, float | None]], together: Sequence[float | None], legend: Legend
) -> tuple[Series, ...]:
    """A curve for each pod and one over all, of those that have a value."""
    named = [
        Series(name, colour, tuple(together) if colour == OVER_ALL else tuple(found.get(name) for found in by_round))
        for name, colour in legend
    ]
    return tuple(one for one in named if any(value is not None for value in one.values))


def mean(values: Mapping[str, float | None]) -> float | None:
    """The mean of the values that there are."""
    known = [value for value in values.values() if value is not None]
    return math.fsum(known) / len(known) if known else None


def fairness(made: Mapping[str, Any], evaluated: Mapping[str, Any], legend: Legend) -> Section | None:
    """Each pod's test metrics against those of all; None where there are none."""
    by_pod, together = evaluated["by_pod"], evaluated["metrics"]
    if not by_pod:
        return None
    names = list(together)
    charts = tuple(
        Bars(
            name,
            tuple(Series(pod, colour, (by_pod[pod].get(name),)) for pod, colour in legend if pod in by_pod),
            together[name],
        )
        for name in names
    )
    return Section(
        "fairness",
        "Fairness of pods",
        words=(
            "The final model on each pod's own test rows. The dashed line is the metric over all test rows; the gap is"
            " what lies between the pods for which the model is best and worst.",
        ),
        charts=charts,
        tables=(fairness_table(made, evaluated, names),),
    )


def fairness_table(made: Mapping[str, Any], evaluated: Mapping[str, Any], names: Sequence[str]) -> Table:
    """A row a pod, one over all, and the gap."""
    by_pod, rows = evaluated["by_pod"], evaluated["rows_by_pod"]
    pods = [
        (
            pod,
            f"{made['rows_by_pod'].get(pod, {}).get('train', 0):,}",
            f"{rows.get(pod, 0):,}",
            *(figure(stats.get(name)) for name in names),
        )
        for pod, stats in sorted(by_pod.items())
    ]
    everything = (
        ALL_PODS,
        f"{made['rows']['train']:,}",
        f"{evaluated['rows']:,}",
        *(figure(evaluated["metrics"][name]) for name in names),
    )
    gaps = ("gap", "", "", *(figure(gap([stats.get(name) for stats in by_pod.values()])) for name in names))
    head = ("pod", "training rows", "test rows", *names)
    return Table(head, (*pods, everything, gaps), emphasis=2)


def gap(values: Sequence[float | None]) -> float | None:
    """Between the largest and the smallest value; None where fewer than two are defined."""
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else None


def comparison(values: Mapping[str, Any] | None) -> Section | None:
    """What federating was worth; None where nobody asked."""
    if values is None:
        return None
    names = list(values["federated"])
    rows = tuple(
        (who, *(figure(metrics.get(name)) for name in names)) if metrics else (who, *("not trained" for _ in names))
        for who, metrics in comparison_rows(values)
    )
    missing = tuple(f"{who} could not be trained: {reason}" for who, reason in values["missing"].items())
    return Section(
        "comparison",
        "Alone, federated, pooled",
        words=(
            "The same model, trained as long, tested on the test rows of all pods. For this alone the modeller's process"
            " read the rows of all of them.",
            *missing,
        ),
        tables=(Table(("trained on", *names), rows),),
    )


def participation(records: Sequence[RoundRecord], pods: Sequence[str]) -> Section | None:
    """Who took part in which round; None where nobody was asked."""
    if not records:
        return None
    steps = tuple(record.round_number for record in records)
    states = tuple(tuple(presence(pod, record) for record in records) for pod in pods)
    counts = tuple((pod, *(str(row.count(state)) for state in STATES)) for pod, row in zip(pods, states, strict=True))
    return Section(
        "participation",
        "Participation",
        charts=(Presence("Pods by round", "round", steps, tuple(pods), states),),
        legend=tuple(STATES.items()),
        tables=(Table(("pod", *STATES), counts),),
    )


def absences(records: Sequence[RoundRecord], made: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Section | None:
    """Why pods were missing; None where none was."""
    why = reasons(records, made, evaluated)
    if not why:
        return None
    more = (f"The first {REASONS_SHOWN} of {len(why)} reasons:",) if len(why) > REASONS_SHOWN else ()
    table = Table(("pod", "missing in", "because"), tuple(why[:REASONS_SHOWN]))
    return Section("reasons", "Why pods were missing", words=more, tables=(table,))


def presence(pod: str, record: RoundRecord) -> str:
    """What a pod did in a round; a key of `STATES`."""
    return "took part" if pod in record.pods else "missing" if pod in record.missing else "not asked"


def reasons(
    records: Sequence[RoundRecord], made: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """(pod, where it was missing, why), the same reason of a pod once."""
    places: dict[tuple[str, str], list[str]] = {}
    told = [("start", made["missing"]), *((f"round {record.round_number}", record.missing) for record in records)]
    for place, missing in [*told, ("evaluation", evaluated.get("missing", {}))]:
        for pod, reason in sorted(missing.items()):
            places.setdefault((pod, reason), []).append(place)
    return [(pod, span(found), reason) for (pod, reason), found in sorted(places.items())]


def span(places: Sequence[str]) -> str:
    """The first place, and how many more there are."""
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"


def timing(records: Sequence[RoundRecord], legend: Legend) -> Section | None:
    """Where the rounds' time went; None before the first round."""
    if not records:
        return None
    steps = tuple(record.round_number for record in records)
    parts = {
        "fit and the rest": [max(0.0, r.seconds - r.wait_seconds - r.aggregate_seconds) for r in records],
        "wait for pods": [r.wait_seconds for r in records],
        "aggregate": [r.aggregate_seconds for r in records],
    }
    colours = {name: 5 + place for place, name in enumerate(parts)}
    stack = Stack(
        "Seconds a round",
        "round",
        steps,
        tuple(Series(name, colours[name], tuple(values)) for name, values in parts.items()),
    )
    own = [(pod, colour) for pod, colour in legend if colour != OVER_ALL]
    fits = tuple(Series(pod, colour, tuple(r.fit_seconds.get(pod) for r in records)) for pod, colour in own)
    seen = tuple(one for one in fits if any(value is not None for value in one.values))
    total = [r.seconds for r in records]
    table = Table(
        ("part of a round", "all rounds", "mean", "longest"),
        (*(seconds_row(name, values) for name, values in parts.items()), seconds_row("round", total)),
        emphasis=1,
    )
    pods = tuple(seconds_row(one.name, [value for value in one.values if value is not None]) for one in seen)
    return Section(
        "timing",
        "Timing",
        words=(
            "Pods that run in the modeller's process train one after the other, in the first part; pods elsewhere train"
            " while it waits.",
        ),
        charts=(stack, *([Lines("Seconds of fit at each pod", "round", steps, seen)] if seen else [])),
        tables=(table, *([Table(("fit at", "all rounds", "mean", "longest"), pods)] if pods else [])),
    )


def seconds_row(name: str, values: Sequence[float]) -> tuple[str, str, str, str]:
    """Sum, mean and largest of some seconds; there is at least one."""
    total = math.fsum(values)
    return name, seconds_text(total), seconds_text(total / len(values)), seconds_text(max(values))


def privacy(
    records: Sequence[RoundRecord], federation: Mapping[str, Any], manifests: Mapping[str, Manifest]
) -> Section:
    """What left the pods, and what protects it."""
    noise = federation.get("privacy")
    told = any(record.by_pod[pod] for record in records for pod in record.by_pod)
    told = told or bool("evaluate" in manifests and manifests["evaluate"].values["by_pod"])
    own = federation.get("schema") is not None and federation.get("preparation") is not None
    left = ["updates", *(["metrics", "losses"] if told or noise is None else []), "counts"]
    left += [] if noise and own else ["names, types, categories and statistics of columns"]
    left += ["predictions with their keys"] if "predict" in manifests else []
    up = sum(record.bytes_up for record in records)
    sent = f"They sent {up:,} bytes of updates in {counted(len(records), 'round')}."
    if noise is None:
        return Section(
            "privacy",
            "Privacy",
            words=(
                "No noise was added, and updates travelled as they are: whoever reads the store sees each pod's own update,"
                " which is a function of its rows.",
                f"Pods answered with {', '.join(left)}; no rows. {sent} Statistics of a column left a pod only over at least"
                f" {federation['minimum_statistics_rows']} rows.",
            ),
        )
    unprotected = f" Without noise left {', '.join(left[1:])}."
    return Section(
        "privacy",
        "Privacy",
        words=(
            f"Each pod cut its update to a norm of {noise['clip']:g} and added Gaussian noise of standard deviation"
            f" {noise['clip'] * noise['noise_multiplier']:g} to each value before it left: differential privacy of each pod's"
            " rows as a whole, against whoever reads the store.",
            f"Pods answered with {', '.join(left)}; no rows. {sent}{unprotected}",
        ),
        tables=(spent_table(records),),
    )


def spent_table(records: Sequence[RoundRecord]) -> Table:
    """What each pod's updates have told, by the last round that it took part in."""
    last = {pod: spent for record in records for pod, spent in record.spent.items()}
    rows = tuple((pod, f"{spent.epsilon:.4g}", f"{spent.delta:g}") for pod, spent in sorted(last.items()))
    return Table(("privacy spent by", "epsilon", "delta"), rows)
