"""Going on with a run that was stopped: which one, from which checkpoint, with which command."""

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from tasks.callbacks.checkpoints import FOLDER, LAST, check_writable, read_checkpoint
from tasks.callbacks.metrics_file import open_metrics_files

HELP = (
    "Go on with the run of this folder, for example runs/text/version_0, with the command it was "
    "started with; 'auto' takes the newest run of this command, and starts a new one if there is "
    "none."
)
# What may differ from the command that started the run.
FREE = (
    "ckpt_path",
    "weights_only",
    "last_checkpoint",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "data.init_args.num_workers",
)
FREE_OF_LOGGERS = ("save_dir", "name", "version", "id", "offline")
LOGGER = "trainer.logger"


@dataclass
class Resumed:
    """A run to go on with; from its beginning if it was stopped before its first checkpoint."""

    folder: Path
    checkpoint: Path | None
    state: dict[str, object]  # what the checkpoint keeps for this purpose

    @property
    def rows(self) -> list[int | None]:
        """Rows of metrics.csv to keep, per logger."""
        return self.state.get("rows", [])


def find_run(parser: ArgumentParser, config: Namespace, resume: str | None) -> Resumed | None:
    """The run that `--resume` means, None if there is none to go on with.

    Args:
        parser: Of the subcommand fit.
        config: What it parsed.
        resume: A folder, "auto" or None.

    Raises:
        ValueError: no run in the folder; its command was another one; no checkpoint can be read.
    """
    if resume is None:
        return None
    if config.get("ckpt_path"):
        raise ValueError("--resume chooses the checkpoint itself; leave out --ckpt_path")
    loggers = _as_list(config.get(LOGGER))
    if not loggers:
        raise ValueError("--resume needs a run folder: name a logger, --trainer.logger=CSVLogger")
    command = yaml.safe_load(parser.dump(config, skip_none=False))
    if resume != "auto":
        return _open(Path(resume), command)
    parent = Path(*_name(loggers[0]))
    for folder in sorted(parent.glob("*/"), key=_last_saved, reverse=True):
        try:
            if _checkpoints(folder):
                return _open(folder, command)
        except ValueError as error:
            rank_zero_info(f"Not resumed: {error}")
    rank_zero_info(f"--resume auto: no run in {parent} to go on with, a new one starts")
    return None


def in_folder(
    loggers: Namespace | list[Namespace], resumed: Resumed
) -> Namespace | list[Namespace]:
    """The same loggers, but writing where those of the run did."""
    copies = [copy.deepcopy(logger) for logger in _as_list(loggers)]
    versions = resumed.state.get("versions", [])
    for logger, version in zip(copies[1:], versions[1:], strict=False):
        logger.init_args.version = version
    first = copies[0].init_args
    number = re.fullmatch(r"version_(\d+)", resumed.folder.name)
    first.version = int(number[1]) if number else resumed.folder.name
    if Path(*_name(copies[0])).resolve() != resumed.folder.resolve().parent:
        first.save_dir = str(resumed.folder.parent.parent)
        first["project" if "project" in first else "name"] = resumed.folder.parent.name
    return copies if isinstance(loggers, list) else copies[0]


def prepare(trainer: Trainer, resumed: Resumed | None) -> None:
    """Make sure that a run can write its folder; keep the metrics that a resumed one has logged.

    Raises:
        OSError: the folder cannot be written.
    """
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            check_writable(Path(logger.save_dir or "."))
    open_metrics_files(trainer, resumed.rows if resumed else None)
    if resumed is not None:
        for usual in ("Checkpoint directory .* exists", ".*your dataloader is not resumable"):
            warnings.filterwarnings("ignore", message=usual)


def _open(folder: Path, command: dict[str, object]) -> Resumed:
    try:
        began = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        began = None
    if not isinstance(began, dict):
        raise ValueError(
            f"--resume {folder}: no run was begun there, for it has no config.yaml that can be "
            "read; leave out --resume or name another folder"
        )
    changes = list(_differences(began, command))
    if changes:
        shown = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes[:5])
        rest = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise ValueError(
            f"--resume {folder}: the run was started with another command: {shown}{rest}; "
            "repeat that command, or leave out --resume to start a new run"
        )
    return _newest_readable(folder, command["trainer"])


def _newest_readable(folder: Path, trainer: dict[str, object]) -> Resumed:
    broken = []
    for path in _checkpoints(folder):
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            broken.append(str(error))
            continue
        if "resume" not in checkpoint:
            broken.append(f"{path} was not saved for going on")
            continue
        for message in broken:
            rank_zero_warn(f"{message}; going on from {path} instead")
        rest = "it is complete" if _is_complete(checkpoint, trainer) else "it goes on"
        rank_zero_info(f"Resumed {folder} after {checkpoint['global_step']} steps: {rest}")
        return Resumed(folder, path, checkpoint["resume"])
    if broken:
        raise ValueError(f"--resume {folder}: no checkpoint can be used: {'; '.join(broken)}")
    rank_zero_info(f"{folder} was stopped before its first checkpoint: it starts again")
    return Resumed(folder, None, {})


def _is_complete(checkpoint: dict, trainer: dict[str, object]) -> bool:
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    reached = ((epochs, trainer["max_epochs"]), (checkpoint["global_step"], trainer["max_steps"]))
    return any(limit not in (None, -1) and count >= limit for count, limit in reached)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, last.ckpt first, then the newest."""
    files = (folder / FOLDER).glob("*.ckpt")
    return sorted(files, key=lambda path: (path.name == LAST, path.stat().st_mtime), reverse=True)


def _last_saved(folder: Path) -> float:
    return max((path.stat().st_mtime for path in _checkpoints(folder)), default=0.0)


def _as_list(loggers: object) -> list[Namespace]:
    """Loggers of a config; true and false stand for none that can be named."""
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in loggers if isinstance(logger, Namespace)]


def _name(logger: Namespace) -> tuple[str, str]:
    """Folder of all runs of a logger: save_dir and the name below it."""
    given = logger.init_args
    name = given.get("project") if "project" in given else given.get("name")
    return str(given.get("save_dir") or "."), str(name or "")


def _differences(old: object, new: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    if key in FREE or (key.startswith(LOGGER) and key.split(".")[-1] in FREE_OF_LOGGERS):
        return
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new
