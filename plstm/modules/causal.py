"""What causal mixers share: the state of a plain recurrence, and the check of their calls."""

from typing import NamedTuple

import torch
from torch import Tensor

from plstm.ops.packed import CuSeqlens, Packing, check_states


class MemoryState(NamedTuple):
    """State of a mixer that carries its memory and nothing else."""

    memory: Tensor  # (B, H, K, V)


def check_causal_call(
    layer: str, causal: bool, x: Tensor, has_state: bool, cu_seqlens: CuSeqlens | None
) -> None:
    """Check a call of a mixer that is causal on request.

    Args:
        layer: Name put in front of the message.
        causal: Whether the mixer only looks back.
        x: Its input, (B, *positions, dim).
        has_state: Whether a state comes in or is asked for.
        cu_seqlens: Borders of packed sequences, if x holds such.

    Raises:
        ValueError: causal over several position axes; a state or packed sequences without causal.
    """
    axes = x.ndim - 2
    if (causal and axes != 1) or (has_state and not causal):
        raise ValueError(
            f"{layer}: a state and causal=True go together, over one position axis, "
            f"got causal={causal}, {axes} position axes and {'a' if has_state else 'no'} state"
        )
    if cu_seqlens is not None and not causal:
        raise ValueError(
            f"{layer}: packed sequences need causal=True, got cu_seqlens and causal=False; pad them"
            " to one length and run lengths apart, or set causal to true"
        )


def token_positions(
    layer: str, x: Tensor, seen: Tensor | None, packing: Packing | None
) -> tuple[Tensor, Tensor]:
    """Positions within their sequences, and how many have been seen after them.

    Args:
        layer: Name put in front of the message.
        x: What lies there, (B, L, ...), or (1, total, ...) packed.
        seen: Positions before, one number per sequence, (B,), or (S,) packed; None for 0.
        packing: Where packed sequences lie.

    Returns:
        Positions (L,), or (B, L) with `seen` if not packed, and seen, (B,) or (S,).

    Raises:
        ValueError: `seen` is of another number of sequences.
    """
    if packing is None:
        positions = torch.arange(x.shape[1], device=x.device)
        lengths = torch.full(x.shape[:1], x.shape[1], device=x.device)
    else:
        positions, lengths = packing.positions, packing.lengths
    if seen is None:
        return positions, lengths
    check_states(layer, seen, len(lengths))
    offset = seen[:, None] if packing is None else seen[packing.sequence]
    return positions + offset, seen + lengths
