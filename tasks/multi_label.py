"""LightningModule for binary targets: cross-entropy, ROC-AUC, average precision."""

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from tasks.targets import Score, TargetModule, varies


class MultiLabel(TargetModule):
    """Predicts the probabilities of one or more binary targets.

    Arguments as for `Supervised`; targets as in `TargetModule`.

    Raises:
        ValueError: targets are neither 0 nor 1; no target has both values in the training set.
    """

    main_metric = "roc_auc"
    scores = {  # noqa: RUF012 never changed
        "roc_auc": Score(lambda p, y: binary_auroc(p, y.long())),
        "average_precision": Score(lambda p, y: binary_average_precision(p, y.long())),
    }

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            targets = self.columns(self.trainer.datamodule.training_targets).flatten(0, -2)
            self._check(targets[~targets.isnan()])
            if not any(varies(column) for column in targets.T):
                raise ValueError(
                    f"{type(self).__name__}: targets must have zeros and ones, no target "
                    "has both in the training set; use another split or more rows"
                )

    def predicted(self, outputs: Tensor) -> Tensor:
        """Probabilities of ones."""
        return torch.sigmoid(outputs)

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Binary cross-entropy of logits; the mean of none is 0."""
        if targets.device.type == "cpu":  # only there, because checking costs time
            self._check(targets)
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return losses.sum() / max(1, len(losses)) if reduction == "mean" else losses

    def _check(self, targets: Tensor) -> None:
        if not ((targets == 0) | (targets == 1)).all():
            low, high = targets.aminmax()
            raise ValueError(
                f"{type(self).__name__}: targets must be 0, 1 or NaN, got {float(low):g}.."
                f"{float(high):g}; use --model Regression for other values"
            )
