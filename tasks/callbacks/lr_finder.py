"""A learning rate found before training."""

from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure

from tasks.runs import log_figure, run_folder

SETTLED = 10  # first losses of a search, left out because their running average is not one yet


class FindLearningRate(LearningRateFinder):
    """Tries rising learning rates first, then trains from the start with the best of them.

    That is where the loss falls fastest per decade; it counts as the lr of the optimizer. The
    picture `learning_rate.png` in the run's folder shows the search. A resumed run keeps the rate
    it has.

    Args:
        min_lr: First learning rate.
        max_lr: Last learning rate.
        num_training_steps: Steps of the search, of a batch each.
        early_stop_threshold: The search ends where the loss is so many times the lowest one.

    Raises:
        ValueError: rates or steps make no sense; the loss falls nowhere.

    Source: arXiv 1506.01186; the search is that of Lightning.
    """

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        early_stop_threshold: float = 4.0,
    ) -> None:
        if not 0 < min_lr < max_lr or num_training_steps < SETTLED + 2:
            raise ValueError(
                f"FindLearningRate: needs 0 < min_lr < max_lr and {SETTLED + 2} steps or more, got "
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
        epochs, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, -1
        # Of steps that end with an epoch before they are full, Lightning records nothing.
        batches, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1
        self.lr_find(trainer, pl_module)
        trainer.fit_loop.max_epochs, trainer.accumulate_grad_batches = epochs, batches
        found = self.optimal_lr.results
        rates, losses = found["lr"][SETTLED:], found["loss"][SETTLED:]
        lr = fastest_fall(rates, losses)
        pl_module.optimizer = partial(pl_module.optimizer, lr=lr)
        trainer.strategy.setup_optimizers(trainer)
        rank_zero_info(f"Learning rate found: {lr:.3g}")
        folder = run_folder(trainer)
        if folder is not None:
            figure = search_curve(rates, losses, lr)
            figure.savefig(folder / "learning_rate.png", dpi=150)
            for logger in trainer.loggers:
                log_figure(logger, "learning_rate", figure, 0)


def fastest_fall(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest; rates are those of a search, by equal factors."""
    slopes = torch.gradient(torch.tensor(losses))[0].tolist() if len(losses) > 1 else [0.0]
    falling = [(slope, lr) for slope, lr in zip(slopes, rates, strict=False) if slope < 0]
    if not falling:
        tried = f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates else "none"
        raise ValueError(
            f"FindLearningRate: the loss must fall at some rate after the first {SETTLED} steps, "
            f"it did not in {len(losses)} steps (rates: {tried}); search elsewhere or for longer"
        )
    return min(falling)[1]


def search_curve(rates: list[float], losses: list[float], found: float) -> Figure:
    """Running average of the loss at the rates that were tried."""
    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses)
    axes.axvline(found, color="0.6", linestyle="--", label=f"found: {found:.2g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train/loss, running average")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
