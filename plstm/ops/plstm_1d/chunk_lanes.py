"""Chunkwise form on a sequence whose edges carry several states (lanes).

Letters: B batch, N chunks, C positions in a chunk, H heads, K V widths, J I O lanes of the state,
the values and the outputs.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from plstm.ops.lanes import lane_products, lane_rows

CHUNK_LANES = 64  # with J lanes a chunk has 64 / J positions


class ChunkGates(NamedTuple):
    """Everything the gates of one chunk do, collapsed."""

    inside: Tensor  # input at c' to output at c, (B, N, H, C, O, C, I)
    enter: Tensor  # entering state to output at c, (B, N, H, C, O, J)
    leave: Tensor  # input at c' to leaving state, (B, N, H, J, C, I)
    across: Tensor  # entering to leaving state, (B, N, H, J, J)


def plstm_1d_chunk_lanes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive`, in matrix products; shapes with lanes as in `plstm_1d`."""
    chunk_size = max(1, CHUNK_LANES // state.shape[-1])
    inputs, outs = (q, k, v, source, transition, mark, direct), []
    whole = q.shape[1] - q.shape[1] % chunk_size
    for part in (slice(0, whole), slice(whole, None)):  # the rest is one shorter chunk
        if q[:, part].shape[1] > 0:
            out, state = _whole_chunks(*(x[:, part] for x in inputs), state, chunk_size)
            outs.append(out)
    return scale * torch.cat(outs, 1), state


def _whole_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    chunk_size = min(chunk_size, q.shape[1])
    q, k, v, source, transition, mark, direct = (
        rearrange(x, "b (n c) h ... -> b n h c ...", c=chunk_size)
        for x in (q, k, v, source, transition, mark, direct)
    )
    gates = _collapse(source, transition, mark, direct)
    states, state = _scan_chunks(k, v, gates, state)

    gated = (q @ k.mT)[..., None, :, None] * gates.inside  # (B, N, H, C, O, C, I)
    values = rearrange(v, "b n h c v i -> b n h (c i) v")
    out = gated.flatten(-2).flatten(-3, -2) @ values  # (B, N, H, C * O, V)
    out = rearrange(out, "b n h (c o) v -> b n h c v o", c=chunk_size)
    read = (q @ states.flatten(-2)).unflatten(-1, states.shape[-2:])  # C^T q, (B, N, H, C, V, J)
    out = out + torch.einsum("bnhcoj,bnhcvj->bnhcvo", gates.enter, read)
    return rearrange(out, "b n h c v o -> b (n c) h v o"), state


def _collapse(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> ChunkGates:
    """A loop over the positions of a chunk, all chunks at once."""
    chunk_size, lanes_in = source.shape[3], source.shape[-1]
    a, b, p = (x.unbind(3) for x in (transition, source, mark))
    rows, leave = lane_rows(a, b, p)
    enter, across = lane_products(a, p)
    rows = [
        torch.nn.functional.pad(r, (0, (chunk_size - t) * lanes_in)) for t, r in enumerate(rows)
    ]
    inside = torch.stack(rows, 3).unflatten(-1, (chunk_size, lanes_in))
    diagonal = torch.diag_embed(direct.movedim(3, -1)).movedim((-2, -1), (3, 5))
    return ChunkGates(inside + diagonal, enter, leave.unflatten(-1, (chunk_size, lanes_in)), across)


def _scan_chunks(k: Tensor, v: Tensor, gates: ChunkGates, state: Tensor) -> tuple[Tensor, Tensor]:
    """States that enter each chunk, (B, N, H, K, V, J), and the one that leaves the last."""
    gated = torch.einsum("bnhjci,bnhcvi->bnhcvj", gates.leave, v)
    updates = (k.mT @ gated.flatten(-2)).unflatten(-1, gated.shape[-2:])
    entering = []
    # unbind, not indexing: the gradient of an index fills all chunks with zeros, at every chunk.
    for across, update in zip(
        gates.across[..., None, :, :].unbind(1), updates.unbind(1), strict=True
    ):
        entering.append(state)
        state = state @ across.mT + update
    return torch.stack(entering, 1), state
