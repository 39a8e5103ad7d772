"""Where a pod's owner reads what went wrong there, with all texts and tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.federated.pod_worker import POD_LOGGER

FORMAT = "%(asctime)s  %(message)s"


@contextmanager
def pod_log(handler: logging.Handler) -> Iterator[None]:
    """Sends the log of pods in this process to one place, and nowhere else."""
    logger = logging.getLogger(POD_LOGGER)
    handler.setFormatter(logging.Formatter(FORMAT))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        handler.close()
