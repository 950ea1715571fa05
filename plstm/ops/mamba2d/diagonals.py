"""The scan of Mamba2D over anti-diagonals."""

import torch
from torch import Tensor


def mamba2d_diagonals(
    x: Tensor,
    dt_left: Tensor,
    dt_top: Tensor,
    a_left: Tensor,
    a_top: Tensor,
    b_left: Tensor,
    b_top: Tensor,
    c: Tensor,
) -> Tensor:
    """The recurrence of `mamba2d` in Y + X - 1 steps; same shapes.

    Nodes with equal i + j depend only on the previous diagonal, so they form one step.
    """
    sizes = num_rows, num_columns = x.shape[1:3]
    row, column = torch.meshgrid(
        *(torch.arange(n, device=x.device) for n in sizes), indexing="ij"
    )  # (Y, X)
    order = (row + column).flatten().argsort(stable=True)  # row indices ascend along a diagonal
    # Weight of the top neighbor; the left one has the rest. Both are 1/2 in the interior.
    share_top = torch.where(row == 0, 0.0, torch.where(column == 0, 1.0, 0.5)).to(x.dtype)
    share_top = share_top.flatten()[order, None, None]
    share_left = 1 - share_top

    nodes = [t.flatten(1, 2).index_select(1, order) for t in (x, dt_left, dt_top, b_left, b_top, c)]
    x, dt_left, dt_top, b_left, b_top, c = (t.unsqueeze(-1) for t in nodes)
    left = share_left * (dt_left * a_left).exp()  # (B, nodes, D, N)
    top = share_top * (dt_top * a_top).exp()
    update = share_left * dt_left * x * b_left.mT + share_top * dt_top * x * b_top.mT
    states = _scan(left, top, update, num_rows, num_columns)
    return (states @ c).squeeze(-1).index_select(1, order.argsort()).unflatten(1, sizes)


def _scan(left: Tensor, top: Tensor, update: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """h = left * (h to the left) + top * (h above) + update, nodes in the order of diagonals."""
    rows = [  # of every diagonal
        range(max(0, d - num_columns + 1), min(d + 1, num_rows))
        for d in range(num_rows + num_columns - 1)
    ]
    lengths = [len(r) for r in rows]
    edge = torch.zeros_like(update[:, :1])
    state, first, states = update[:, :0], 0, []
    steps = zip(rows, *(t.split(lengths, 1) for t in (left, top, update)), strict=True)
    for r, left_d, top_d, update_d in steps:
        before = torch.cat([edge, state, edge], 1)  # rows from first - 1 on
        above, beside = (before.narrow(1, r[0] - first + shift, len(r)) for shift in (0, 1))
        state, first = left_d * beside + top_d * above + update_d, r[0]
        states.append(state)
    return torch.cat(states, 1)
