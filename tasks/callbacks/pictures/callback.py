"""When pictures are drawn, and where they go."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from tasks.callbacks.pictures import graph, grid, sequence
from tasks.callbacks.pictures.confusion import MAX_CLASSES, accuracy, confusion_matrices
from tasks.callbacks.pictures.curves import accuracy_by_size, learning_curve
from tasks.callbacks.predictions import by_test_set
from tasks.classification import inputs_and_targets
from tasks.data import UNLABELLED
from tasks.runs import log_figure, run_folder

POINTS = 400  # training steps kept for the learning curve, at most
TRAINED = ("train/loss", "train/accuracy")


class Pictures(Callback):
    """Draws pictures, saves them as PNG in the run's folder and sends them to the logger.

    After training: learning_curve, and accuracy_by_size where a task has several sizes. By
    predicting, for the test sets: confusion (up to 100 classes), accuracy_by_size, those of the
    task (DataModule.prediction_pictures), and for nets with such layers the gates of an example of
    the first batch: gating_grid, gating_sequence, gating_graph.
    """

    def __init__(self) -> None:
        self.train: list[tuple[int, dict[str, float]]] = []  # (step, loss and accuracy)
        self.val: list[tuple[int, dict[str, float]]] = []  # (step, metrics)
        self.confusion: dict[str, MulticlassConfusionMatrix] = {}  # by the suffix of the test set

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        every = max(1, int(trainer.estimated_stepping_batches) // POINTS)
        if self.train and self.train[-1][0] == trainer.global_step:
            return  # several batches make a step
        logged = trainer.callback_metrics
        metrics = {name: float(logged[name]) for name in TRAINED if name in logged}
        if trainer.global_step % every == 0 and metrics:
            self.train.append((trainer.global_step, metrics))

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
        size = _at(trainer.datamodule.sizes)
        title = f"{type(pl_module.net).__name__} on {type(trainer.datamodule).__name__}"
        figure = learning_curve(self.train, self.val, f"{title}, {folder.name}", size)
        self._save(trainer, folder, "learning_curve", figure)
        metrics = self.val[-1][1]
        accuracies = [metrics[f"val/accuracy{name}"] for name in trainer.datamodule.eval_names]
        self._save_sizes(trainer, folder, accuracies, "validation")
        summary = "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        rank_zero_info(
            f"Last validation: {summary}\nPictures, checkpoints and configuration: {folder}"
        )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classes = trainer.datamodule.out_dim
        names = trainer.datamodule.eval_names if classes <= MAX_CLASSES else []
        self.confusion = {
            name: MulticlassConfusionMatrix(classes, ignore_index=UNLABELLED).to(pl_module.device)
            for name in names
        }

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        inputs, targets = inputs_and_targets(batch)
        if self.confusion:
            metric = self.confusion[trainer.datamodule.eval_names[dataloader_idx]]
            metric.update(outputs.flatten(0, -2), targets.flatten())
        if batch_idx == dataloader_idx == 0:
            self._save_gates(trainer, pl_module, inputs, outputs, targets)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        predictions = by_test_set(trainer, trainer.predict_loop.predictions)  # of all ranks
        if (folder := run_folder(trainer)) is not None:
            for name, figure in trainer.datamodule.prediction_pictures(predictions).items():
                self._save(trainer, folder, name, figure)
        counts = {name: metric.compute() for name, metric in self.confusion.items()}  # of all ranks
        data = trainer.datamodule
        if folder is None or not any(matrix.any() for matrix in counts.values()):
            return  # nothing to compare with
        own = _at(data.sizes)
        matrices = {f"test {name or own}".strip(): matrix for name, matrix in counts.items()}
        figure = confusion_matrices(matrices, data.class_names)
        self._save(trainer, folder, "confusion", figure)
        self._save_sizes(trainer, folder, [accuracy(x) for x in counts.values()], "test")
        rank_zero_info(f"Pictures: {folder}")

    def state_dict(self) -> dict[str, list]:
        return {"train": self.train, "val": self.val}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        self.train, self.val = state_dict["train"], state_dict["val"]

    def _save_gates(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        inputs: object,
        probabilities: Tensor,
        targets: Tensor,
    ) -> None:
        """Every process runs the net, which may hold a part of the weights only."""
        net, data, folder = pl_module.net, trainer.datamodule, run_folder(trainer)
        names, every, labels = data.class_names, probabilities.flatten(0, -2), targets.flatten()

        def describe(number: int) -> str:
            return _describe(every[number], labels[number], names)

        example = describe(int((labels != UNLABELLED).long().argmax()))
        tokens = names if data.in_dim == data.out_dim else None  # where tokens are predicted
        with trainer.precision_plugin.predict_step_context():
            figures = {
                "gating_grid": grid.gating_maps(net, inputs, example),
                "gating_sequence": sequence.gating_maps(net, inputs, tokens),
                "gating_graph": graph.gating_maps(net, inputs, describe, data.node_names),
            }
        for name, figure in figures.items():
            if folder is not None and figure is not None:
                self._save(trainer, folder, name, figure)

    def _save_sizes(
        self, trainer: Trainer, folder: Path, accuracies: list[float], split: str
    ) -> None:
        data = trainer.datamodule
        if len(data.sizes) > 1:
            figure = accuracy_by_size(data.sizes, accuracies, split, data.size_name)
            self._save(trainer, folder, "accuracy_by_size", figure)

    def _save(self, trainer: Trainer, folder: Path, name: str, figure: Figure) -> None:
        figure.savefig(folder / f"{name}.png", dpi=150)
        for logger in trainer.loggers:
            log_figure(logger, name, figure, trainer.global_step)


def _at(sizes: list[int]) -> str:
    """Suffix of the size trained at, as that of the other sizes; none if it is the only one."""
    return f"@{sizes[0]}" if len(sizes) > 1 else ""


def _describe(probabilities: Tensor, target: Tensor, names: list[str]) -> str:
    """True and predicted class of an example with probabilities (C,)."""
    probability, best = probabilities.max(-1)
    known = "no class" if target == UNLABELLED else f"class {names[int(target)]}"
    return f"{known}, predicted {names[int(best)]} at {float(probability):.0%}"
