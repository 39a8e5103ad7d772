"""Rows never leave: values that are nowhere else in the world are planted in them, and looked for in all that others can see."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.federated.conftest import Train
from tests.flows.federated.site import Site, rows_of

NUMBER = 17.123456789012345
"""In a feature of the first row."""
KEY = "patient-sentinel-4711"
NOTE = "note-sentinel-0815"

TRACES = {
    "number as text": str(NUMBER).encode()[:12],
    "number as float64": struct.pack("<d", NUMBER),
    "number as float32": struct.pack("<f", NUMBER),
    "key": KEY.encode(),
    "note": NOTE.encode(),
}


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, prefect_url: str) -> Iterator[Site]:
    """Two served pods whose rows hold what must stay; one of them lets errors leave."""
    site = Site(tmp_path_factory.mktemp("private"), names=("eve", "fay"))
    for name, rows in zip(site.names, rows_of(2), strict=True):
        rows.insert(0, "patient", [f"{KEY}-{name}-{place}" for place in range(len(rows))])
        rows["notes"] = [f"{NOTE}-{name}-{place}" for place in range(len(rows))]
        rows.loc[0, "mean_radius"] = NUMBER
        rows.to_csv(site.folder / f"{name}.csv", index=False)
        site.write_pod(name, data={"csv": f"{name}.csv", "key": "patient"})
    site.serve(*site.names)
    yield site
    site.stop(*site.names)


def found_in(paths: list[Path]) -> list[tuple[str, str]]:
    """(which trace, in which file)."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    assert files
    return [(name, str(file)) for file in files for name, trace in TRACES.items() if trace in file.read_bytes()]


@pytest.mark.parametrize("outcome", ["it ends well", "a pod raises with a row in its message"])
def test_nothing_of_a_row_is_seen_by_others(private: Site, train: Train, home: Path, outcome: str) -> None:
    fails = outcome != "it ends well"
    private.clear()
    if fails:
        private.raises("eve", 2)
    job = private.write_job(
        deployed=True,
        datastructure={"target": "target", "ignore_cols": ["notes"]},
        federation={"quorum": 2, "deadline_seconds": 60},
    )

    ended = train(job, job_id="fails" if fails else "works")

    assert ended.code == (7 if fails else 0), ended
    database = Path(os.environ["PREFECT_HOME"]).parent
    said = home / "said.txt"
    said.write_text(ended.out + ended.err)
    assert found_in([home, private.store, *database.glob("prefect*.db*"), *database.glob("server.log")]) == []
    if fails:
        assert "ValueError in the model or below it" in ended.err
        assert "its text, which may hold values, is in the pod's own log" in ended.err
        assert {"number as text", "note"} <= {name for name, _ in found_in([private.log("eve")])}
    assert {name for name, _ in found_in([private.folder / "eve.csv"])} >= {"number as text", "key", "note"}


def test_an_owner_may_let_errors_leave(site: Site, train: Train, home: Path) -> None:
    site.write_pod("ann", policy={"errors_may_leave": True})
    site.raises("ann", 1)
    job = site.write_job(deployed=False, federation={"quorum": 2})

    ended = train(job)

    assert ended.code == 0, ended
    reason = ended.summary["pods"]["ann"]["missing"]["round 1"]
    assert "ValueError: cannot go on with the row of" in reason
    assert 'File "' in reason and "on_train_start" in reason
