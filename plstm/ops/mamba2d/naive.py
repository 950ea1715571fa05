"""The definition of the scan of Mamba2D: a loop over nodes."""

import torch
from torch import Tensor


def mamba2d_naive(
    x: Tensor,
    dt_left: Tensor,
    dt_top: Tensor,
    a_left: Tensor,
    a_top: Tensor,
    b_left: Tensor,
    b_top: Tensor,
    c: Tensor,
) -> Tensor:
    """The recurrence of `mamba2d` as a loop over rows and columns; same shapes."""
    num_rows, num_columns = x.shape[1:3]
    zero = x.new_zeros(x.shape[0], *a_left.shape)
    above, rows = [zero] * num_columns, []  # states of the row above
    for i in range(num_rows):
        before, row = zero, []  # state of the node to the left
        for j in range(num_columns):
            node = [t[:, i, j] for t in (x, dt_left, dt_top, b_left, b_top, c)]
            value, step_left, step_top, in_left, in_top, read = node
            left = _arrive(before, value, step_left, a_left, in_left)
            top = _arrive(above[j], value, step_top, a_top, in_top)
            state = left if i == 0 else top if j == 0 else (left + top) / 2
            before = above[j] = state
            row.append((state * read[:, None]).sum(-1))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def _arrive(state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """exp(dt A) h + dt B x for one edge, (B, D, N)."""
    return (dt[..., None] * a).exp() * state + (dt * x)[..., None] * b[:, None]
