"""The LightningModule of sequences of which some positions have a label."""

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from tasks.classification import Classification
from tasks.data import UNLABELLED
from tasks.packing import Packed, packed_logits


class SequenceLabelling(Classification):
    """Learns the labels of positions: accuracy per label, and of sequences without any error.

    Batches are tokens (B, L), or the same `Packed`, and targets (B, L); targets `UNLABELLED` count
    neither in the loss nor in a metric. Metrics: `loss`, `accuracy` over labels,
    `sequence_accuracy` over sequences, which is 1 for a sequence with every label right.
    """

    def new_metrics(self) -> dict[str, Metric]:
        return super().new_metrics() | {"sequence_accuracy": MeanMetric()}

    def _predict(self, batch: tuple[Tensor | Packed, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, targets = batch
        if isinstance(tokens, Packed):
            return packed_logits(self.net, tokens), targets
        return super()._predict(batch)

    def labelled(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and targets (n,) of the positions that have a label."""
        keep = targets != UNLABELLED
        return logits[keep], targets[keep]

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        right = (logits.argmax(-1) == targets) | (targets == UNLABELLED)
        every = right.all(1).to(torch.float32)
        return super().measure(logits, targets) | {"sequence_accuracy": (every,)}
