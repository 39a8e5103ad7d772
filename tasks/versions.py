"""The versions of what decides a model's bits and where they are kept."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "pandas", "scikit-learn", "prefect", "mlflow")


def installed_versions() -> dict[str, str]:
    """Package -> version, Python first."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
