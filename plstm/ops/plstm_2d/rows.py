"""Row form on a grid, equation (7): a Y x X grid is a sequence of Y steps with X lanes.

For one row, c are the states on the vertical edges that enter it and e the inputs k v^T of its
nodes, one per column. Lsh is the strictly triangular matrix of products of T[0,0] between columns:

    c_next   = A c + B e     A = diag(T[1,1]) + diag(T[1,0]) Lsh diag(T[0,1])
                             B = diag(S[1])   + diag(T[1,0]) Lsh diag(S[0])
    read-out = P c + Q e     P = diag(M[1])   + diag(M[0])   Lsh diag(T[0,1])
                             Q =                diag(M[0])   Lsh diag(S[0])

For corners on the right Lsh is upper triangular; corners at the bottom process rows in reverse.
Corners with the same row order share all matrix products.

Letters: B batch, Y X rows and columns, H heads, G corners of one row order, R rows per block,
N = R X nodes per block, K V widths. Where shapes are mixed, tensor names end in their axes.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from plstm.ops.gates import Gates
from plstm.ops.lanes import lane_products, lane_rows
from plstm.ops.plstm_2d.corners import leftward, upward
from plstm.ops.products import transition_products


class RowMatrices(NamedTuple):
    """The matrices of every row, (B, H, Y, G, X, X) unless noted."""

    transition: Tensor  # A
    source: Tensor  # B
    mark: Tensor  # P
    inside: Tensor  # Q, summed over corners: (B, H, Y, X, X)


def row_matrices(
    source: Tensor, transition: Tensor, mark: Tensor, turned: list[bool]
) -> RowMatrices:
    """A, B, P and Q of every row for corners of one row order.

    Args:
        source: (G, B, Y, X, H, 2).
        transition: (G, B, Y, X, H, 2, 2) [out, in].
        mark: (G, B, Y, X, H, 2).
        turned: For every corner, whether its scan runs backwards along the column axis.
    """
    # unbind, not indexing: its gradient is one copy instead of a zero-filled tensor per entry.
    s0, s1 = rearrange(source, "g b y x h d -> d b h y g x").unbind()
    m0, m1 = rearrange(mark, "g b y x h d -> d b h y g x").unbind()
    t00, t01, t10, t11 = rearrange(transition, "g b y x h o i -> (o i) b h y g x").unbind()
    between = torch.stack(
        [_products_between(f, turn) for f, turn in zip(t00.unbind(-2), turned, strict=True)], -3
    )
    to_column = torch.stack([t10, m0])[:, None, ..., None]  # rows of A and B, rows of P and Q
    from_column = torch.stack([t01, s0])[None, ..., None, :]  # columns of A and P, of B and Q
    a, b, p, q = (to_column * between * from_column).flatten(0, 1).unbind()
    return RowMatrices(
        transition=a + torch.diag_embed(t11),
        source=b + torch.diag_embed(s1),
        mark=p + torch.diag_embed(m1),
        inside=q.sum(-3),
    )


def _products_between(factors: Tensor, turned: bool) -> Tensor:
    """Products of factors (..., X) strictly between two columns, (..., X, X) [to, from]."""
    if turned:
        return _products_between(factors.flip(-1), False).flip(-2, -1)
    return transition_products(factors)[..., :-1, 1:]


def plstm_2d_gating(
    source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor, corners: tuple[str, ...]
) -> Tensor:
    """The gating matrix G = sum over corners of M (I - T)^-1 S, plus diag(D), (B, H, Y X, Y X).

    Arguments as in `plstm_2d`; rows are outputs, columns are inputs, nodes are in row-major order.
    """
    num_rows, num_columns = direct.shape[1:3]
    per_corner = [x.unbind() for x in (source, transition, mark)]
    below, above, inside = [], [], 0
    for turned in (False, True):
        chosen = [c for c, corner in enumerate(corners) if upward(corner) == turned]
        if not chosen:
            continue
        gates = (torch.stack([x[c] for c in chosen]) for x in per_corner)
        row = row_matrices(*gates, turned=[leftward(corners[c]) for c in chosen])
        inside = inside + row.inside
        a, b, p = (x.unbind(2) for x in row[:3])
        if turned:
            above, _ = lane_rows(a[::-1], b[::-1], p[::-1], prepend=True)
            above = above[::-1]
        else:
            below, _ = lane_rows(a, b, p)
    diagonal = torch.diag_embed(rearrange(direct, "b y x h -> b h y x")) + inside

    gating_rows = []
    for y in range(num_rows):
        left = below[y].sum(-3) if below else _zeros(diagonal, y * num_columns)
        right = above[y].sum(-3) if above else _zeros(diagonal, (num_rows - 1 - y) * num_columns)
        gating_rows.append(torch.cat([left, diagonal[:, :, y], right], -1))
    return torch.cat(gating_rows, -2)


def _zeros(like: Tensor, width: int) -> Tensor:
    batch, heads, _, num_columns, _ = like.shape
    return like.new_zeros(batch, heads, num_columns, width)


def plstm_2d_rows(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Parallel form: multiply q k^T by the full gating matrix; shapes as in `plstm_2d`."""
    gating = plstm_2d_gating(*gates, corners)
    q, k, v = (rearrange(x, "b y x h w -> b h (y x) w") for x in (q, k, v))
    out = ((scale * q) @ k.mT * gating) @ v
    return rearrange(out, "b h (y x) w -> b y x h w", y=gates.direct.shape[1])


