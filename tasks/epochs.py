"""The records of a local job's epochs: kept as they come while it trains, and as one file when it has been trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.store import Store, read_file, read_manifest

EPOCHS = "scratch/epochs.jsonl"
"""A line an epoch. After a kill an epoch may be there twice: the later line is the one that training went on from."""


def append_epoch(path: Path, record: Mapping[str, Any]) -> None:
    """Adds an epoch's record to the file of a job that trains."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def read_epochs(store: Store) -> list[dict[str, Any]]:
    """The records so far, in order.

    Raises:
        StorageError: they cannot be read.
    """
    fitted = read_manifest(store, "fit")
    if fitted is not None:
        return list(json.loads(read_file(store, fitted, "history")))
    return parsed_epochs((store.find(EPOCHS) or b"").decode(errors="replace"))


def parsed_epochs(text: str) -> list[dict[str, Any]]:
    """The records in the lines of a job that trains; a line that a kill cut short is left out."""
    records: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            records[record["epoch"]] = record
    return [records[epoch] for epoch in sorted(records)]
