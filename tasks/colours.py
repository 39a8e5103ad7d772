"""The colours of curves, in plots, in reports and in MLflow's charts: a pod's is the same everywhere."""

from __future__ import annotations

COLOURS = ("#0b6fb8", "#d1495b", "#2e8b57", "#e69f00", "#7b52ab", "#3aafc4", "#8c564b", "#4f5b66", "#b5a000", "#d96ba0")
