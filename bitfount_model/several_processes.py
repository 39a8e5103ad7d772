"""A fit over several processes of one machine, as a model's `trainer_init` may ask for: whose batches are whose, what comes back.

Lightning starts the processes and averages their gradients. Step k of a fit in n processes trains on batches k n to k n + n - 1 of
the epoch's order, one in each process: with a loss that is a mean over rows, what one process does whose batches have n times
the rows, where those of the epoch divide by that. Otherwise the first batches of the epoch fill up the last step.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from bitfount_model.data import BaseLoader
from bitfount_model.errors import ConfigurationError


def require_one_process(trainer: pl.Trainer, who: str) -> None:
    """Refuses a Trainer of several processes where a model trains in one.

    Args:
        trainer: that the model's `trainer_init` gave.
        who: trains, for the message.

    Raises:
        ConfigurationError: it has several.
    """
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"{who} train in one process, and the model's trainer_init asks for {trainer.world_size}: give it devices=1"
        )


def require_forks(trainer: pl.Trainer) -> None:
    """Refuses a Trainer whose processes cannot begin within a job: those that run its command again, or import its model.

    Raises:
        ConfigurationError: it is one.
    """
    launcher = trainer.strategy.launcher
    if launcher is None or is_fork(launcher):
        return
    what = (
        "run the whole command again" if isinstance(launcher, _SubprocessScriptLauncher) else "import the model by name"
    )
    raise ConfigurationError(
        f"the model's trainer_init asks for {trainer.world_size} processes that {what}, which a job cannot:"
        " give it strategy='ddp_fork', or devices=1"
    )


def starts_processes(trainer: pl.Trainer) -> bool:
    """Whether a fit runs in processes that end with it, while this one waits."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


@contextmanager
def handed_over(trainer: pl.Trainer) -> Iterator[Path | None]:
    """A file for what a process that ends with the fit has to say; None where the fit runs in this one."""
    if not starts_processes(trainer):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bitfount-fit-") as folder, ending_at_once(trainer.strategy.launcher):
        yield Path(folder) / "course.json"


@contextmanager
def ending_at_once(launcher: Any) -> Iterator[None]:
    """Processes that are forked end as soon as they have said their result.

    What Python does at the end of a process is for the one that they came from: it waits for threads which are not in them.

    Args:
        launcher: Lightning's; one that does not fork is left as it is.
    """
    if not is_fork(launcher):
        yield
        return
    run = launcher._wrapping_function

    def run_and_end(*arguments: Any) -> None:
        run(*arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    launcher._wrapping_function = run_and_end
    try:
        yield
    finally:
        del launcher._wrapping_function  # the class's own is there again


def is_fork(launcher: Any) -> bool:
    """Whether Lightning's launcher forks this process."""
    return isinstance(launcher, _MultiProcessingLauncher) and launcher._start_method == "fork"


class ShareOfBatches:
    """The batches of one process among several: every n-th of an epoch, as many in each process.

    Args:
        loader: of all batches; the same in every process.
        trainer: says which process this is, once it has begun.
    """

    def __init__(self, loader: BaseLoader, trainer: pl.Trainer) -> None:
        self.loader = loader
        self._trainer = trainer

    def __len__(self) -> int:
        return math.ceil(len(self.loader) / self._trainer.world_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, batches, processes = self.loader.epoch, len(self.loader), self._trainer.world_size
        self.loader.epoch += 1
        missing = len(self) * processes - batches  # fewer than there are processes
        again = [range(min(missing - filled, batches)) for filled in range(0, missing, batches)]
        numbered = chain.from_iterable(
            self.loader.read_batches(epoch, part.start, part.stop) for part in (range(batches), *again)
        )
        yield from islice(numbered, self._trainer.global_rank, None, processes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.loader.set_epoch(epoch)
