"""Shared parts of causal mixers: the state of a plain recurrence, and checks of calls."""

from typing import NamedTuple

import torch
from torch import Tensor

from plstm.ops.packed import CuSeqlens, Packing, check_states


class MemoryState(NamedTuple):
    """State of a mixer without other state than its memory."""

    memory: Tensor  # (B, H, K, V)


def check_causal_call(
    layer: str, causal: bool, x: Tensor, has_state: bool, cu_seqlens: CuSeqlens | None
) -> None:
    """Check a call of a mixer with a `causal` option.

    Args:
        layer: Name that starts the message.
        causal: Whether the mixer is causal.
        x: Its input, (B, *positions, dim).
        has_state: Whether a state is passed or requested.
        cu_seqlens: Cumulative lengths of packed sequences, or None.

    Raises:
        ValueError: causal over several position axes; a state or packed sequences without causal.
    """
    axes = x.ndim - 2
    if (causal and axes != 1) or (has_state and not causal):
        raise ValueError(
            f"{layer}: states need causal=True, which needs one position axis, "
            f"got causal={causal}, {axes} position axes and {'a' if has_state else 'no'} state"
        )
    if cu_seqlens is not None and not causal:
        raise ValueError(
            f"{layer}: packed sequences need causal=True, got cu_seqlens and causal=False; batch "
            "sequences of equal length instead, or set causal to true"
        )


def token_positions(
    layer: str, x: Tensor, seen: Tensor | None, packing: Packing | None
) -> tuple[Tensor, Tensor]:
    """Positions within their sequences, and the number of positions seen afterwards.

    Args:
        layer: Name that starts the message.
        x: Any tensor over the positions, (B, L, ...), or (1, total, ...) if packed.
        seen: Number of earlier positions per sequence, (B,), or (S,) if packed; None for 0.
        packing: The packing of packed sequences, or None.

    Returns:
        Positions (L,), or (B, L) if `seen` is given and x not packed; new seen, (B,) or (S,).

    Raises:
        ValueError: `seen` has a different number of sequences.
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
