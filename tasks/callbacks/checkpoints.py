"""Checkpoints: written atomically, read without executing code; the last one is recent."""

import io
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from tasks.callbacks.metrics_file import rows_written
from tasks.checkpoint_file import FOLDER, load_weights, read_checkpoint, what_is_wrong
from tasks.data import checksums_of
from tasks.runs import run_folder

LAST = "last.ckpt"


def check_writable(folder: Path) -> None:
    """Create a folder if needed, and test that files can be written in it.

    Raises:
        OSError: this fails; the message names the folder and the reason.
    """
    test = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        test.write_text("")
        test.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"check_writable: cannot write in {folder}, where the run is to be saved: "
            f"{error.strerror}; set another folder with --trainer.logger.save_dir",
        ) from None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file and renames it, so that a checkpoint is never incomplete.

    The first checkpoint is read back, to find values that cannot be loaded without executing code
    early.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file is
            kept, and nothing of the new one.
        ValueError: the checkpoint cannot be read back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._checked = False

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        if not self._checked:
            self._read_back(buffer, path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise OSError(
                error.errno,
                f"cannot save {path}: {error.strerror}; earlier checkpoints are kept. "
                f"Free some space, then continue with --resume {path.parent.parent}",
            ) from None

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, object]:
        return read_checkpoint(path)

    def _read_back(self, buffer: io.BytesIO, path: Path) -> None:
        try:
            load_weights(io.BytesIO(buffer.getbuffer()))
        except Exception as error:
            raise ValueError(
                f"AtomicCheckpointIO: {path} cannot be read back: {what_is_wrong(error)}; "
                "callbacks must keep plain values and tensors in their state_dict"
            ) from error
        self._checked = True


class LastCheckpoint(Checkpoint):
    """Saves everything a run needs to continue exactly where it stopped as last.ckpt.

    It is saved at intervals, between two batches or before a validation; on SIGTERM and Ctrl-C,
    which end the run (exit code 143 or 130; a second Ctrl-C ends it immediately); and when training
    ends. With gradient accumulation it waits for the optimizer step. With averaged weights, the
    last checkpoint has only the average, and a run that is trained further starts from it.

    Args:
        minutes: Time between two checkpoints; 0 saves at every step.

    Raises:
        ValueError: minutes is negative; a run is resumed with another number of processes.
        OSError: the folder of the run cannot be written; raised before training starts.
    """

    def __init__(self, minutes: float = 2.0) -> None:
        super().__init__()
        if minutes < 0:
            raise ValueError(f"LastCheckpoint: minutes must be at least 0, got {minutes}")
        self.minutes = minutes
        self.path: Path | None = None
        self._saved_at, self._signal = 0.0, None
        self._saving, self._before_validation = False, False
        self._resumed: dict[str, object] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and not trainer.fast_dev_run:
            folder = (run_folder(trainer) or Path(trainer.default_root_dir)) / FOLDER
            if trainer.is_global_zero:
                check_writable(folder)
            self.path = trainer.strategy.broadcast(folder) / LAST

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # Lightning restores both
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
        if self._resumed is not None:
            _continue_loops(trainer, bool(self._resumed["between_batches"]))
            trainer._logger_connector._callback_metrics.update(self._resumed["metrics"])
            self._resumed = None

    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        self._save_if_due(trainer, before_validation=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_if_due(trainer, before_validation=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        # Processes may have different numbers of batches here, so with several wait for the end.
        if self._signal is None or trainer.world_size > 1 or not _at_a_step(trainer):
            return
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging):  # the net holds the averaged weights
                callback.on_validation_epoch_end(trainer, pl_module)
        self._save_if_due(trainer, before_validation=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, before_validation=False)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]
    ) -> None:
        between_batches = _tidy_progress(
            checkpoint["loops"]["fit_loop"], self._saving, self._before_validation
        )
        checkpoint["resume"] = {
            "between_batches": between_batches,
            "world_size": trainer.world_size,
            "data": checksums_of(trainer.datamodule),
            "loggers": [[type(x).__name__, x.version] for x in trainer.loggers],
            "rows": rows_written(trainer),
            "metrics": {k: v.cpu() for k, v in trainer._logger_connector._callback_metrics.items()},
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]
    ) -> None:
        resumed = checkpoint.get("resume")
        if resumed is None or trainer.state.fn != TrainerFn.FITTING:
            return
        if resumed["world_size"] != trainer.world_size:
            raise ValueError(
                f"LastCheckpoint: the run was trained by {resumed['world_size']} process(es) and "
                f"cannot continue with {trainer.world_size}, which would change its batches; "
                "set --trainer.devices and --trainer.num_nodes as before"
            )
        self._resumed = resumed
        if self.path and self.path.parent == Path(trainer.ckpt_path).parent:
            for callback in trainer.checkpoint_callbacks:  # the folder may have been moved
                state = checkpoint["callbacks"].get(callback.state_key)
                if isinstance(callback, ModelCheckpoint) and state:
                    moved = _replace(state, state["dirpath"], callback.dirpath)
                    checkpoint["callbacks"][callback.state_key] = moved

    def _save_if_due(self, trainer: Trainer, before_validation: bool) -> None:
        if self.path is None or not _at_a_step(trainer):
            return
        due = time.monotonic() - self._saved_at >= 60 * self.minutes
        any_process = trainer.strategy.reduce_boolean_decision
        if not any_process(due or self._signal is not None, all=False):
            return
        self._save(trainer, before_validation)
        if any_process(self._signal is not None, all=False):
            number = self._signal or signal.SIGTERM
            rank_zero_info(
                f"Stopped by {signal.Signals(number).name} after {trainer.global_step} steps; "
                f"to continue, repeat the command with --resume {self.path.parent.parent}"
            )
            raise SystemExit(128 + number)

    def _save(self, trainer: Trainer, before_validation: bool) -> None:
        if self.path is None:
            return
        self._saving, self._before_validation = True, before_validation
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saving, self._before_validation = False, False
        self._saved_at = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number


