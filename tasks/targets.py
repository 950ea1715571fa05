"""Base LightningModule for real or binary targets, some of which are not measured."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from tasks.data import DataModule
from tasks.supervised import Supervised

DESCRIBED = 3  # maximum targets described per example


class Score(NamedTuple):
    """A metric of one target, for predictions (n,) and targets (n,) in float64."""

    function: Callable[[Tensor, Tensor], Tensor]
    needs_two_values: bool = True  # undefined if all targets are equal


class TargetModule(Supervised):
    """Predicts T targets of every sample, or of every node; NaN means not measured.

    The net maps inputs to (n, T), out_dim is T; targets are (n, T), or (n,) for one target. Cells
    that are not measured are ignored by loss and metrics.

    Metrics: the mean over targets under the name of the metric and, for several targets, one per
    target with the name of the metric and of the target. A constant target in an evaluation set is
    excluded from the means of metrics that need different values, and reported once.
    """

    outputs = "one value per target,"
    scores: ClassVar[dict[str, Score]]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.evaluated: dict[str, Cells] = {}  # last evaluation, by split and name of the set
        self._named: set[str] = set()  # evaluation sets that are reported

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for name in self.eval_names:
            self.metrics[f"cells{name}"] = GatheredCells()

    def new_metrics(self) -> dict[str, Metric]:
        return {"loss": MeanMetric()}

    def columns(self, targets: Tensor) -> Tensor:
        """Targets (n, T) in floating point.

        Raises:
            ValueError: the number of targets is not the number of outputs.
        """
        columns = targets[:, None] if targets.ndim == 1 else targets
        if columns.shape[-1] != self.out_dim:
            raise ValueError(
                f"{type(self).__name__}: targets must have out_dim={self.out_dim} columns, got "
                f"{tuple(targets.shape)}; are they for another module, such as Classification?"
            )
        return columns.float()

    def to_learn(self, targets: Tensor) -> Tensor:
        """Expected shape of the outputs for targets (n, T)."""
        return targets

    def output_shape(self, targets: Tensor) -> tuple[int, ...]:
        return tuple(self.columns(targets).shape)

    def labelled(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and scaled targets of all measured cells."""
        targets = self.to_learn(self.columns(targets))
        measured = ~targets.isnan()
        return outputs[measured].float(), targets[measured]

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return {"loss": (self.loss(*self.labelled(outputs, targets), "none"),)}

    def describe(self, predicted: Tensor, target: Tensor, data: DataModule) -> str:
        cells = zip(data.target_names, predicted.tolist(), target.tolist(), strict=True)
        texts = [f"{name} {true:.4g}, predicted {value:.4g}" for name, value, true in cells]
        return "; ".join(texts[:DESCRIBED]).replace(" nan,", " not measured,")

    def _evaluate(self, split: str, batch: object, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        outputs, targets = super()._evaluate(split, batch, dataloader_idx)
        cells = self.metrics[f"cells{self.eval_names[dataloader_idx]}"]
        cells.update(self.predicted(outputs), self.columns(targets))
        return outputs, targets

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        targets = self.trainer.datamodule.target_names
        for name in self.eval_names:
            cells = self.metrics[f"cells{name}"].cells()
            self.metrics[f"cells{name}"].reset()
            self.evaluated[f"{split}{name}"] = cells
            self._name_constant(f"{split}{name}", cells, targets)
            for metric, score in self.scores.items():
                values = by_target(score, cells)
                if not values.isnan().all():
                    self.log(f"{split}/{metric}{name}", values.nanmean(), prog_bar=True)
                for target, value in zip(targets, values, strict=True):
                    if len(targets) > 1 and not value.isnan():
                        self.log(f"{split}/{metric}/{target}{name}", value)

    def _name_constant(self, split: str, cells: "Cells", names: list[str]) -> None:
        """Report constant targets, once per set."""
        constant = [n for n, x in zip(names, cells.targets.T, strict=True) if not varies(x)]
        if constant and split not in self._named and not self.trainer.sanity_checking:
            self._named.add(split)
            shares = ", ".join(n for n, s in self.scores.items() if s.needs_two_values)
            rank_zero_info(
                f"{type(self).__name__}: no two different values were measured in {split} of "
                f"{', '.join(constant)}: no {shares} there, and no part in their means"
            )


class Cells(NamedTuple):
    """Predictions and targets (n, T) in float64 on the CPU; NaN if not measured."""

    predictions: Tensor
    targets: Tensor


class GatheredCells(Metric):
    """Collects the cells of all batches on all processes."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch, both (..., T)."""
        self.predictions.append(predictions.flatten(0, -2))
        self.targets.append(targets.flatten(0, -2))

    def compute(self) -> Cells:
        """All cells; for a single cell torchmetrics converts the tensors to scalars."""
        parts = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        return Cells(*(x.cpu().double() for x in parts))

    def cells(self) -> Cells:
        """All cells, always (n, T)."""
        return Cells(*(torch.atleast_2d(x) for x in self.compute()))


def by_target(score: Score, cells: Cells) -> Tensor:
    """A metric of every target over its measured cells, (T,); NaN if undefined."""
    values = []
    for predictions, targets in zip(cells.predictions.T, cells.targets.T, strict=True):
        measured = ~targets.isnan()
        predictions, targets = predictions[measured], targets[measured]
        defined = varies(targets) if score.needs_two_values else len(targets) > 0
        nan = torch.tensor(torch.nan, dtype=torch.float64)
        values.append(score.function(predictions, targets) if defined else nan)
    return torch.stack(values)


def varies(targets: Tensor) -> bool:
    """Whether the measured targets (n,) have different values."""
    return len(targets[~targets.isnan()].unique()) > 1
