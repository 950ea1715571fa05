"""Allowed differences between the command that started a run and one that resumes it."""

from collections.abc import Iterator
from pathlib import Path

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
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "data.init_args.num_workers",
    "data.init_args.test_path",
)
# May also differ if the data have checksums, which must be equal.
PLACES = tuple(f"data.init_args.{name}" for name in ("root", "path", "val_path", "test_path"))
# Callbacks that do not affect the weights and may be added or removed.
WATCHING = (
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
)
Change = tuple[str, object, object]  # key, value of the run, value of the command


class AnotherCommand(ValueError):
    """The run was started with a different command."""

    def __init__(self, folder: Path, changes: list[Change]) -> None:
        shown = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes[:5])
        rest = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        super().__init__(
            f"--resume {folder}: the run was started with a different command: {shown}{rest}; "
            "repeat that command, or omit --resume to start a new run"
        )


def differences(began: dict[str, object], command: dict[str, object]) -> list[Change]:
    """Differences between two commands, as nested configs, that affect training."""
    return list(_differences(_without_watching(began), _without_watching(command)))


def _without_watching(command: dict[str, object]) -> dict[str, object]:
    """A command without settings that do not affect the weights; keeps the first logger's class."""
    trainer = dict(command.get("trainer") or {})
    loggers = trainer.get("logger")
    first = loggers[0] if isinstance(loggers, list) and loggers else loggers
    trainer["logger"] = first.get("class_path") if isinstance(first, dict) else first
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer["callbacks"] = [x for x in callbacks if _name_of_class(x) not in WATCHING]
    return command | {"trainer": trainer}


def _name_of_class(given: object) -> str:
    path = given.get("class_path") if isinstance(given, dict) else given
    return str(path).split(".")[-1]


def _differences(old: object, new: object, key: str = "") -> Iterator[Change]:
    if key in FREE:
        return
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new
