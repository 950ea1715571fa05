"""Pictures at the end of a run."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure

from tasks.runs import log_figure, run_folder

POINTS = 400  # training losses kept for the learning curve, at most


class Pictures(Callback):
    """Draws the learning curve, and accuracy against size where a task has several sizes.

    Saved as PNG in the run's folder and sent to the logger.
    """

    def __init__(self) -> None:
        self.train: list[tuple[int, float]] = []  # (step, loss)
        self.val: list[tuple[int, dict[str, float]]] = []  # (step, metrics)

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        every = max(1, int(trainer.estimated_stepping_batches) // POINTS)
        if trainer.global_step % every == 0 and "train/loss" in trainer.callback_metrics:
            self.train.append((trainer.global_step, float(trainer.callback_metrics["train/loss"])))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = {
                k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
            }
            self.val.append((trainer.global_step, metrics))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None or not self.val:
            return
        self._save(trainer, folder, "learning_curve", learning_curve(self.train, self.val))
        sizes = getattr(trainer.datamodule, "sizes", [])
        if len(sizes) > 1:
            names = [f"val/accuracy{name}" for name in trainer.datamodule.eval_names]
            accuracies = [self.val[-1][1][name] for name in names]
            self._save(trainer, folder, "accuracy_by_size", accuracy_by_size(sizes, accuracies))
        summary = "  ".join(
            f"{name} {value:.4f}" for name, value in sorted(self.val[-1][1].items())
        )
        rank_zero_info(
            f"Last validation: {summary}\nPictures, checkpoints and configuration: {folder}"
        )

    def state_dict(self) -> dict[str, list]:
        return {"train": self.train, "val": self.val}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        self.train, self.val = state_dict["train"], state_dict["val"]

    def _save(self, trainer: Trainer, folder: Path, name: str, figure: Figure) -> None:
        figure.savefig(folder / f"{name}.png", dpi=150)
        for logger in trainer.loggers:
            log_figure(logger, name, figure, trainer.global_step)


def learning_curve(
    train: list[tuple[int, float]], val: list[tuple[int, dict[str, float]]]
) -> Figure:
    """Loss and accuracy over steps, side by side."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        if metric == "loss" and train:
            axes.plot(*zip(*train, strict=True), color="0.75", linewidth=0.8, label="train/loss")
        for name in sorted(val[-1][1]):
            if name.startswith(f"val/{metric}"):
                points = [(step, metrics[name]) for step, metrics in val if name in metrics]
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def accuracy_by_size(sizes: list[int], accuracies: list[float]) -> Figure:
    """Accuracy at the training size, the first, and at the others."""
    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    axes.plot([sizes[i] for i in order], [accuracies[i] for i in order], marker="o")
    axes.axvline(sizes[0], color="0.6", linestyle="--", label=f"training size {sizes[0]}")
    axes.set_xlabel("image size in pixels")
    axes.set_ylabel("validation accuracy")
    axes.set_ylim(min(0.45, *accuracies) - 0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
