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

    Args:
        until_error: Train on the labels of a sequence up to the first one that the net gets wrong.
            Where an error spoils all that follow, as in word problems, the later labels teach
            nothing yet; so the net learns short beginnings first, and longer ones as it can.
        args: As `Classification`.
        kwargs: As `Classification`.
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
        """Logits (n, C) and targets (n,) of the positions that have a label and count."""
        keep = targets != UNLABELLED
        if self.until_error and self.training:
            wrong = keep & (logits.argmax(-1) != targets)
            keep &= wrong.cumsum(1) - wrong.long() == 0  # no error before
        return logits[keep], targets[keep]

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, ...]]:
        right = (logits.argmax(-1) == targets) | (targets == UNLABELLED)
        every = right.all(1).to(torch.float32)
        return super().measure(logits, targets) | {"sequence_accuracy": (every,)}
