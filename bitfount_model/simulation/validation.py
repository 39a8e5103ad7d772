"""Global parameters on the held-out rows of a simulated job -> one value a metric, without a Trainer."""

from __future__ import annotations

from bitfount_model.metrics import MetricCollection
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.slim_fit import unlogged, validate


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
    model.val_stats.clear()
    with unlogged(model):
        validate(model, metrics)
    return dict(model.val_stats[-1]) if model.val_stats else {}
