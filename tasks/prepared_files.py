"""Prepared data on disk, created once by one of several processes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def user_cache(*names: str) -> Path:
    """Create a folder in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = user.joinpath("plstm", *names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_once(final: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder unless it exists; one process creates it, the others wait.

    A folder that an interrupted process left incomplete is discarded and created again.

    Args:
        final: The folder; its parent exists.
        fill: Writes the files into a temporary folder, which then becomes `final`.
    """
    if final.exists():
        return
    with FileLock(final.parent / "preparing.lock"):
        if not final.exists():
            partial = final.with_name(f"{final.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            partial.rename(final)
