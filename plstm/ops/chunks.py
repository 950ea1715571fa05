"""Cutting a sequence into chunks, and the scan of states over them."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor


def split_chunks(x: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """(B, L, H, ...) by chunks, (B, H, N, C, ...); the last chunk is filled up with `fill`."""
    missing = -x.shape[1] % size
    if missing:
        x = torch.cat([x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)], 1)
    return rearrange(x, "b (n c) h ... -> b h n c ...", c=size)


def join_chunks(x: Tensor, length: int) -> Tensor:
    """Inverse of `split_chunks`: (B, H, N, C, ...) to (B, L, H, ...)."""
    return rearrange(x, "b h n c ... -> b (n c) h ...")[:, :length]


def scan_chunks(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    factors: Tensor,
    updates: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """States along the chunks: the next one is step(factor, state, update).

    Args:
        step: Takes a factor, a state and an update of one chunk.
        factors: What a chunk does to its state, (B, H, N, ...).
        updates: What it adds, (B, H, N, K, V).
        state: State that enters the first chunk, (B, H, K, V).

    Returns:
        States that enter each chunk, (B, H, N, K, V), and the one that leaves the last.
    """
    entering = []
    # unbind, not indexing: the gradient of an index fills all chunks with zeros, at every chunk.
    for factor, update in zip(factors.unbind(2), updates.unbind(2), strict=True):
        entering.append(state)
        state = step(factor, state, update)
    return torch.stack(entering, 2), state
