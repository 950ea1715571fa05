"""What causal mixers share: the state of a plain recurrence, and the check of their calls."""

from typing import NamedTuple

from torch import Tensor


class MemoryState(NamedTuple):
    """State of a mixer that carries its memory and nothing else."""

    memory: Tensor  # (B, H, K, V)


def check_causal_call(layer: str, causal: bool, x: Tensor, has_state: bool) -> None:
    """Check a call of a mixer that is causal on request.

    Args:
        layer: Name put in front of the message.
        causal: Whether the mixer only looks back.
        x: Its input, (B, *positions, dim).
        has_state: Whether a state comes in or is asked for.

    Raises:
        ValueError: causal over several position axes; a state without causal.
    """
    axes = x.ndim - 2
    if (causal and axes != 1) or (has_state and not causal):
        raise ValueError(
            f"{layer}: a state and causal=True go together, over one position axis, "
            f"got causal={causal}, {axes} position axes and {'a' if has_state else 'no'} state"
        )