def plstm_2d_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    corners: tuple[str, ...],
    scale: float,
    chunk_rows: int,
) -> Tensor:
    """Chunkwise form: gating matrices inside blocks of rows, X lane states across their borders.

    Memory grows linearly in Y: a block of R rows has (R X)^2 gating entries and X states of K x V
    per corner.
    """
    num_rows = q.shape[1]
    blocks = [slice(y, min(y + chunk_rows, num_rows)) for y in range(0, num_rows, chunk_rows)]
    outs = [
        plstm_2d_rows(
            *(x[:, block] for x in (q, k, v)),
            Gates(*(x[:, :, block] for x in gates[:3]), gates.direct[:, block]),
            corners,
            scale=1.0,
        )
        for block in blocks
    ]
    for c, corner in enumerate(corners):
        turned = upward(corner)
        state = None
        for n in reversed(range(len(blocks))) if turned else range(len(blocks)):
            of_corner = (x[c : c + 1, :, blocks[n]] for x in gates[:3])
            row = row_matrices(*of_corner, turned=[leftward(corner)])
            read, state = _cross_block(
                q[:, blocks[n]], k[:, blocks[n]], v[:, blocks[n]], row, state, turned
            )
            if read is not None:
                outs[n] = outs[n] + read
    return scale * torch.cat(outs, 1)


def _cross_block(
    q: Tensor, k: Tensor, v: Tensor, row: RowMatrices, state: Tensor | None, turned: bool
) -> tuple[Tensor | None, Tensor]:
    """What a block reads from the state (B, H, X, K, V) before it, and the state after it."""
    order = slice(None, None, -1) if turned else slice(None)
    a, b, p = (x[:, :, :, 0].unbind(2)[order] for x in row[:3])
    _, leave_BHXN = lane_rows(a, b, p, prepend=turned)
    k_BHNK, v_BHNV = (rearrange(x, "b r x h w -> b h (r x) w") for x in (k, v))
    # For every lane, the sum over nodes of leave * k v^T as one matrix product.
    weighted_BHXKN = torch.einsum("bhxn,bhnk->bhxkn", leave_BHXN, k_BHNK)
    update = weighted_BHXKN.flatten(2, 3) @ v_BHNV
    update_BHXKV = update.unflatten(2, weighted_BHXKN.shape[2:4])
    if state is None:
        return None, update_BHXKV
    enter_BHRXX, across_BHXX = lane_products(a, p)
    if turned:
        enter_BHRXX = enter_BHRXX.flip(2)
    per_lane_BHRXXV = torch.einsum("brxhk,bhlkv->bhrxlv", q, state)
    read_BRXHV = torch.einsum("bhrxl,bhrxlv->brxhv", enter_BHRXX, per_lane_BHRXXV)
    kept_BHXKV = (across_BHXX @ state.flatten(3)).unflatten(-1, state.shape[-2:])
    return read_BRXHV, kept_BHXKV + update_BHXKV
