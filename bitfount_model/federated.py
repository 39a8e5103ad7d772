"""Where the model's `pod_identifiers=[...]` leave the library: for whatever package runs jobs over pods."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from bitfount_model.errors import ConfigurationError

if TYPE_CHECKING:
    from bitfount_model.model import PyTorchBitfountModel

GROUP = "bitfount_model.federated"


def run_federated(operation: str, model: PyTorchBitfountModel, pod_identifiers: list[str], **options: Any) -> Any:
    """Runs `fit`, `evaluate` or `predict` over pods, by the installed entry point of that name.

    Args:
        operation: `fit`, `evaluate` or `predict`.
        model: the modeller's model.
        pod_identifiers: which pods take part, at least one, each once.
        options: what the caller gave beside.

    Raises:
        ConfigurationError: no pods, a pod named twice, or nothing installed that reaches pods.
    """
    if not pod_identifiers or len(set(pod_identifiers)) != len(pod_identifiers):
        raise ConfigurationError(f"pod_identifiers must name one pod or more, each once; got {pod_identifiers!r}")
    runners = entry_points(group=GROUP, name=operation)
    if not runners:
        raise ConfigurationError(
            f"{operation} with pod_identifiers needs a package that reaches pods (entry point group {GROUP!r}); none is"
            " installed. Give data instead to work on this machine."
        )
    return next(iter(runners)).load()(model, pod_identifiers, **options)
