"""The definition of the recurrence on a grid of any number of axes: a loop over nodes."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from plstm.ops.gates import Gates
from plstm.ops.plstm_2d.corners import SIGNS


def plstm_2d_naive(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Equation (6) as a loop over nodes, summed over corners; shapes as in `plstm_2d`."""
    return plstm_grid_naive(q, k, v, gates, [SIGNS[corner] for corner in corners], scale)


def plstm_grid_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    signs: Sequence[tuple[int, ...]],
    scale: float,
) -> Tensor:
    """Equation (6) on a grid of N axes: every node has one edge along each of them.

        A_g[n] = C_g[the node before n along direction g]
        C_g[n] = sum_h T[g, h] A_h[n] + S[g] k v^T
        out[n] = scale * (sum_h M[h] A_h^T q + D (q . k) v)

    The output is the sum over corners; the direct term counts once.

    Args:
        q: Queries, (B, *grid, H, K), with N grid axes, none of them empty.
        k: Keys, (B, *grid, H, K).
        v: Values, (B, *grid, H, V).
        gates: Source (corners, B, *grid, H, N), transition (corners, B, *grid, H, N, N) [out, in],
            mark (corners, B, *grid, H, N) [in] and direct (B, *grid, H), in the coordinates of q.
            Direction 0 is along the last axis of the grid, direction N - 1 along the first.
        signs: For every corner, a sign per axis of the grid, first axis first: 1 for a scan along
            the axis, -1 for a scan against it.
        scale: Factor on the output.

    Returns:
        Output (B, *grid, H, V).
    """
    out = gates.direct[..., None] * (q * k).sum(-1, keepdim=True) * v
    for of_axes, *of_corner in zip(signs, *gates[:3], strict=True):
        turned = [axis for axis, sign in enumerate(of_axes, start=1) if sign < 0]
        turn = [x.flip(turned) for x in (q, k, v, *of_corner)]
        out = out + _scan(*turn).flip(turned)
    return scale * out


def _scan(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor
) -> Tensor:
    """What every node reads in a scan along all axes, (B, *grid, H, V)."""
    batch, *grid, heads, key_width = q.shape
    empty_BHKV = v.new_zeros(batch, heads, key_width, v.shape[-1])
    edges = {}  # (node that the edge enters, direction): state
    reads = []
    for node in product(*map(range, grid)):
        at = (slice(None), *node)
        arriving_BHKVN = torch.stack(
            [edges.pop((node, g), empty_BHKV) for g in range(len(grid))], -1
        )
        reads.append(torch.einsum("bhkvg,bhg,bhk->bhv", arriving_BHKVN, mark[at], q[at]))
        update_BHKVN = torch.einsum("bhg,bhk,bhv->bhkvg", source[at], k[at], v[at])
        passed_BHKVN = torch.einsum("bhgi,bhkvi->bhkvg", transition[at], arriving_BHKVN)
        for g, state_BHKV in enumerate((passed_BHKVN + update_BHKVN).unbind(-1)):
            axis = len(grid) - 1 - g
            after = (*node[:axis], node[axis] + 1, *node[axis + 1 :])
            edges[after, g] = state_BHKV  # edges that leave the grid are not read
    return torch.stack(reads, 1).unflatten(1, grid)
