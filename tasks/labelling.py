"""LightningModule for sequence labelling, where some positions have a label."""

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from tasks.classification import Classification
from tasks.data import UNLABELLED
from tasks.packing import Packed, packed_logits


class SequenceLabelling(Classification):
    """Predicts the labels of positions; logs accuracy per label and per sequence.

    Batches are tokens (B, L), or the same `Packed`, and targets (B, L); targets `UNLABELLED` are
    ignored by loss and metrics. Metrics: `loss`, `accuracy` over labels, and `sequence_accuracy`,
    the fraction of sequences with all labels correct.

    Args:
        until_error: Train only on the labels of a sequence up to the first error. If an error
            spoils all later labels, as in word problems, these carry no signal; so the net learns
            short prefixes first, then longer ones.
        args: See `Classification`.
        kwargs: See `Classification`.
    """

    def __init__(self, *args: object, until_error: bool = False, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.until_error = until_error

    def new_metrics(self) -> dict[str, Metric]:
        return super().new_metrics() | {"sequence_accuracy": MeanMetric()}

    def _predict(self, batch: tuple[Tensor | Packed, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, targets = batch
        if isinstance(tokens, Packed):
            return packed_logits(self.net, tokens), targets
        return super()._predict(batch)

    def labelled(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and targets (n,) of the labelled positions that count."""
        keep = targets != UNLABELLED
        if self.until_error and self.training:
            wrong = keep & (logits.argmax(-1) != targets)
            keep &= wrong.cumsum(1) - wrong.long() == 0  # no error at earlier positions
        return logits[keep], targets[keep]

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        right = (logits.argmax(-1) == targets) | (targets == UNLABELLED)
        every = right.all(1).to(torch.float32)
        return super().measure(logits, targets) | {"sequence_accuracy": (every,)}
