"""Splitting a sequence into chunks, and the scan of states over them.

Letters: B batch, L positions, H heads, N chunks, C positions in a chunk.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from plstm.compiler import statically_known_true
from plstm.ops.gates import Gates


def chunk_size(length: int, largest: int) -> int:
    """Positions per chunk: as few chunks as `largest` allows, of about equal size.

    A graph compiled for a dynamic length uses `largest`.
    """
    if statically_known_true(length <= largest):
        return length
    if torch.compiler.is_compiling():
        return largest
    chunks = -(-length // largest)
    return -(-length // chunks)


def split_chunks(x: Tensor, size: int, fill: Tensor | float = 0.0) -> Tensor:
    """Split (B, L, H, ...) into chunks, (B, H, N, C, ...); `fill` pads the last chunk."""
    batch, length = x.shape[:2]
    chunks = (length + size - 1) // size
    missing = chunks * size - length
    if not statically_known_true(missing == 0):
        x = torch.cat([x, x.new_zeros(batch, missing, *x.shape[2:]) + fill], 1)
    return x.unflatten(1, (chunks, size)).movedim(3, 1)


def split_gates(gates: Gates, size: int) -> Gates:
    """`split_chunks` for gates (B, L, H, ...); padding leaves states unchanged."""
    lanes = gates.transition.shape[3:]
    like = {"dtype": gates.transition.dtype, "device": gates.transition.device}
    unchanged = torch.eye(lanes[0], **like) if lanes else 1.0
    fills = Gates(source=0.0, transition=unchanged, mark=0.0, direct=0.0)
    return Gates(*(split_chunks(x, size, fill) for x, fill in zip(gates, fills, strict=True)))


def join_chunks(x: Tensor, length: int) -> Tensor:
    """Inverse of `split_chunks`: (B, H, N, C, ...) to (B, L, H, ...)."""
    return rearrange(x, "b h n c ... -> b (n c) h ...")[:, :length]


def scan_chunks(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    factors: Tensor,
    updates: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scan over the chunks: the next state is step(factor, state, update).

    Args:
        step: Takes the factor, the state and the update of one chunk.
        factors: Factors of the chunks on their states, (B, H, N, ...).
        updates: What the chunks add to them, (B, H, N, ...).
        state: State that enters the first chunk, (B, H, ...).

    Returns:
        States that enter each chunk, (B, H, N, ...), and the state after the last.
    """
    entering = []
    # unbind, not indexing: the gradient of each index would fill all chunks with zeros.
    for factor, update in zip(factors.unbind(2), updates.unbind(2), strict=True):
        entering.append(state)
        state = step(factor, state, update)
    return torch.stack(entering, 2), state
