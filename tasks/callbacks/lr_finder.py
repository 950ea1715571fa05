"""A learning rate found before training."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor

from tasks.runs import log_figure, run_folder

FEWEST = 10  # steps of a search
NEIGHBOURS = 1 / 33  # share of the steps with which a loss is averaged, on either side
RISE = 0.5  # of the whole fall of the loss; where it has risen by more, the search is over
BELOW = 2.0  # the found rate is that of the lowest loss over this


class FindLearningRate(LearningRateFinder):
    """Tries rising learning rates first, then trains from the start with a good one.

    That is half of the rate with the lowest loss, a mean over neighbouring steps; it counts as the
    lr of the optimizer. The picture `learning_rate.png` in the run's folder shows the search. A
    resumed run keeps the rate it has.

    Args:
        min_lr: First learning rate.
        max_lr: Last learning rate.
        num_training_steps: Steps of the search, of a batch each.
        early_stop_threshold: The search ends where the loss is so many times the lowest one.

    Raises:
        ValueError: rates or steps make no sense; the loss falls nowhere.

    Source: arXiv 1506.01186. The search is that of Lightning, but not the choice: on a net that
        learns slowly, the steepest fall of its running average is a transient of the average.
    """

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        early_stop_threshold: float = 4.0,
    ) -> None:
        if not 0 < min_lr < max_lr or num_training_steps < FEWEST:
            raise ValueError(
                f"FindLearningRate: needs 0 < min_lr < max_lr and {FEWEST} steps or more, got "
                f"min_lr={min_lr}, max_lr={max_lr} and num_training_steps={num_training_steps}"
            )
        super().__init__(
            min_lr,
            max_lr,
            num_training_steps,
            early_stop_threshold=early_stop_threshold,
            update_attr=False,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None or trainer.fast_dev_run:
            return
        rates, losses = self._search(trainer, pl_module)
        lr = lowest(rates, losses) / BELOW
        pl_module.optimizer = partial(pl_module.optimizer, lr=lr)
        trainer.strategy.setup_optimizers(trainer)
        rank_zero_info(f"Learning rate found: {lr:.3g}")
        folder = run_folder(trainer)
        if folder is not None:
            figure = search_curve(rates, losses, lr)
            figure.savefig(folder / "learning_rate.png", dpi=150)
            for logger in trainer.loggers:
                log_figure(logger, "learning_rate", figure, 0)

    def _search(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[list[float], list[float]]:
        """Rates and the loss of the batch that was trained with each."""
        losses, bars, step = [], set(), pl_module.training_step

        def recorded(*args: object) -> Tensor:
            bars.update(callback.progress_bar for callback in trainer.callbacks)
            loss = step(*args)
            losses.append(float(loss.detach()))
            return loss

        # Of steps that end with an epoch before they are full, Lightning records nothing.
        loop, batches = trainer.fit_loop, trainer.accumulate_grad_batches
        epochs, root = loop.max_epochs, trainer._default_root_dir
        loop.max_epochs, trainer.accumulate_grad_batches = -1, 1
        # The weights of the start wait in a file there.
        trainer._default_root_dir = str(run_folder(trainer) or root)
        pl_module.training_step = recorded
        try:
            with cleanly_terminated():
                self.lr_find(trainer, pl_module)
        finally:
            for bar in bars:  # Lightning leaves it open unless the loss diverges
                bar.close()
            del pl_module.training_step  # the method of the class counts again
            loop.max_epochs, trainer.accumulate_grad_batches = epochs, batches
            trainer._default_root_dir = root
        return self.optimal_lr.results["lr"], trainer.strategy.broadcast(losses)


@contextmanager
def cleanly_terminated() -> Iterator[None]:
    """SIGTERM ends the process as an exception does, so that files of the search are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def smooth(losses: Sequence[float]) -> list[float]:
    """Mean of every loss and its neighbours, as many before it as after it."""
    side = max(1, int(NEIGHBOURS * len(losses)))
    windows = (losses[max(0, i - side) : i + side + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate with the lowest mean loss before the first large rise.

    What comes after does not count: weights that too high a rate has thrown far away may well have
    a low loss.

    Args:
        rates: Rising learning rates.
        losses: Loss at each of them.

    Raises:
        ValueError: the loss falls nowhere.
    """
    finite = int(torch.tensor(losses).isfinite().long().cumprod(0).sum())
    means = smooth(losses[:finite])
    fall = means[0] - min(means) if means else 0.0
    if fall <= 0:
        tried = f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates else "none"
        raise ValueError(
            f"FindLearningRate: the loss must fall at some rate, it did not in {len(losses)} steps "
            f"(rates: {tried}); search elsewhere or for longer"
        )
    best = 0
    for number, mean in enumerate(means):
        if mean < means[best]:
            best = number
        elif mean - means[best] > RISE * fall:
            break
    return rates[best]


def search_curve(rates: Sequence[float], losses: Sequence[float], found: float) -> Figure:
    """Loss at the rates that were tried, and its mean over neighbouring steps."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="0.75", linewidth=0.8, label="train/loss")
    axes.semilogx(rates, smooth(losses), label="mean of neighbours")
    axes.axvline(found, color="0.3", linestyle="--", label=f"found: {found:.2g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train/loss")
    axes.set_title("Search of a learning rate", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
