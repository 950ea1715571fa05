"""Checkpoints: written whole or not at all, read without running code, the last always new."""

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
    """Make a folder, if need be, and write something in it.

    Raises:
        OSError: that is impossible; the message names the folder and why.
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
            f"{error.strerror}; name another folder with --trainer.logger.save_dir",
        ) from None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside a file and renames: it is the old one or the new one, never half of one.

    The first checkpoint is read back, for what cannot be read without running code would be found
    too late.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file
            stays, and nothing of the new one.
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
                f"cannot save {path}: {error.strerror}; what was saved before is kept. "
                f"Make room, then go on with --resume {path.parent.parent}",
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
                f"AtomicCheckpointIO: {path} could not be read again: {what_is_wrong(error)}; "
                "callbacks must keep plain values and tensors in their state_dict"
            ) from error
        self._checked = True


class LastCheckpoint(Checkpoint):
    """Keeps in last.ckpt all that a run needs to go on as if it had never stopped.

    It is saved between two batches, or before a validation, when some time has passed; on SIGTERM
    and Ctrl-C, which end the run (exit code 143 or 130; a second Ctrl-C ends it at once); and when
    training ends. With gradient accumulation it waits for the step of the optimiser. With averaged
    weights the end keeps the average alone, and a run that is trained further starts from it.

    Args:
        minutes: Time between two checkpoints; 0 saves at every step.

    Raises:
        ValueError: minutes below 0; a run goes on with another number of processes.
        OSError: the folder of the run cannot be written; found before training begins.
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
        # Processes have different numbers of batches here, so several of them wait for the end.
        if self._signal is None or trainer.world_size > 1 or not _at_a_step(trainer):
            return
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging):  # the net has its averaged weights
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
                f"cannot go on with {trainer.world_size}, its batches would be others; "
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
                f"to go on: the same command with --resume {self.path.parent.parent}"
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
    """Whether no gradients are waiting for the next step of the optimiser."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    last = progress.current.completed >= trainer.num_training_batches
    return last or progress.current.completed % trainer.accumulate_grad_batches == 0


def _tidy_progress(fit_loop: dict, saving: bool, before_validation: bool) -> bool:
    """Make the counters of a checkpoint those of a loop that stands still between two steps.

    Lightning has several ways to go on, one for every place it saves at, and some of them skip a
    validation, count a step twice or repeat one. All our checkpoints go on in one way.

    Returns:
        Whether the checkpoint goes on in that way, with the next batch.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    epoch_over = epoch["current"]["processed"] == epoch["current"]["ready"]
    if not saving and not epoch_over:
        return False  # a ModelCheckpoint in the middle of an epoch: Lightning's own way
    for span in ("total", "current"):
        epoch[span]["completed"] = epoch[span]["processed"]
        batch[span]["ready"] = batch[span]["completed"]  # a batch may have been fetched
        done = validation[span]["completed"]
        begun = done + before_validation  # looks like one that was interrupted
        validation[span].update(ready=begun, started=begun, processed=done)
    if epoch_over:
        batch["current"] = dict.fromkeys(batch["current"], 0)
    batch["is_last_batch"] = before_validation and batch["is_last_batch"]
    return not before_validation


def _continue_loops(trainer: Trainer, between_batches: bool) -> None:
    """Set Lightning's loops and the loader to where a checkpoint was saved."""
    fit_loop = trainer.fit_loop
    loop, fetcher = fit_loop.epoch_loop, fit_loop._data_fetcher
    if between_batches and loop.restarting and loop._should_check_val_fx(fetcher):
        # Lightning will take this for the end of a validation, skip that, and count a step.
        loop._batches_that_stepped -= 1
    for loader in fit_loop._combined_loader.flattened:
        _set_sampler_epoch(loader, trainer.current_epoch)
    iter(fetcher)  # the loader was built before the counters it begins at were known


def _replace(state: object, old: str, new: str) -> object:
    """The same state with another beginning of the paths in it."""
    if isinstance(state, dict):
        return {_replace(k, old, new): _replace(v, old, new) for k, v in state.items()}
    if isinstance(state, str) and state.startswith(old):
        return new + state[len(old) :]
    return state
