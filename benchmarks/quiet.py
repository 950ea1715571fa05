"""Training without the messages of the trainer, for benchmarks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """A context in which Lightning logs only warnings."""
    loggers = [logging.getLogger(name) for name in NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
