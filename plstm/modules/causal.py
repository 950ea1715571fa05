"""What causal mixers share: the state of a plain recurrence, and the check of its use."""

from typing import NamedTuple

import torch
from torch import Tensor


class MemoryState(NamedTuple):
    """State of a mixer that carries its K x V memory and nothing else."""

    memory: Tensor  # (B, H, K, V)


def check_causal_use(layer: str, causal: bool, axes: torch.Size, has_state: bool) -> None:
    """Check a call of a mixer that is causal on request only.

    Args:
        layer: Name put in front of the message.
        causal: Whether the mixer only looks back.
        axes: Sizes of the position axes.
        has_state: Whether a state comes in or is asked for.

    Raises:
        ValueError: causal over several position axes; a state without causal.
    """
    if (causal and len(axes) != 1) or (has_state and not causal):
        raise ValueError(
            f"{layer}: a state and causal=True go together, over one position axis, "
            f"got causal={causal}, {len(axes)} position axes and {'a' if has_state else 'no'} state"
        )
