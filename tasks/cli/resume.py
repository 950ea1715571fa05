"""Resuming a stopped run: which run, from which checkpoint, with which command."""

import copy
import re
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from tasks.callbacks.checkpoints import LAST, check_writable
from tasks.callbacks.metrics_file import open_metrics_files
from tasks.checkpoint_file import FOLDER, read_checkpoint
from tasks.cli.run_lock import only_writer
from tasks.cli.same_command import PLACES, AnotherCommand, Change, differences
from tasks.data import checksums_of
from tasks.runs import run_folder

HELP = (
    "Resume the run in this folder, for example runs/text/version_0, with the same command; "
    "'auto' selects the newest run of this command, or starts a new one if there is "
    "none."
)
LOGGER = "trainer.logger"


@dataclass
class Resumed:
    """A run to resume; from the start if it stopped before its first checkpoint."""

    folder: Path
    checkpoint: Path | None
    state: dict[str, object]  # part of the checkpoint for resuming
    moved: list[Change]  # new paths of the data

    @property
    def rows(self) -> list[int | None]:
        """Rows of metrics.csv to keep, per logger."""
        return self.state.get("rows", [])


def find_run(
    parser: ArgumentParser, config: Namespace, resume: str | None, held: ExitStack
) -> Resumed | None:
    """Find the run for `--resume`, None if there is none.

    Args:
        parser: Parser of the subcommand fit.
        config: Its parsed config.
        resume: A folder, "auto" or None.
        held: Receives the lock of the run folder.

    Raises:
        ValueError: no run in the folder; its command differs; no checkpoint can be read.
        OSError: another process is training the run.
    """
    if resume is None:
        return None
    if config.get("ckpt_path"):
        raise ValueError("--resume chooses the checkpoint itself; omit --ckpt_path")
    loggers = _as_list(config.get(LOGGER))
    if not loggers:
        raise ValueError("--resume needs a run folder: set a logger, --trainer.logger=CSVLogger")
    command = yaml.safe_load(parser.dump(config, skip_none=False))
    if resume != "auto":
        return _open(Path(resume), command, held)
    parent, others = Path(*_name(loggers[0])), []
    for folder in sorted(parent.glob("*/"), key=_last_saved, reverse=True):
        try:
            if _checkpoints(folder):
                return _open(folder, command, held)
        except AnotherCommand as error:
            others.append(str(error))
        except ValueError as error:
            rank_zero_info(f"Not resumed: {error}")
    newest = f" (the newest: {others[0]})" if others else ""
    rank_zero_info(f"--resume auto: no run in {parent} to resume, starting a new one{newest}")
    return None


def in_folder(
    loggers: Namespace | list[Namespace], resumed: Resumed
) -> Namespace | list[Namespace]:
    """The same loggers, writing to the folders of the run."""
    copies = [copy.deepcopy(logger) for logger in _as_list(loggers)]
    before = resumed.state.get("loggers", [])
    for logger, (kind, version) in zip(copies[1:], before[1:], strict=False):
        if logger.class_path.split(".")[-1] == kind:
            logger.init_args.version = version
    first = copies[0].init_args
    number = re.fullmatch(r"version_(\d+)", resumed.folder.name)
    first.version = int(number[1]) if number else resumed.folder.name
    if Path(*_name(copies[0])).resolve() != resumed.folder.resolve().parent:
        first.save_dir = str(resumed.folder.parent.parent)
        first["project" if "project" in first else "name"] = resumed.folder.parent.name
    return copies if isinstance(loggers, list) else copies[0]


def prepare(
    trainer: Trainer, data: LightningDataModule | None, resumed: Resumed | None, held: ExitStack
) -> None:
    """Check that the run folder is writable; keep the logged metrics of a resumed run.

    Args:
        trainer: A trainer whose loggers have not logged yet.
        data: The training data.
        resumed: The run to resume, None for a new run.
        held: Receives the lock of the folder of a new run.

    Raises:
        ValueError: a resumed run was trained on different data.
        OSError: the folder cannot be written; another process is training there.
    """
    if resumed is not None:
        _check_data(resumed, data)
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            check_writable(Path(logger.save_dir or "."))
        if resumed is None and (folder := _new_folder(trainer)):
            held.enter_context(only_writer(folder))
    open_metrics_files(trainer, resumed.rows if resumed else None)
    if resumed is not None:
        for usual in ("Checkpoint directory .* exists", ".*your dataloader is not resumable"):
            warnings.filterwarnings("ignore", message=usual)


def _new_folder(trainer: Trainer) -> Path | None:
    """The folder of a run, before a CSVLogger removes existing metrics."""
    first = trainer.logger
    return Path(first.log_dir) if isinstance(first, CSVLogger) else run_folder(trainer)


def _check_data(resumed: Resumed, data: LightningDataModule | None) -> None:
    now, before = checksums_of(data), resumed.state.get("data")
    if before is None:
        return  # no step was made yet
    changes = [f"{name} is new" for name in now if name not in before]
    changes += [f"{name} is missing" for name in before if name not in now]
    changes += [f"{name} has changed" for name in now if before.get(name, now[name]) != now[name]]
    if changes:
        raise ValueError(
            f"--resume {resumed.folder}: the data differ from those of the run: "
            f"{'; '.join(changes)}; restore them, or omit --resume to start a new run"
        )
    if resumed.moved and not now:
        raise AnotherCommand(resumed.folder, resumed.moved)


def _open(folder: Path, command: dict[str, object], held: ExitStack) -> Resumed:
    try:
        began = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        began = None
    if not isinstance(began, dict):
        raise ValueError(
            f"--resume {folder}: no run was started there, as it has no config.yaml that can be "
            "read; omit --resume or use another folder"
        )
    changes = differences(began, command)
    moved = [change for change in changes if change[0] in PLACES]
    if len(changes) > len(moved):
        raise AnotherCommand(folder, [x for x in changes if x not in moved])
    held.enter_context(only_writer(folder))
    return _newest_readable(folder, command["trainer"], moved)


def _newest_readable(folder: Path, trainer: dict[str, object], moved: list[Change]) -> Resumed:
    broken = []
    for path in _checkpoints(folder):
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            broken.append(str(error))
            continue
        if "resume" not in checkpoint:
            broken.append(f"{path} was not saved for resuming")
            continue
        for message in broken:
            rank_zero_warn(f"{message}; resuming from {path} instead")
        rest = "it is complete" if _is_complete(checkpoint, trainer) else "training continues"
        rank_zero_info(f"Resumed {folder} after {checkpoint['global_step']} steps: {rest}")
        return Resumed(folder, path, checkpoint["resume"], moved)
    if broken:
        raise ValueError(f"--resume {folder}: no checkpoint can be used: {'; '.join(broken)}")
    rank_zero_info(f"{folder} was stopped before its first checkpoint: starting again")
    return Resumed(folder, None, {}, moved)


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
    """Loggers of a config; none for true and false."""
    loggers = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in loggers if isinstance(logger, Namespace)]


def _name(logger: Namespace) -> tuple[str, str]:
    """Folder of all runs of a logger: save_dir / name."""
    given = logger.init_args
    name = given.get("project") if "project" in given else given.get("name")
    return str(given.get("save_dir") or "."), str(name or "")
