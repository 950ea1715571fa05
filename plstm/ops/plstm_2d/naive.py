"""The definition of the recurrence on a grid: node after node, corner after corner."""

import torch
from torch import Tensor

# Corners whose scan runs against the column axis, and against the row axis.
LEFTWARD = ("top_right", "bottom_right")
UPWARD = ("bottom_left", "bottom_right")


def plstm_2d_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    corners: tuple[str, ...],
    scale: float,
) -> Tensor:
    """Equation (6) as a loop over nodes, summed over corners; shapes as in `plstm_2d`."""
    out = direct[..., None] * (q * k).sum(-1, keepdim=True) * v
    for corner, gates in zip(corners, zip(source, transition, mark, strict=True), strict=True):
        turned = [axis for axis, names in ((1, UPWARD), (2, LEFTWARD)) if corner in names]
        turn = [x.flip(turned) for x in (q, k, v, *gates)]
        out = out + _scan_from_top_left(*turn).flip(turned)
    return scale * out


def _scan_from_top_left(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor
) -> Tensor:
    batch, num_rows, num_columns, heads, key_width = q.shape
    empty = v.new_zeros(batch, heads, key_width, v.shape[-1])
    down = [empty] * num_columns  # states on the vertical edges that enter the row
    rows = []
    for y in range(num_rows):
        right = empty  # state on the horizontal edge that enters the node
        row = []
        for x in range(num_columns):
            arriving = torch.stack([right, down[x]], -1)  # (B, H, K, V, 2)
            read = torch.einsum("bhkvg,bhg,bhk->bhv", arriving, mark[:, y, x], q[:, y, x])
            row.append(read)
            update = torch.einsum("bhg,bhk,bhv->bhkvg", source[:, y, x], k[:, y, x], v[:, y, x])
            leaving = torch.einsum("bhgi,bhkvi->bhkvg", transition[:, y, x], arriving) + update
            right, down[x] = leaving.unbind(-1)
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)
