"""Predictions as a folder of Parquet files; each file is whole or not there, and named by its first row."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bitfount_model.errors import ConfigurationError, IntegrityError, StorageError
from bitfount_model.files import create_atomically, write_atomically
from tasks.batch.plan import KEY, Plan, Progress, plan_of, plan_to_json
from tasks.initialise import as_json
from tasks.results import to_parquet

PLAN = "_prediction.json"
"""What the files of a folder are of. Readers of folders of Parquet files pass over names that begin so."""
FINISHED = "_finished"


class PartFolder:
    """A folder of predictions, each a folder of Parquet files.

    Args:
        folder: holds `<prediction id>/part-<first row>.parquet`; it can be read as one table.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self) -> str:
        """The path."""
        return str(self.folder)

    def progress(self, prediction_id: str) -> Progress | None:
        """Looks at the files that are there."""
        folder = self.folder / prediction_id
        try:
            if not (folder / PLAN).is_file():
                return None
            plan = plan_of((folder / PLAN).read_bytes(), str(folder / PLAN))
            rows, last = _kept(folder)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise StorageError(f"cannot read the predictions in {folder}: {error}") from error
        return Progress(plan, rows, _last_key(last), (folder / FINISHED).is_file())

    def begin(self, plan: Plan) -> None:
        """Writes what the files are of."""
        write_atomically(self._path(plan, PLAN), as_json(plan_to_json(plan)))

    def write(self, plan: Plan, start: int, table: pd.DataFrame) -> None:
        """Makes a file, whole or not at all, and none that is there already."""
        path, content = self._path(plan, part_name(start)), to_parquet(table)
        try:
            was_made = create_atomically(path, content) or path.read_bytes() == content
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror}; free some space or make the folder writable, and start again"
            ) from error
        if not was_made:
            raise ConfigurationError(
                f"the prediction {plan.prediction_id!r} is written by another process too; wait for it to end"
            )

    def finish(self, plan: Plan) -> None:
        """Leaves a mark, and removes what a killed process was writing."""
        write_atomically(self._path(plan, FINISHED), json.dumps({"rows": plan.rows}).encode())
        for left in (self.folder / plan.prediction_id).glob(".*.part"):
            left.unlink(missing_ok=True)

    def _path(self, plan: Plan, name: str) -> Path:
        return self.folder / plan.prediction_id / name


def part_name(start: int) -> str:
    """The name of the file whose first row is at this place of the source."""
    return f"part-{start:012d}.parquet"


def _kept(folder: Path) -> tuple[int, Path | None]:
    """How many rows the files hold from the first one on, and the last of these files."""
    import pyarrow.parquet as pq

    rows, last = 0, None
    while (path := folder / part_name(rows)).is_file():
        rows, last = rows + pq.read_metadata(path).num_rows, path
    if any(other.name > path.name for other in folder.glob("part-*.parquet")):
        raise IntegrityError(
            f"{path} is missing, and later ones are there: put it back, or use another --prediction-id"
        )
    return rows, last


def _last_key(path: Path | None) -> str | None:
    return None if path is None else str(pd.read_parquet(path, columns=[KEY])[KEY].iloc[-1])
