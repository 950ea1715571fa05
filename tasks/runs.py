"""The folder of a run, and logging of pictures, texts and facts."""

import json
import shutil
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

# What a run writes before its first step.
FIRST_FILES = {
    "config.yaml",
    "facts.json",
    "hparams.yaml",
    "metrics.csv",
    "refused_rows.csv",
    "run.lock",
}


def run_folder(trainer: Trainer) -> Path | None:
    """Folder of the run of the first logger, which also has the checkpoints.

    None without a logger, in a fast_dev_run, which writes nothing, and in all processes except the
    first, which alone writes.
    """
    if trainer.fast_dev_run:
        return None
    for logger in trainer.loggers if trainer.is_global_zero else []:
        _ = logger.experiment  # fixes the run's id
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or ".") / str(logger.name) / version
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return None


def remove_empty_run(trainer: Trainer) -> None:
    """Remove the folder of a run that failed before its first step, if it has no other files."""
    log_dir = getattr(trainer.logger, "log_dir", None)
    if not trainer.is_global_zero or log_dir is None or not Path(log_dir).is_dir():
        return
    folder = Path(log_dir)
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if {path.name for path in files} <= FIRST_FILES:
        shutil.rmtree(folder)


def finish_wandb() -> None:
    """Finish the wandb run that an earlier command of this process started.

    Otherwise the logger of the next command would continue it.
    """
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Send a picture to a logger that supports pictures."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step, close=False)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [figure])


def log_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Send a text to a logger that supports texts."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, f"```\n{text}\n```", step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(name, columns=["text"], data=[[text]])


def log_facts(logger: Logger, facts: dict[str, float | None]) -> None:
    """Send facts of a run, in addition to its configuration, to a logger that supports them."""
    if isinstance(logger, WandbLogger):
        logger.experiment.config.update(facts, allow_val_change=True)
    else:
        log_text(logger, "facts", json.dumps(facts, indent=2), 0)
