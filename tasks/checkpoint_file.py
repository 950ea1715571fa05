"""Read checkpoints without executing code, and only if they are complete."""

import io
import re
import warnings
import zipfile
from pathlib import Path

import torch

FOLDER = "checkpoints"  # of a run


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Load the checkpoint of a run to CPU memory, without executing code in it.

    Raises:
        ValueError: the file is missing, damaged, not a checkpoint of a run, or contains code.
    """
    try:
        _check_sums(path)
        checkpoint = load_weights(path)
    except FileNotFoundError:
        raise ValueError(f"read_checkpoint: there is no checkpoint {path}") from None
    except Exception as error:  # the readers in torch.load raise various errors
        raise ValueError(f"read_checkpoint: {path} {what_is_wrong(error)}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "loops"} <= checkpoint.keys():
        raise ValueError(
            f"read_checkpoint: {path} is not a checkpoint of a run; those are in {FOLDER}/ of its "
            "folder and end in .ckpt"
        )
    return checkpoint


def _check_sums(path: str | Path) -> None:
    """Compare every part of a checkpoint with its checksum; torch.load does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        if part is not None:
            raise ValueError(f"the checksum of its part {part} is wrong")


def load_weights(file: str | Path | io.BytesIO) -> object:
    """Load a file to CPU memory with weights_only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are not checkpoints; they are rejected
        return torch.load(file, map_location="cpu", weights_only=True)


def what_is_wrong(error: Exception) -> str:
    """Describe a read error, as the end of a sentence about the file."""
    code = re.search(r"GLOBAL (\S+) w", str(error))
    if code:
        return f"holds code ({code[1]}) and not only weights; it is refused"
    line = (str(error) or type(error).__name__).splitlines()[0]
    reason = "not a pickle of weights" if line.startswith("Weights only") else line[:100]
    return f"is damaged or not a checkpoint ({reason}); use another one of the run"
