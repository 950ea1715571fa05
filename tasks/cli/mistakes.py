"""User errors, and their one-line messages."""

import re
import sys
import sysconfig
import traceback
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

import plstm
from tasks.callbacks.guard import NotFinite
from tasks.supervised import is_out_of_memory

# User errors; other errors are bugs and are shown with their traceback.
MISTAKES = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException, NotFinite)
ROOT = Path(__file__).parents[2]
INSTALLED = {Path(sysconfig.get_path(x)) for x in ("stdlib", "platstdlib", "purelib", "platlib")}
OURS = {Path(plstm.__file__).parent, ROOT / "tasks", ROOT / "train.py"}
LIGHTNING = Path(lightning.__file__).parent


def explain_error(error: Exception) -> str | None:
    """A one-line message for a user error, None for another error.

    User errors are invalid values, missing files and similar errors anywhere, errors of Lightning
    and wandb, and running out of memory. If the traceback passes through code that is neither ours
    nor installed, the line has the location, since the error may be in that code.
    """
    chain = _causes(error)
    if is_out_of_memory(error):
        return (
            f"out of memory: {_first_line(error)}; use a smaller data.batch_size with "
            "trainer.accumulate_grad_batches, a smaller net, or "
            "--trainer.precision bf16-mixed"
        )
    if _is_of_wandb(error):
        return (
            f"wandb: {_first_line(error)} (WANDB_MODE=offline keeps the run on this machine, "
            "--trainer.logger CSVLogger does not use wandb)"
        )
    if isinstance(error, RuntimeError) and _raised_in(error, LIGHTNING):
        return _first_line(error)
    if not isinstance(error, MISTAKES):
        return None
    framed = re.search(r"^Errors:\n  - (.*)$", str(error), re.MULTILINE)  # by jsonargparse
    if framed and not isinstance(chain[-1], MISTAKES):
        return None  # a bug in a constructor, which jsonargparse reports as an invalid value
    message = framed[1] if framed else str(error) or repr(error)
    place = next((found for x in reversed(chain) if (found := _own_place(x))), None)
    return f"{message} (raised in {place})" if place else message


def _causes(error: BaseException) -> list[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _is_of_wandb(error: Exception) -> bool:
    wandb = sys.modules.get("wandb")
    return wandb is not None and isinstance(error, wandb.errors.Error)


def _raised_in(error: BaseException, folder: Path) -> bool:
    return Path(_files(error)[-1].filename).is_relative_to(folder)


def _own_place(error: BaseException) -> str | None:
    """The innermost location in a traceback that is neither in our code nor installed."""
    for frame in reversed(_files(error)):
        file = Path(frame.filename)
        if not any(file.is_relative_to(folder) for folder in INSTALLED | OURS):
            return f"{file}, line {frame.lineno}, in {frame.name}"
    return None


def _files(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith("<")]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
