"""Search for a learning rate before training."""

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

FEWEST = 10  # minimum steps of a search
NEIGHBOURS = 1 / 33  # fraction of the steps to average over, on either side
RISE = 0.5  # fraction of the total decrease of the loss; the search ends when it rises by more
BELOW = 2.0  # the result is the rate with the lowest loss divided by this


class FindLearningRate(LearningRateFinder):
    """Runs a learning rate range test, then trains from the start with a suitable rate.

    It chooses half of the rate with the lowest loss, averaged over neighboring steps, and sets it
    as lr of the optimizer. The picture `learning_rate.png` in the run's folder shows the search. A
    resumed run keeps its rate.

    Args:
        min_lr: First learning rate.
        max_lr: Last learning rate.
        num_training_steps: Steps of the search, one batch each.
        early_stop_threshold: The search ends when the loss exceeds the lowest one by this factor.

    Raises:
        ValueError: rates or steps are invalid; the loss never decreases.

    Source: arXiv 1506.01186. The search is Lightning's, the choice is not: if a net learns slowly,
        the steepest decrease of the running average is a transient.
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
        """Rates and the training loss at each."""
        losses, bars, step = [], set(), pl_module.training_step

        def recorded(*args: object) -> Tensor:
            bars.update(callback.progress_bar for callback in trainer.callbacks)
            loss = step(*args)
            losses.append(float(loss.detach()))
            return loss

        # Lightning does not record steps that an epoch's end cuts short.
        loop, batches = trainer.fit_loop, trainer.accumulate_grad_batches
        epochs, root = loop.max_epochs, trainer._default_root_dir
        loop.max_epochs, trainer.accumulate_grad_batches = -1, 1
        # The initial weights are in a file there.
        trainer._default_root_dir = str(run_folder(trainer) or root)
        pl_module.training_step = recorded
        try:
            with cleanly_terminated():
                self.lr_find(trainer, pl_module)
        finally:
            for bar in bars:  # Lightning closes it only if the loss diverges
                bar.close()
            del pl_module.training_step  # restores the method of the class
            loop.max_epochs, trainer.accumulate_grad_batches = epochs, batches
            trainer._default_root_dir = root
        return self.optimal_lr.results["lr"], trainer.strategy.broadcast(losses)


@contextmanager
def cleanly_terminated() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that files of the search are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def smooth(losses: Sequence[float]) -> list[float]:
    """Mean of every loss and its neighbors, equally many before and after."""
    side = max(1, int(NEIGHBOURS * len(losses)))
    windows = (losses[max(0, i - side) : i + side + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate with the lowest mean loss before the first large increase.

    Later values do not count: weights that diverged under a high rate may have a low loss by
    chance.

    Args:
        rates: Learning rates in ascending order.
        losses: Loss at each of them.

    Raises:
        ValueError: the loss never decreases.
    """
    finite = int(torch.tensor(losses).isfinite().long().cumprod(0).sum())
    means = smooth(losses[:finite])
    fall = means[0] - min(means) if means else 0.0
    if fall <= 0:
        tried = f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates else "none"
        raise ValueError(
            f"FindLearningRate: the loss must decrease at some rate, it did not in "
            f"{len(losses)} steps (rates: {tried}); change the range or take more steps"
        )
    best = 0
    for number, mean in enumerate(means):
        if mean < means[best]:
            best = number
        elif mean - means[best] > RISE * fall:
            break
    return rates[best]


def search_curve(rates: Sequence[float], losses: Sequence[float], found: float) -> Figure:
    """Plot of the loss against the rates, and its mean over neighboring steps."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="0.75", linewidth=0.8, label="train/loss")
    axes.semilogx(rates, smooth(losses), label="mean of neighbors")
    axes.axvline(found, color="0.3", linestyle="--", label=f"found: {found:.2g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train/loss")
    axes.set_title("Learning rate search", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
