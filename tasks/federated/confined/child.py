"""The process that a model runs in: does what its pod asks, one thing after the other, until the pod has gone.

Knows no Prefect, no store and no secret. What it says is not believed: see `tasks.federated.confined.messages`.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import math
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import ClassVar

import pandas as pd
import torch

from bitfount_model import BaseSource, BitfountSchema, codec
from bitfount_model.batch_progress import BatchCount
from bitfount_model.data import Preparation, digest
from bitfount_model.data.table_bytes import table_from_bytes
from bitfount_model.federation.job import job_from_json
from bitfount_model.federation.pod import Pod
from bitfount_model.federation.pod_session import PodSession
from bitfount_model.federation.policy import PodPolicy
from bitfount_model.types import JSON
from tasks.federated.confined.channel import Channel, Message
from tasks.federated.confined.messages import MAX_TRACE
from tasks.federated.messages import MAX_REASON
from tasks.job import SPLITTERS
from tasks.memory import freed_memory_kept, garbage_left_at_exit

FROM_POD = 2**62
"""What the pod sends may be as long as it is: it is the owner's own."""
ALL = PodPolicy("all", 1, sys.maxsize, sys.maxsize, sys.maxsize, 1, models="all", predictions_may_leave=True)
"""The pod has held the job against its policy before it came here."""
MET_BY_NUMBER = {
    errno.EAGAIN: "processes",
    errno.EFBIG: "file size",
    errno.ENOSPC: "file size",
    errno.EMFILE: "open files",
    errno.EROFS: "file system",
    errno.ENETUNREACH: "network",
    errno.ENETDOWN: "network",
    errno.EADDRNOTAVAIL: "network",
}
Answer = tuple[JSON, Sequence[memoryview]]
"""A header, and a body in pieces that follow each other."""
ALLOCATION_FAILED = ("can't allocate memory", "out of memory", "Cannot allocate memory")


class HandedRows(BaseSource):
    """The pod's rows, as it has read them."""

    takes_query: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.frame = pd.DataFrame()

    def describe(self) -> dict[str, str]:
        """Their number."""
        return {"kind": "handed", "rows": str(len(self.frame))}

    def _load(self, table: str | None, query: str | None) -> pd.DataFrame:
        return self.frame


class Answers:
    """Does what the pod asks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rows = HandedRows()

    def answer(self, asked: Message) -> Answer:
        """A header and bytes for one thing that is asked."""
        arguments = dict(asked.header)
        call = getattr(self, f"do_{arguments.pop('call')}")
        answer: Answer = call(asked.body, **arguments)
        return answer

    def do_open(self, body: memoryview, job: JSON, pod: str, splitter: JSON) -> Answer:
        """Runs the model's source, which is the body."""
        asked = job_from_json(job)
        torch.set_num_threads(asked.threads)
        ((kind, arguments),) = splitter.items()
        here = Pod(pod, self._rows, ALL, SPLITTERS[kind](**arguments))
        self._session = PodSession(here, asked, bytes(body))
        return {"classifier": self._session.model_is_classifier}, ()

    def do_prepare(self, body: memoryview, schema: str, preparation: JSON) -> Answer:
        """Builds the model for the rows, which are the body."""
        self._rows.frame = table_from_bytes(bytes(body))
        self._session.prepare(BitfountSchema.loads(schema), Preparation.from_json(preparation))
        trainable = sorted(self._session.trainable)
        return {"rows": digest(self._rows.frame), "trainable": trainable}, codec.pieces(self._session.parameters)

    def do_fit(self, body: memoryview, round_number: int, base_digest: str) -> Answer:
        """Trains from the parameters, which are the body."""

        def on_batch(count: BatchCount) -> None:
            self._channel.send({"batch": asdict(count)})

        parameters = codec.decode(body, in_place=True).params
        update = self._session.fit(round_number, parameters, base_digest=base_digest, on_batch=on_batch)
        loss = update.train_loss if update.train_loss is not None and math.isfinite(update.train_loss) else None
        header = {"weight": update.weight, "metrics": update.metrics.to_json(), "train_loss": loss}
        return {**header, "seconds": update.seconds}, codec.pieces(update.delta)

    def do_evaluate(self, body: memoryview) -> Answer:
        """Applies the parameters, which are the body, to the test rows."""
        return {"metrics": self._session.evaluate(codec.decode(body).params).to_json()}, ()

    def do_predict(self, body: memoryview) -> Answer:
        """Applies the parameters, which are the body, to all rows."""
        result = self._session.predict(codec.decode(body).params)
        return {}, codec.pieces({"predictions": torch.as_tensor(result.preds)})


def main(descriptor: int, shared: int) -> None:
    """Answers until the pod has gone."""
    garbage_left_at_exit()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    channel = Channel(socket.socket(fileno=descriptor), shared, trusting=True)
    answers = Answers(channel)
    while (asked := channel.receive(FROM_POD, FROM_POD)) is not None:
        try:
            header, body = answers.answer(asked)
        except BaseException as error:
            channel.send({"error": told(error)})
        else:
            channel.send({"answer": header}, body)


def told(error: BaseException) -> JSON:
    """An error as the pod takes it."""
    met = next((found for each in chain(error) if (found := met_by(each))), None)
    return {
        "kinds": [cls.__name__ for cls in type(error).__mro__][:100],
        "text": str(error)[:MAX_REASON],
        "trace": "".join(traceback.format_tb(error.__traceback__))[-MAX_TRACE:],
        "met": met,
        "transient": isinstance(error, OSError) and met is None,
    }


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def met_by(error: BaseException) -> str | None:
    """Which limit an error seems to have met; a key of `messages.MET`."""
    if isinstance(error, MemoryError) or any(text in str(error) for text in ALLOCATION_FAILED):
        return "memory"
    if "can't start new thread" in str(error):
        return "processes"
    if isinstance(error, socket.gaierror):
        return "network"
    return MET_BY_NUMBER.get(error.errno or 0) if isinstance(error, OSError) else None


if __name__ == "__main__":
    try:
        with freed_memory_kept():
            main(*map(int, sys.argv[1:]))
    except ConnectionError:
        os._exit(0)  # the pod has gone, and whatever the model still runs goes with it
