"""Which version of a registered model is in use: the aliases `champion` and `challenger`, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bitfount_model.errors import ModelFileError
from tasks.mlflow_client import connect, tracking_errors, with_password

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

Found = TypeVar("Found")

CHAMPION = "champion"
"""The alias of the version in use."""
CHALLENGER = "challenger"
"""The alias of the newest version that is not in use."""
EARLIER = "bitfount.earlier_champions"
"""A registered model's tag: JSON list of the versions that were champions before, oldest first."""
LONGEST_MEMORY = 100


def promote(tracking_uri: str, name: str, version: int) -> int | None:
    """Makes a version the champion; the one before is remembered. Done again, it changes nothing.

    Args:
        tracking_uri: of the MLflow that holds the registry.
        name: of the registered model.
        version: its number.

    Returns:
        The champion before, None if there was none.

    Raises:
        ModelFileError: there is no such model or version.
        TrackingError: MLflow cannot be reached.
    """
    uri = with_password(tracking_uri)
    with tracking_errors(uri):
        model = _model(uri, name)
        _require_version(uri, name, version)
        now = champion_of(model)
        if now == version:
            earlier = earlier_of(model)
            return earlier[-1] if earlier else None
        # The memory first, in the way back last: `earlier_of` makes good what a kill in between leaves.
        _remember(uri, name, [*earlier_of(model), *([] if now is None else [now])])
        _use(uri, model, version)
        return now


def roll_back(tracking_uri: str, name: str) -> tuple[int, int]:
    """Makes the champion before the champion again.

    Returns:
        The version that was the champion, and the one that is.

    Raises:
        ModelFileError: there is no such model, or none was champion before.
        TrackingError: MLflow cannot be reached.
    """
    uri = with_password(tracking_uri)
    with tracking_errors(uri):
        model = _model(uri, name)
        now, earlier = champion_of(model), earlier_of(model)
        if now is None or not earlier:
            raise ModelFileError(
                f"the registered model {name!r} has no champion before {'this one' if now else 'now'}: there is nothing to"
                " go back to. Name a version with `bitfount-flows models promote`."
            )
        _use(uri, model, earlier[-1])
        _remember(uri, name, earlier[:-1])
        return now, earlier[-1]


def champion_of(model: RegisteredModel) -> int | None:
    """The version in use, if there is one."""
    version = model.aliases.get(CHAMPION)
    return None if version is None else int(version)


def earlier_of(model: RegisteredModel) -> list[int]:
    """The versions that were champions before this one, oldest first."""
    earlier = [int(version) for version in json.loads(model.tags.get(EARLIER, "[]"))]
    while earlier and earlier[-1] == champion_of(model):
        earlier.pop()
    return earlier


def _remember(uri: str, name: str, earlier: list[int]) -> None:
    connect(uri).set_registered_model_tag(name, EARLIER, json.dumps(earlier[-LONGEST_MEMORY:]))


def _use(uri: str, model: RegisteredModel, version: int) -> None:
    client = connect(uri)
    client.set_registered_model_alias(model.name, CHAMPION, str(version))
    if model.aliases.get(CHALLENGER) == str(version):
        client.delete_registered_model_alias(model.name, CHALLENGER)


def _model(uri: str, name: str) -> RegisteredModel:
    return _asked(lambda: connect(uri).get_registered_model(name), f"the registry has no model {name!r}")


def _require_version(uri: str, name: str, version: int) -> None:
    _asked(lambda: connect(uri).get_model_version(name, str(version)), f"the model {name!r} has no version {version}")


def _asked(question: Callable[[], Found], absent: str) -> Found:
    from mlflow.exceptions import MlflowException

    try:
        return question()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ModelFileError(f"{absent}; `bitfount-flows models list` shows what there is") from error
