"""What computes the shares of a simulated round: this process, processes beside it, or a cluster; each share is a task."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Barrier
from typing import Any

from bitfount_model.types import JSON
from tasks.simulation.rounds import Work
from tasks.simulation.sums import share_trained
from tasks.step import step
from tasks.store import Reference

NAME, RUN_NAME = "train clients", "round {round_number}: chunks from {first} to {stop}"
STARTING_SECONDS = 120
"""After which a worker waits no more for others that are starting."""
Train = Callable[[str, int, JSON, int, int], JSON]

train_clients = step(NAME, RUN_NAME)(share_trained)
"""The step, as a task: see `share_trained`."""

_all_here: Barrier | None = None  # of a worker: where it waits for the others


@contextmanager
def workers_for(store_url: str, workers: int, dask: str | None) -> Iterator[Work]:
    """How the clients of a round are trained, for as long as the block.

    Args:
        store_url: the job's store.
        workers: how many tasks share a round.
        dask: whether the flow's own task runner reaches a cluster; None takes processes of this machine.
    """
    if dask is not None:
        yield _sent(train_clients.submit, store_url)
    elif workers == 1:
        yield _done(train_clients, store_url)
    else:
        start = multiprocessing.get_context("spawn")
        all_here = start.Barrier(workers)
        with ProcessPoolExecutor(workers, mp_context=start, initializer=_as_worker, initargs=(all_here,)) as pool:
            # They start, and import, before the first round and not within it.
            for ready in [pool.submit(_wait_for_others) for _ in range(workers)]:
                ready.result()

            def beside(store_url: str, round_number: int, weights: JSON, first: int, stop: int) -> JSON:
                return pool.submit(share_trained, store_url, round_number, weights, first, stop).result()

            yield _sent(step(NAME, RUN_NAME)(beside).submit, store_url)


def _done(train: Train, store_url: str) -> Work:
    """One share after the other, in this thread."""

    def work(number: int, weights: Reference, parts: list[range]) -> list[Reference]:
        return [Reference(**train(store_url, number, vars(weights), part.start, part.stop)) for part in parts]

    return work


def _sent(submit: Callable[..., Any], store_url: str) -> Work:
    """All shares at once."""

    def work(number: int, weights: Reference, parts: list[range]) -> list[Reference]:
        sent = [submit(store_url, number, vars(weights), part.start, part.stop) for part in parts]
        return [Reference(**each.result()) for each in sent]

    return work


def _wait_for_others() -> None:
    """What a worker does first, so that none takes the turn of one that is still starting."""
    if _all_here is not None:
        with suppress(threading.BrokenBarrierError):  # one takes very long: the others begin
            _all_here.wait(STARTING_SECONDS)


def _as_worker(all_here: Barrier) -> None:
    """A worker ends with the process that started it, however that ends, and leaves Ctrl-C to it."""
    global _all_here  # noqa: PLW0603 - the one thing that a pool lets its processes inherit
    _all_here = all_here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