def _at_a_step(trainer: Trainer) -> bool:
    """Whether no accumulated gradients wait for the next optimizer step."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    last = progress.current.completed >= trainer.num_training_batches
    return last or progress.current.completed % trainer.accumulate_grad_batches == 0


def _tidy_progress(fit_loop: dict, saving: bool, before_validation: bool) -> bool:
    """Set the counters of a checkpoint to those of a loop between two steps.

    Lightning resumes differently depending on where it saved, and some ways skip a validation,
    count a step twice or repeat one. All our checkpoints resume in the same way.

    Returns:
        Whether the checkpoint resumes in that way, with the next batch.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    epoch_over = epoch["current"]["processed"] == epoch["current"]["ready"]
    if not saving and not epoch_over:
        return False  # a ModelCheckpoint within an epoch: resumed by Lightning
    for span in ("total", "current"):
        epoch[span]["completed"] = epoch[span]["processed"]
        batch[span]["ready"] = batch[span]["completed"]  # a batch may be prefetched
        done = validation[span]["completed"]
        begun = done + before_validation  # looks like an interrupted validation
        validation[span].update(ready=begun, started=begun, processed=done)
    if epoch_over:
        batch["current"] = dict.fromkeys(batch["current"], 0)
    batch["is_last_batch"] = before_validation and batch["is_last_batch"]
    return not before_validation


def _continue_loops(trainer: Trainer, between_batches: bool) -> None:
    """Set the loops of Lightning and the loader to the position of a checkpoint."""
    fit_loop = trainer.fit_loop
    loop, fetcher = fit_loop.epoch_loop, fit_loop._data_fetcher
    if between_batches and loop.restarting and loop._should_check_val_fx(fetcher):
        # Otherwise Lightning assumes the end of a validation, skips it and counts a step.
        loop._batches_that_stepped -= 1
    for loader in fit_loop._combined_loader.flattened:
        _set_sampler_epoch(loader, trainer.current_epoch)
    iter(fetcher)  # the loader was built before the counters it starts at were known


def _replace(state: object, old: str, new: str) -> object:
    """The same state with another prefix of its paths."""
    if isinstance(state, dict):
        return {_replace(k, old, new): _replace(v, old, new) for k, v in state.items()}
    if isinstance(state, str) and state.startswith(old):
        return new + state[len(old) :]
    return state
