"""Prepared data on disk, made once however many processes want them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def user_cache(*names: str) -> Path:
    """A folder in the cache of the user, which is there afterwards."""
    user = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = user.joinpath("plstm", *names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_once(final: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder unless it is there; one process makes it, the others wait.

    What an interrupted process left half made is never taken for the folder, and made anew.

    Args:
        final: The folder; the one around it is there.
        fill: Writes the files into the folder it is called with, which becomes `final`.
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
