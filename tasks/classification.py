"""LightningModule for classification: cross-entropy and accuracy."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from tasks.data import UNLABELLED, DataModule
from tasks.supervised import Supervised


class Classification(Supervised):
    """Classification of every input, or of every position of it.

    The net maps inputs to logits with the classes on the last axis; out_dim is the number of
    classes, targets are class indices.

    Args:
        label_smoothing: Share of a target that is spread evenly over all classes in training, which
            keeps a gradient when all predictions are correct.
        args: See `Supervised`.
        kwargs: See `Supervised`.

    Raises:
        ValueError: fewer than two classes, or label_smoothing is out of range.
    """

    main_metric = "accuracy"
    outputs = "logits, the classes on the last axis,"

    def __init__(self, *args: object, label_smoothing: float = 0.0, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"{type(self).__name__}: label_smoothing must be at least 0 and less than 1, got "
                f"{label_smoothing}; 0.1 is common"
            )
        self.label_smoothing = label_smoothing

    def check_sizes(self) -> None:
        if self.out_dim < 2:
            raise ValueError(
                f"{type(self).__name__}: there must be two or more classes, the data "
                f"have {self.out_dim}; do all samples have the same label, or none?"
            )

    def new_metrics(self) -> dict[str, Metric]:
        accuracy = MulticlassAccuracy(self.out_dim, average="micro")
        return {"loss": MeanMetric(), "accuracy": accuracy}

    def output_shape(self, targets: Tensor) -> tuple[int, ...]:
        return (*targets.shape, self.out_dim)

    def labelled(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and targets (n,) of all labelled positions."""
        return logits.flatten(0, -2), targets.flatten()

    def loss(self, logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(logits, targets, reduction, smoothing)

    def training_metrics(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (logits.argmax(-1) == targets).float().mean()}

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        logits, targets = self.labelled(logits, targets)
        return {"loss": (self.loss(logits, targets, "none"),), "accuracy": (logits, targets)}

    def predicted(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return torch.softmax(logits, -1)

    def describe(self, predicted: Tensor, target: Tensor, data: DataModule) -> str:
        probability, best = predicted.max(-1)
        names = data.class_names
        known = "no class" if target == UNLABELLED else f"class {names[int(target)]}"
        return f"{known}, predicted {names[int(best)]} at {float(probability):.0%}"


def cross_entropy(
    logits: Tensor, targets: Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """PyTorch's cross-entropy of logits (B, C) and classes (B,), with readable errors.

    Raises:
        ValueError: invalid targets; the range is checked only on a CPU, because it costs time.
    """
    if targets.dtype != torch.int64:
        raise ValueError(
            f"Classification: targets must be int64 class indices, got {targets.dtype}; use .long()"
        )
    try:
        return nn.functional.cross_entropy(
            logits, targets, reduction=reduction, label_smoothing=label_smoothing
        )
    except IndexError:
        low, high = targets.aminmax()
        raise ValueError(
            f"Classification: targets must be classes 0..{logits.shape[-1] - 1}, got "
            f"{int(low)}..{int(high)}; out_dim of the data is the number of classes"
        ) from None
