"""What LightningModules share that learn numbers of samples, some of which were not measured."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from tasks.data import DataModule
from tasks.supervised import Supervised

DESCRIBED = 3  # targets of an example that are described, at most


class Score(NamedTuple):
    """A metric of one target, of predictions (n,) and targets (n,) in float64."""

    function: Callable[[Tensor, Tensor], Tensor]
    needs_two_values: bool = True  # undefined where all targets are equal


class TargetModule(Supervised):
    """Learns T numbers of every sample, or of every node; NaN stands for one not measured.

    The net maps inputs to (n, T), out_dim is T; targets are (n, T), or (n,) for one target. Cells
    that were not measured count neither in the loss nor in a metric.

    Metrics: the mean over targets under the name of the metric and, where there are several, one
    per target under the name of the metric and its own. A target that has no two different values
    in an evaluation set is left out of the means of metrics that need them, and named once.
    """

    outputs = "one number per target,"
    scores: ClassVar[dict[str, Score]]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.evaluated: dict[str, Cells] = {}  # the last evaluation by split and name of the set
        self._named: set[str] = set()  # evaluation sets with targets that were named

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for name in self.eval_names:
            self.metrics[f"cells{name}"] = GatheredCells()

    def new_metrics(self) -> dict[str, Metric]:
        return {"loss": MeanMetric()}

    def columns(self, targets: Tensor) -> Tensor:
        """Targets (n, T) in floating point.

        Raises:
            ValueError: another number of targets than the net has outputs.
        """
        columns = targets[:, None] if targets.ndim == 1 else targets
        if columns.shape[-1] != self.out_dim:
            raise ValueError(
                f"{type(self).__name__}: targets must have out_dim={self.out_dim} columns, got "
                f"{tuple(targets.shape)}; are they for another module, as Classification is?"
            )
        return columns.float()

    def to_learn(self, targets: Tensor) -> Tensor:
        """What the net has to say for targets (n, T)."""
        return targets

    def output_shape(self, targets: Tensor) -> tuple[int, ...]:
        return tuple(self.columns(targets).shape)

    def labelled(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and what they should be, of all cells that were measured."""
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
        """Say which targets have no two different values, once per set."""
        constant = [n for n, x in zip(names, cells.targets.T, strict=True) if not varies(x)]
        if constant and split not in self._named and not self.trainer.sanity_checking:
            self._named.add(split)
            shares = ", ".join(n for n, s in self.scores.items() if s.needs_two_values)
            rank_zero_info(
                f"{type(self).__name__}: no two different values were measured in {split} of "
                f"{', '.join(constant)}: no {shares} there, and no part in their means"
            )


class Cells(NamedTuple):
    """Predictions and targets (n, T) in float64 on the CPU; NaN where nothing was measured."""

    predictions: Tensor
    targets: Tensor


class GatheredCells(Metric):
    """Collects the cells of all batches of all processes."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch, (..., T) both."""
        self.predictions.append(predictions.flatten(0, -2))
        self.targets.append(targets.flatten(0, -2))

    def compute(self) -> Cells:
        """All of them; where there is one cell, torchmetrics makes numbers of the tensors."""
        parts = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        return Cells(*(x.cpu().double() for x in parts))

    def cells(self) -> Cells:
        """All of them, (n, T) always."""
        return Cells(*(torch.atleast_2d(x) for x in self.compute()))


def by_target(score: Score, cells: Cells) -> Tensor:
    """A metric of every target over its measured cells, (T,); NaN where it is not defined."""
    values = []
    for predictions, targets in zip(cells.predictions.T, cells.targets.T, strict=True):
        measured = ~targets.isnan()
        predictions, targets = predictions[measured], targets[measured]
        defined = varies(targets) if score.needs_two_values else len(targets) > 0
        nan = torch.tensor(torch.nan, dtype=torch.float64)
        values.append(score.function(predictions, targets) if defined else nan)
    return torch.stack(values)


def varies(targets: Tensor) -> bool:
    """Whether two measured targets of (n,) differ."""
    return len(targets[~targets.isnan()].unique()) > 1
