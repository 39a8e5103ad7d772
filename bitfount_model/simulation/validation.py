"""Global parameters on the held-out rows of a simulated job -> one value a metric, without a Trainer."""

from __future__ import annotations

import torch

from bitfount_model.epoch_end_hooks import StepOutputs, rows_of
from bitfount_model.metrics import MetricCollection
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.reporting import flatten_outputs
from bitfount_model.simulation.slim_fit import unlogged


def validated(model: PyTorchBitfountModel, metrics: MetricCollection) -> dict[str, float]:
    """The metrics of the model's validation rows, as a fit computes them after an epoch.

    Of the model, `validation_step` and `validation_epoch_end` are called, and `test_step` where the former gives no predictions;
    hooks of Lightning are not.

    Args:
        model: with the parameters to validate; they are left as they are.
        metrics: beside what `validation_step` returns.

    Returns:
        Name -> value; empty without validation rows.
    """
    if model.validation_dl is None:
        return {}
    outputs, predictions = StepOutputs(), StepOutputs()
    model.val_stats.clear()
    model.eval()
    with torch.no_grad(), unlogged(model):
        for index, batch in enumerate(model.val_dataloader()):
            output = model.validation_step(batch, index)
            given = output if isinstance(output, dict) and "predictions" in output else model.test_step(batch, index)
            if output is not None:
                outputs.add(output, rows_of(batch))
            if isinstance(given, dict):
                given = {name: given[name] for name in ("predictions", "targets") if name in given}
            predictions.add(given, rows_of(batch))
        model.validation_epoch_end(outputs)
    found = dict(model.val_stats[-1]) if model.val_stats else {}
    preds, targets = flatten_outputs(predictions)
    return {**found, **metrics.compute(targets, preds)}
