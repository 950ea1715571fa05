"""A lock, so that one process at a time writes to the folder of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

LOCK = "run.lock"
WAIT = 15.0  # seconds; data-loading processes may outlive a killed run


class RunInUse(OSError):
    """Another process is training this run."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder of a run; held by the first rank.

    Raises:
        RunInUse: another process is training there.
    """
    if rank_zero_only.rank != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder)
    except Timeout:
        raise RunInUse(
            f"only_writer: another process is training the run {folder}; wait until it ends, or "
            "stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rank_zero_info(f"Another process uses {folder}; waiting up to {WAIT:.0f} seconds for it")
        lock.acquire(timeout=WAIT)
