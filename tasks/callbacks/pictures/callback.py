"""When pictures are drawn, and where they go."""

from functools import partial
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from tasks.callbacks.pictures import graph, grid, sequence
from tasks.callbacks.pictures.confusion import MAX_CLASSES, accuracy, confusion_matrices
from tasks.callbacks.pictures.curves import learning_curve, metric_by_size
from tasks.callbacks.pictures.targets import picture_of_targets
from tasks.callbacks.predictions import by_test_set
from tasks.data import UNLABELLED, DataModule
from tasks.runs import log_figure, run_folder
from tasks.supervised import inputs_and_targets
from tasks.targets import Cells, GatheredCells, TargetModule

T = TypeVar("T")

POINTS = 400  # maximum training steps in the learning curve
TRAINED = ("train/loss", "train/accuracy")


class Pictures(Callback):
    """Draws pictures, saves them as PNG in the run's folder and sends them to the logger.

    After training: learning_curve; targets (predictions against measured targets, or their scores,
    on the validation sets) if the task has targets; accuracy_by_size if it has several sizes. With
    predict, for the test sets: confusion (up to 100 classes) or targets, accuracy_by_size, those of
    the task (DataModule.prediction_pictures), and for nets with pLSTM layers the gates of an
    example of the first batch: gating_grid, gating_sequence, gating_graph.
    """

    def __init__(self) -> None:
        self.train: list[tuple[int, dict[str, float]]] = []  # (step, loss and accuracy)
        self.val: list[tuple[int, dict[str, float]]] = []  # (step, metrics)
        # By the suffix of the test set; a task has one or the other.
        self.confusion: dict[str, MulticlassConfusionMatrix] = {}
        self.cells: dict[str, GatheredCells] = {}

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
        metric = pl_module.main_metric
        values = [metrics.get(f"val/{metric}{name}") for name in trainer.datamodule.eval_names]
        self._save_sizes(trainer, folder, values, "validation", metric)
        if isinstance(pl_module, TargetModule):
            names = trainer.datamodule.eval_names
            known = {x: pl_module.evaluated[f"val{x}"] for x in names if pl_module.evaluated}
            self._save_targets(trainer, folder, pl_module, known, "validation")
        shown = {name: value for name, value in metrics.items() if name.count("/") == 1}
        summary = "  ".join(f"{name} {value:.4f}" for name, value in sorted(shown.items()))
        rank_zero_info(
            f"Last validation: {summary}\nPictures, checkpoints and configuration: {folder}"
        )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classes, names = trainer.datamodule.out_dim, trainer.datamodule.eval_names
        self.confusion, self.cells = {}, {}
        if isinstance(pl_module, TargetModule):
            self.cells = {name: GatheredCells().to(pl_module.device) for name in names}
        elif classes <= MAX_CLASSES:
            matrix = partial(MulticlassConfusionMatrix, classes, ignore_index=UNLABELLED)
            self.confusion = {name: matrix().to(pl_module.device) for name in names}

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
        name = trainer.datamodule.eval_names[dataloader_idx]
        if self.confusion:
            self.confusion[name].update(outputs.flatten(0, -2), targets.flatten())
        if self.cells:
            self.cells[name].update(outputs, pl_module.columns(targets))
        if batch_idx == dataloader_idx == 0:
            self._save_gates(trainer, pl_module, inputs, outputs, targets)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        predictions = by_test_set(trainer, trainer.predict_loop.predictions)  # of all ranks
        if (folder := run_folder(trainer)) is not None:
            for name, figure in trainer.datamodule.prediction_pictures(predictions).items():
                self._save(trainer, folder, name, figure)
        counts = {name: metric.compute() for name, metric in self.confusion.items()}  # of all ranks
        cells = {name: metric.cells() for name, metric in self.cells.items()}
        if folder is None:
            return
        if any(matrix.any() for matrix in counts.values()):  # some samples have a class
            self._save_confusion(trainer, folder, counts)
        if cells:
            self._save_targets(trainer, folder, pl_module, cells, "test")
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
        predictions: Tensor,
        targets: Tensor,
    ) -> None:
        """Run on every process, since each may hold only a part of the weights."""
        net, data, folder = pl_module.net, trainer.datamodule, run_folder(trainer)
        every = predictions.flatten(0, -2)
        labels = targets.reshape(len(every), -1)  # one class, or several targets

        def describe(number: int) -> str:
            return pl_module.describe(every[number], labels[number], data)

        def describe_graph(number: int) -> str:
            if len(every) == inputs.num_graphs:
                return describe(number)
            return f"first node: {describe(int((inputs.batch == number).long().argmax()))}"

        example = describe(int((labels != UNLABELLED).any(1).long().argmax()))
        tokens = data.class_names if data.in_dim == data.out_dim else None  # for token prediction
        with trainer.precision_plugin.predict_step_context():
            figures = {
                "gating_grid": grid.gating_maps(net, inputs, example),
                "gating_sequence": sequence.gating_maps(net, inputs, tokens),
                "gating_graph": graph.gating_maps(net, inputs, describe_graph, data.node_names),
            }
        for name, figure in figures.items():
            if folder is not None and figure is not None:
                self._save(trainer, folder, name, figure)

    def _save_confusion(self, trainer: Trainer, folder: Path, counts: dict[str, Tensor]) -> None:
        data = trainer.datamodule
        figure = confusion_matrices(_named(counts, data, "test"), data.class_names)
        self._save(trainer, folder, "confusion", figure)
        shares = [accuracy(x) for x in counts.values()]
        self._save_sizes(trainer, folder, shares, "test", "accuracy")

    def _save_targets(
        self,
        trainer: Trainer,
        folder: Path,
        pl_module: TargetModule,
        cells: dict[str, Cells],
        split: str,
    ) -> None:
        measured = {name: part for name, part in cells.items() if part.targets.isfinite().any()}
        if measured:
            data = trainer.datamodule
            sets = _named(measured, data, split)
            figure = picture_of_targets(pl_module, sets, data.target_names)
            self._save(trainer, folder, "targets", figure)

    def _save_sizes(
        self, trainer: Trainer, folder: Path, values: list[float | None], split: str, metric: str
    ) -> None:
        data = trainer.datamodule
        if len(data.sizes) > 1 and None not in values:
            figure = metric_by_size(data.sizes, values, split, data.size_name, metric)
            self._save(trainer, folder, f"{metric}_by_size", figure)

    def _save(self, trainer: Trainer, folder: Path, name: str, figure: Figure) -> None:
        figure.savefig(folder / f"{name}.png", dpi=150)
        for logger in trainer.loggers:
            log_figure(logger, name, figure, trainer.global_step)


def _at(sizes: list[int]) -> str:
    """Suffix of the training size, like those of other sizes; empty if it is the only one."""
    return f"@{sizes[0]}" if len(sizes) > 1 else ""


def _named(sets: dict[str, T], data: DataModule, split: str) -> dict[str, T]:
    """The same values by set names that are suitable for titles."""
    own = _at(data.sizes)
    return {f"{split} {name or own}".strip(): value for name, value in sets.items()}
