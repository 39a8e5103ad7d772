"""The model's constructor arguments, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitfount_model.errors import ConfigurationError


def check_positive(name: str, value: Any) -> None:
    """Raises ConfigurationError unless the value is an integer of at least 1 (and no bool)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be an integer of at least 1, got {value!r}")


def check_model_arguments(*, batch_size: Any, epochs: Any, steps: Any, seed: Any) -> None:
    """Raises ConfigurationError (a ValueError) for the first argument that is not what it must be."""
    if (epochs is None) == (steps is None):
        found = "neither" if epochs is None else f"both (epochs={epochs!r}, steps={steps!r})"
        raise ConfigurationError(f"give one and only one of epochs and steps; got {found}")
    check_positive("batch_size", batch_size)
    if epochs is not None:
        check_positive("epochs", epochs)
    if steps is not None:
        check_positive("steps", steps)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ConfigurationError(f"seed must be None or an integer of at least 0, got {seed!r}")


def check_no_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for keyword arguments that only mean something with pods."""
    if options:
        raise ConfigurationError(
            f"{method} on local data takes no {', '.join(sorted(options))}; such keywords go with pod_identifiers"
        )
