"""`model.fit(pod_identifiers=[...])` and its like: the entry points that the library finds, light until they are called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import prepare

if TYPE_CHECKING:
    import numpy as np

    from bitfount_model import PyTorchBitfountModel


def fit(model: PyTorchBitfountModel, pod_identifiers: list[str], **kwargs: Any) -> dict[str, str]:
    """Trains over pods: see `flows.model_jobs.fit`."""
    prepare(home_of(kwargs), verbose=False)
    from flows import model_jobs

    return model_jobs.fit(model, pod_identifiers, **kwargs)


def evaluate(model: PyTorchBitfountModel, pod_identifiers: list[str], **kwargs: Any) -> dict[str, float]:
    """Evaluates on pods: see `flows.model_jobs.evaluate`."""
    prepare(home_of(kwargs), verbose=False)
    from flows import model_jobs

    return model_jobs.evaluate(model, pod_identifiers, **kwargs)


def predict(model: PyTorchBitfountModel, pod_identifiers: list[str], **kwargs: Any) -> dict[str, list[np.ndarray]]:
    """Predicts on pods: see `flows.model_jobs.predict`."""
    prepare(home_of(kwargs), verbose=False)
    from flows import model_jobs

    return model_jobs.predict(model, pod_identifiers, **kwargs)


def home_of(options: dict[str, Any]) -> Path:
    """The folder of jobs."""
    return Path(options.get("home") or os.environ.get("BITFOUNT_HOME") or "bitfount_runs")
