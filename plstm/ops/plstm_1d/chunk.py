"""Chunkwise form on a sequence: parallel inside a chunk, recurrent states across chunk borders.

Letters: B batch, N chunks, C positions in a chunk, H heads, K V widths, J I O lanes of the state,
the values and the outputs.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from plstm.ops.lanes import lane_products, lane_rows
from plstm.ops.products import transition_products


class ChunkGates(NamedTuple):
    """Everything the gates of one chunk do, collapsed."""

    inside: Tensor  # input at c' to output at c, (B, N, H, C, O, C, I)
    enter: Tensor  # entering state to output at c, (B, N, H, C, O, J)
    leave: Tensor  # input at c' to leaving state, (B, N, H, J, C, I)
    across: Tensor  # entering to leaving state, (B, N, H, J, J)


def plstm_1d_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive`, in matrix products; lane shapes as in `plstm_1d`."""
    length, chunk_size = q.shape[1], min(chunk_size, q.shape[1])
    missing = -length % chunk_size
    if missing:
        # A position with no source, no mark and an identity transition changes nothing.
        q, k, v, source, mark, direct = (
            _pad_positions(x, missing) for x in (q, k, v, source, mark, direct)
        )
        identity = torch.eye(transition.shape[-1], dtype=v.dtype, device=v.device)
        identity = identity.expand(v.shape[0], missing, *transition.shape[2:])
        transition = torch.cat([transition, identity], 1)

    q, k, v, source, transition, mark, direct = (
        rearrange(x, "b (n c) h ... -> b n h c ...", c=chunk_size)
        for x in (q, k, v, source, transition, mark, direct)
    )
    one_lane = direct.shape[-2:] == (1, 1) and transition.shape[-1] == 1
    collapse = _scalar_gates if one_lane else _lane_gates
    gates = collapse(source, transition, mark, direct)
    states, state = _scan_chunks(k, v, gates, state)

    gated = (q @ k.mT)[..., None, :, None] * gates.inside  # (B, N, H, C, O, C, I)
    values = rearrange(v, "b n h c v i -> b n h (c i) v")
    out = gated.flatten(-2).flatten(-3, -2) @ values  # (B, N, H, C * O, V)
    out = rearrange(out, "b n h (c o) v -> b n h c v o", c=chunk_size)
    read = (q @ states.flatten(-2)).unflatten(-1, states.shape[-2:])  # C^T q, (B, N, H, C, V, J)
    out = out + torch.einsum("bnhcoj,bnhcvj->bnhcvo", gates.enter, read)
    out = rearrange(out, "b n h c v o -> b (n c) h v o")
    return scale * out[:, :length], state


def _pad_positions(x: Tensor, missing: int) -> Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)


def _scalar_gates(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> ChunkGates:
    """One lane: all products of transitions in one matrix."""
    products = transition_products(transition[..., 0, 0])  # (B, N, H, C + 1, C + 1)
    s, m, d = source[..., 0, 0], mark[..., 0, 0], direct[..., 0, 0]
    inside = m[..., :, None] * products[..., :-1, 1:] * s[..., None, :] + torch.diag_embed(d)
    return ChunkGates(
        inside=inside[..., :, None, :, None],
        enter=(m * products[..., :-1, 0])[..., None, None],
        leave=(products[..., -1, 1:] * s)[..., None, :, None],
        across=products[..., -1:, :1],
    )


def _lane_gates(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> ChunkGates:
    """Several lanes: a loop over the positions of a chunk, all chunks at once."""
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
    for n in range(k.shape[1]):
        entering.append(state)
        state = state @ gates.across[:, n, :, None].mT + updates[:, n]
    return torch.stack(entering, 1), state
