"""Chunkwise gated linear attention with one decay per key channel.

Letters: B batch, N chunks, C positions in a chunk, H heads, K V widths.

Inside a chunk the weight of position s in output t is

    A[t, s] = sum_d q_t[d] k_s[d] a_{s+1}[d] ... a_t[d]

The product of decays differs between channels, so A is not a masked q k^T. But between two
neighboring blocks it factors at their boundary: the product from s to the end of the left block,
times the product from the start of the right block to t. So blocks of 1, 2, 4, ... positions are
merged in pairs, and each merge is a matrix product of queries, scaled by the decays since the start
of their block, with keys, scaled by the decays until the end of theirs. Decays are multiplied,
never divided, which in exponents means sums of log decays, all <= 0.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plstm.ops.chunks import join_chunks, scan_chunks, split_chunks
from plstm.ops.derivatives import transformed

CHUNK_SIZE = 64  # a power of two
# Chunks whose temporaries are in memory at a time; the backward pass recomputes them.
PIECE_CHUNKS = 16


def gated_linear_attention_chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Same result as `gated_linear_attention_naive` for decays (B, L, H, K), in matrix products."""
    outs = []
    parts = (x.split(CHUNK_SIZE * PIECE_CHUNKS, 1) for x in (q, k, v, decay))
    for part in zip(*parts, strict=True):
        if transformed():  # torch.func does not support checkpointing
            out, state = _piece(*part, state)
        else:
            out, state = checkpoint(
                _piece, *part, state, use_reentrant=False, preserve_rng_state=False
            )
        outs.append(out)
    return scale * torch.cat(outs, 1), state


def _piece(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    length = q.shape[1]
    size = min(CHUNK_SIZE, 1 << (length - 1).bit_length())
    q, k, v = (split_chunks(x, size) for x in (q, k, v))
    weights, q, k, across = _merge_blocks(q, k, split_chunks(decay, size, fill=1.0))
    states, state = scan_chunks(
        lambda factor, state, update: torch.addcmul(update, factor, state),
        across.mT,
        k.mT @ v,
        state,
    )
    return join_chunks(weights @ v + q @ states, length), state


def _merge_blocks(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply all products of decays within a chunk.

    Args:
        q: Queries, (B, H, N, C, K).
        k: Keys, (B, H, N, C, K).
        decay: Decays, (B, H, N, C, K).

    Returns:
        A (B, H, N, C, C), lower-triangular; queries times the decays since the start of the chunk,
        (B, H, N, C, K); keys times the decays until its end, (B, H, N, C, K); the decays of the
        whole chunk, (B, H, N, 1, K).
    """
    weights = (q * k).sum(-1)[..., None, None]  # (B, H, N, blocks, positions, positions)
    q, k, total = ((q * decay)[..., None, :], k[..., None, :], decay[..., None, :])
    while total.shape[3] > 1:
        (w_left, w_right), (q_left, q_right), (k_left, k_right), (t_left, t_right) = (
            x.unflatten(3, (-1, 2)).unbind(4) for x in (weights, q, k, total)
        )
        upper = torch.nn.functional.pad(w_left, (0, w_right.shape[-1]))
        lower = torch.cat([q_right @ k_left.mT, w_right], -1)
        weights = torch.cat([upper, lower], -2)
        q = torch.cat([q_left, q_right * t_left], -2)
        k = torch.cat([k_left * t_right, k_right], -2)
        total = t_left * t_right
    return weights.squeeze(3), q.squeeze(3), k.squeeze(3), total.squeeze(3)
