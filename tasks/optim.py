"""Parameter groups of the optimizer, and learning-rate schedule."""

import inspect
import math
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from plstm.modules.position import LearnedPosition1d, LearnedPosition2d

SchedulerFactory = Callable[[Optimizer], LRScheduler]


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two groups: matrices, with weight decay, and vectors and position encodings, without."""
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
    """Describe the parameter groups and their weight decay in one line."""
    groups = [
        f"{sum(p.numel() for p in group['params']):,} parameters in {len(group['params'])} tensors "
        f"with weight decay {group.get('weight_decay', 0):g}"
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__}: {', '.join(groups)}"


def wants_total_steps(factory: SchedulerFactory) -> bool:
    """Whether a scheduler has an argument `total_steps` that is not set."""
    given = getattr(factory, "keywords", {})  # of a partial; the command line also sets defaults
    if "total_steps" in given:
        return given["total_steps"] is None
    return "total_steps" in inspect.signature(factory).parameters


class WarmupCosine(LambdaLR):
    """Linear warmup, then cosine decay of the learning rate.

    Args:
        optimizer: Its learning rate is the maximum.
        total_steps: Steps of the run; if None, those of the trainer.
        warmup: Fraction of the steps for the warmup, in [0, 1).
        final: Final learning rate relative to the maximum.

    Raises:
        ValueError: warmup is not in [0, 1); final is negative; no total_steps without a trainer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.05,
        final: float = 0.0,
    ) -> None:
        if total_steps is None:
            raise ValueError("WarmupCosine: needs total_steps, the steps of the run, got None")
        if total_steps < 1:
            raise ValueError(f"WarmupCosine: total_steps must be 1 or more, got {total_steps}")
        if not 0 <= final < math.inf:
            raise ValueError(
                f"WarmupCosine: final is a fraction of the maximum rate, 0 or more, got {final}"
            )
        if not 0 <= warmup < 1:
            raise ValueError(f"WarmupCosine: warmup is a fraction in [0, 1), got {warmup}")
        rising = round(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            progress = min(1.0, (step - rising) / max(1, total_steps - rising))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)
