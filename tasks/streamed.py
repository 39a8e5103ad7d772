"""Whether a job's rows are streamed rather than held in memory, and the folder that its encoded rows are kept in meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from bitfount_model.data import DataStructure, StreamedTable, kept_rows
from bitfount_model.errors import DataSourceError, StorageError
from tasks.job import LocalJob, source_of
from tasks.store import Store, local_path

STREAMED_BYTES = 1 << 30
"""With `stream: auto`, rows that take more than this are streamed: a limit of the rows, not of the machine, so that a job trains
alike wherever it runs."""


def is_streamed(job: LocalJob) -> bool:
    """Whether the job asks for it, or leaves it open and has very many rows that can be read in chunks.

    A job that registers its model holds its rows unless it says otherwise: later rows are compared with a profile of them.

    Raises:
        DataSourceError: the rows cannot be read.
    """
    asked = job.data.get("stream", "auto")
    if asked != "auto":
        return bool(asked)
    structure = DataStructure(**job.datastructure)
    if structure.image_cols or job.register is not None:
        return False
    try:
        return source_of(job).held_bytes(structure.table_for(None), structure.query_for(None)) > STREAMED_BYTES
    except DataSourceError:
        return False  # reading says what is wrong


def streamed_table(job: LocalJob) -> StreamedTable:
    """The job's rows in chunks."""
    return StreamedTable(source_of(job), DataStructure(**job.datastructure))


def rows_folder(store: Store) -> Path:
    """Where the job's encoded rows are while it trains: in its own folder."""
    return local_path(store, "scratch/rows")


def streamed_digest(store: Store) -> str:
    """The digest of the rows that are kept.

    Raises:
        StorageError: there are none.
    """
    kept = kept_rows(rows_folder(store))
    if kept is None:
        raise StorageError(f"there are no encoded rows in {rows_folder(store)}; run the job again to make them anew")
    return kept.digest


def forget_rows(store: Store) -> None:
    """Removes the encoded rows of a job that needs them no more; they can be made again from their source."""
    shutil.rmtree(rows_folder(store), ignore_errors=True)
