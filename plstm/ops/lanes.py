"""Gating matrices of a recurrence whose edges carry several states (lanes)."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from plstm.ops.gates import Gates


def accept_one_lane(form: Callable) -> Callable:
    """Decorate a form of `plstm_1d` with lanes to also accept tensors without lane axes."""

    @functools.wraps(form)
    def wrapper(
        q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        if v.ndim == 5:
            return form(q, k, v, gates, state, scale)
        gates = Gates(*(gate[..., None, None] for gate in gates))
        out, state = form(q, k, v[..., None], gates, state[..., None], scale)
        return out.squeeze(-1), state.squeeze(-1)

    return wrapper


def lane_rows(
    transition: list[Tensor], source: list[Tensor], mark: list[Tensor], *, prepend: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Unroll c <- A_t c + B_t e_t with read-outs P_t c into matrices that act on all inputs e.

    row_t = P_t [A_{t-1} ... A_1 B_0, ..., A_{t-1} B_{t-2}, B_{t-1}]

    Args:
        transition: A_t per step, (..., J, J) [to, from].
        source: B_t per step, (..., J, I).
        mark: P_t per step, (..., O, J).
        prepend: Put newer inputs on the left, for scans against the position axis.

    Returns:
        row_t per step, (..., O, t I), and after the last the same without mark, (..., J, L I).
    """
    rows = []
    reached = transition[0].new_zeros(*transition[0].shape[:-1], 0)
    for a, b, p in zip(transition, source, mark, strict=True):
        both = torch.cat([a, p], -2) @ reached
        moved, read = both.split([a.shape[-2], p.shape[-2]], -2)
        rows.append(read)
        reached = torch.cat([b, moved] if prepend else [moved, b], -1)
    return rows, reached


def lane_products(transition: list[Tensor], mark: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Factors from the initial state to the output of every step and to the final state.

    Returns:
        P_t A_{t-1} ... A_0 for every t, (..., L, O, J), and A_{L-1} ... A_0, (..., J, J).
    """
    size = transition[0].shape[-1]
    product = torch.eye(size, dtype=transition[0].dtype, device=transition[0].device)
    product = product.expand_as(transition[0])
    marks = []
    for a, p in zip(transition, mark, strict=True):
        marks.append(p @ product)
        product = a @ product
    return torch.stack(marks, -3), product
