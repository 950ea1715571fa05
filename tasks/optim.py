"""Optimiser groups and learning-rate schedule."""

import math

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two groups: matrices, which decay, and vectors (biases and norms), which do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


class WarmupCosine(LambdaLR):
    """Learning rate that rises linearly, then falls along half a cosine.

    Args:
        optimizer: Its learning rate is the highest one.
        total_steps: Steps of the run.
        warmup: Share of the steps that rise, in [0, 1).
        final: Learning rate at the end over the highest one.

    Raises:
        ValueError: warmup outside [0, 1).
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"WarmupCosine: warmup is a share of the run in [0, 1), got {warmup}")
        rising = round(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            progress = min(1.0, (step - rising) / max(1, total_steps - rising))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)
