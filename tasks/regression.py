"""LightningModule for regression: mean squared error, RMSE, MAE, R2, Pearson's r."""

import warnings
from functools import partial

import torch
from torch import Tensor, nn
from torchmetrics.functional import (
    mean_absolute_error,
    mean_squared_error,
    pearson_corrcoef,
    r2_score,
)

from tasks.targets import Score, TargetModule


def pearson(predictions: Tensor, targets: Tensor) -> Tensor:
    """Pearson's r; NaN if all predictions are equal, as for an untrained net."""
    if (predictions == predictions[0]).all():
        return predictions.new_tensor(torch.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The variance of predictions or target is close")
        return pearson_corrcoef(predictions, targets)


class Regression(TargetModule):
    """Regression on targets standardized over the training set; metrics use original units.

    Mean and scale (the standard deviation, 1 for a constant target) of every target are buffers,
    which checkpoints store. Arguments as for `Supervised`; targets as in `TargetModule`.

    Raises:
        ValueError: a target has no measured value in the training set.
    """

    main_metric = "rmse"
    scores = {  # noqa: RUF012 never changed
        "rmse": Score(partial(mean_squared_error, squared=False), needs_two_values=False),
        "mae": Score(mean_absolute_error, needs_two_values=False),
        "r2": Score(r2_score),
        "pearson": Score(pearson),
    }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("target_mean", torch.zeros(self.out_dim))
        self.register_buffer("target_scale", torch.ones(self.out_dim))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.standardize_by(self.trainer.datamodule.training_targets)

    def standardize_by(self, targets: Tensor) -> None:
        """Set mean and scale from targets (n, T) or (n,), ignoring NaN."""
        x = self.columns(targets).flatten(0, -2).double()
        if (absent := x.isnan().all(0)).any():
            names = self.trainer.datamodule.target_names
            named = ", ".join(n for n, is_absent in zip(names, absent, strict=True) if is_absent)
            raise ValueError(
                f"{type(self).__name__}: every target must be measured in the training set, got no "
                f"value of {named}; remove it or split the data in another way"
            )
        mean = x.nanmean(0)
        scale = (x - mean).square().nanmean(0).sqrt()
        self.target_mean.copy_(mean)
        self.target_scale.copy_(torch.where(scale > 0, scale, 1))

    def to_learn(self, targets: Tensor) -> Tensor:
        """Standardize targets."""
        return (targets - self.target_mean) / self.target_scale

    def predicted(self, outputs: Tensor) -> Tensor:
        """Convert targets to their original units."""
        return outputs * self.target_scale + self.target_mean

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Squared error of standardized targets; the mean of none is 0."""
        errors = nn.functional.mse_loss(outputs, targets, reduction="none")
        return errors.sum() / max(1, len(errors)) if reduction == "mean" else errors
