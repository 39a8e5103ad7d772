"""The records of a local job's epochs, kept as they come while it trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def append_epoch(path: Path, record: Mapping[str, Any]) -> None:
    """Adds an epoch's record to the file of a job that trains; where it cannot be written, training matters more."""
    # Begins with a line's end as well: a kill may have left half a line.
    with suppress(OSError), path.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{json.dumps(record)}\n")


def parsed_epochs(text: str) -> list[dict[str, Any]]:
    """The records in such a file, in order.

    A line that a kill cut short is left out. After a kill an epoch may be there twice: training went on from the later one.
    """
    records: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records[record["epoch"]] = record
    return [records[epoch] for epoch in sorted(records)]
