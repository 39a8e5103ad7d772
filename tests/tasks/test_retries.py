"""What is worth another try, and what is not."""

from __future__ import annotations

import pytest
from requests.exceptions import ConnectionError as NoServer

from bitfount_model.errors import (
    BitfountError,
    ConfigurationError,
    DataError,
    DataSourceError,
    StorageError,
    TrackingError,
    TrainingError,
)
from tasks.retries import is_transient


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        TrackingError("MLflow is away"),
        ConnectionResetError("peer"),
        TimeoutError("slow"),
        NoServer("refused"),
        from_cause(DataSourceError("no database"), ConnectionRefusedError("port")),
        from_cause(StorageError("no bucket"), TimeoutError("slow")),
    ],
)
def test_a_service_that_did_not_answer_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("typo"),
        DataError("a NaN"),
        TrainingError("a bug"),
        BitfountError("else"),
        ValueError("a bug"),
        KeyError("a bug"),
        from_cause(StorageError("full"), OSError(28, "No space left on device")),
        from_cause(TrainingError("a bug"), AttributeError("nothing")),
    ],
)
def test_bad_data_bad_settings_and_bugs_are_not(error: Exception) -> None:
    assert not is_transient(error)
