"""Training without the trainer's messages, among the rows of a benchmark."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Only warnings of Lightning are told inside."""
    loggers = [logging.getLogger(name) for name in NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
