"""Optimiser groups and learning-rate schedule."""

import math

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from plstm.modules.position import LearnedPosition1d, LearnedPosition2d


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two groups: matrices, which decay, and the rest, which does not: vectors, position codes."""
    codes = {
        parameter
        for part in module.modules()
        if isinstance(part, (LearnedPosition1d, LearnedPosition2d))
        for parameter in part.parameters()
    }
    parameters = [p for p in module.parameters() if p.requires_grad]
    decaying = [p for p in parameters if p.ndim >= 2 and p not in codes]
    kept = [p for p in parameters if p.ndim < 2 or p in codes]
    return [{"params": decaying}, {"params": kept, "weight_decay": 0.0}]


def describe(optimizer: Optimizer) -> str:
    """Which parameters the optimiser makes smaller, in a line."""
    groups = [
        f"{sum(p.numel() for p in group['params']):,} parameters in {len(group['params'])} tensors "
        f"with weight decay {group.get('weight_decay', 0):g}"
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__}: {', '.join(groups)}"


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
