"""FLOP formulas for kernels that PyTorch's FLOP counter does not see into.

    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter: ...

A multiply-add counts as two, as in PyTorch. Counted are the products of queries, keys, values and
states, including those that a backward pass recomputes, but not gates and other elementwise work.
Kernels of fla-core are not PyTorch operators and are not counted.
"""

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from plstm.ops.chunks import chunk_size
from plstm.ops.kernels import HAS_TRITON, ceil_div
from plstm.ops.plstm_1d.chunk import largest_chunk
from plstm.ops.plstm_2d.cpu import chosen_form  # the module defines the operators
from plstm.ops.plstm_dag import levels, reach  # noqa: F401

Shape = tuple[int, ...]


def _chunkwise(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    """Scores, their product with the values, and the state written and read.

    q (B, L, H, K) and v (B, L, H, V); the padding of the last chunk counts.
    """
    positions, size, state = _chunks(q, v)
    return 2 * positions * (size * (q[-1] + v[-1]) + 2 * state)


def _chunkwise_backward(
    grad: Shape,
    state_grad: Shape,
    q: Shape,
    k: Shape,
    v: Shape,
    *args: object,
    **kwargs: object,
) -> int:
    """The scores again, then two products for each of the four; states are saved."""
    positions, size, state = _chunks(q, v)
    return 2 * positions * (size * (3 * q[-1] + 2 * v[-1]) + 4 * state)


def _chunks(q: Shape, v: Shape) -> tuple[int, int, int]:
    """Positions of all samples and heads, positions per chunk, and elements of a state."""
    batch, length, heads, key_width = q
    size = chunk_size(length, largest_chunk(key_width, v[-1]))
    return batch * heads * size * -(-length // size), size, key_width * v[-1]


def _grid(q: Shape, k: Shape, v: Shape, source: Shape, *args: object, **kwargs: object) -> int:
    """For "dense", scores and their product with the values; for "scan", eight products.

    The scan needs, per corner and state element, the outer product k v^T in two directions, the
    2 x 2 transition, and the states read in two directions.
    """
    whole, states, form = _grid_sizes(q, v, source, args)
    return 2 * whole * (q[-1] + v[-1]) if form == "dense" else 2 * 8 * states


def _grid_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, source: Shape, *args: object, **kwargs: object
) -> int:
    """The scores, or the states, again, then two products for each of the forward pass."""
    whole, states, form = _grid_sizes(q, v, source, args)
    return 2 * whole * (3 * q[-1] + 2 * v[-1]) if form == "dense" else 2 * (6 + 16) * states


def _grid_sizes(q: Shape, v: Shape, source: Shape, args: tuple) -> tuple[int, int, str]:
    """Entries of all gating matrices, elements of all states, and the form that runs.

    q is (B, H, Y, X, K), v (B, H, Y, X, V), source (B, H, corners, Y, X, 2).
    """
    batch, heads, num_rows, num_columns, _ = q
    whole = batch * heads * (num_rows * num_columns) ** 2
    states = math.prod(q) * v[-1] * source[2]
    return whole, states, chosen_form(args[-1], q, v, source)


def _read(q: Shape, k: Shape, v: Shape, gates: Shape, *args: object, **kwargs: object) -> int:
    """Scores and their product with the values, for all pairs of nodes and heads in gates."""
    return 2 * math.prod(gates) * (q[-1] + v[-1])


def _read_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, gates: Shape, *args: object, **kwargs: object
) -> int:
    """The scores again, then two products for each of the two of the forward pass."""
    return 2 * math.prod(gates) * (3 * q[-1] + 2 * v[-1])


def _levels(x: Shape, transition: Shape, *args: object, **kwargs: object) -> int:
    """One state per pair of edges and head; x (E, H, K, V) and transition (A, H)."""
    return 2 * math.prod(transition) * math.prod(x[2:])


def _levels_backward(
    grad: Shape, states: Shape, transition: Shape, *args: object, **kwargs: object
) -> int:
    """As many again for the adjoint states, and for the gradient of the transitions."""
    return 2 * _levels(states, transition)


def _grid_by_rows(
    q: Shape, k: Shape, v: Shape, source: Shape, *args: object, **kwargs: object
) -> int:
    """The scores and their product with the values."""
    *_, orders = args
    return 2 * _pairs(q, source[0], orders) * (q[-1] + v[-1])


def _grid_by_rows_backward(grad: Shape, *args: object, **kwargs: object) -> int:
    """The two products for the gradient of q, and four for the gradients of the rest."""
    return 3 * _grid_by_rows(*args)


def _pairs(q: Shape, num_corners: int, orders: int) -> int:
    """Pairs of nodes in rows that a corner connects; corners with the same row order share them.

    Tiles that cover more than one row are not counted in full.
    """
    batch, rows, columns, heads, _ = q
    directions = {orders >> (2 * corner + 1) & 1 for corner in range(num_corners)}
    return len(directions) * batch * heads * columns**2 * rows * (rows + 1) // 2


def _sequence(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    """Per chunk: the scores, their product with the values, and the state written and read."""
    *_, chunk_size = args
    keys, values = q[-1], v[-1]
    return 2 * _positions(q, chunk_size) * (chunk_size * (keys + values) + 2 * keys * values)


def _sequence_backward(
    grad_out: Shape, grad_last: Shape, q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object
) -> int:
    """Per chunk: scores and their gradient, twice each, one product with values, two with keys,
    one for the gradient of the transitions, and four with states.
    """
    *_, chunk_size = args
    keys, values = q[-1], v[-1]
    inside = chunk_size * (4 * keys + 3 * values + chunk_size)
    return 2 * _positions(q, chunk_size) * (inside + 4 * keys * values)


def _positions(q: Shape, chunk_size: int) -> int:
    """Positions of all sequences and heads, padded to full chunks; q (B, L, H, K)."""
    batch, length, heads, _ = q
    return batch * heads * ceil_div(length, chunk_size) * chunk_size


def _attention(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _no_product(*args: object, **kwargs: object) -> int:
    return 0


FORMULAS: dict[object, Callable[..., int]] = {
    torch.ops.plstm.dag_read: _read,
    torch.ops.plstm.dag_read_backward: _read_backward,
    torch.ops.plstm.dag_levels: _levels,
    torch.ops.plstm.dag_levels_backward: _levels_backward,
    torch.ops.plstm.sequence_chunkwise: _chunkwise,
    torch.ops.plstm.sequence_chunkwise_backward: _chunkwise_backward,
    torch.ops.plstm.grid: _grid,
    torch.ops.plstm.grid_backward: _grid_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    # The counter decomposes operators that are not named here, which changes the rounding. It finds
    # this one by its overload, so a run that counts gives the same numbers as one that does not.
    torch.ops.aten.silu_backward.default: _no_product,
}
if HAS_TRITON:
    import plstm.ops.plstm_1d.triton
    import plstm.ops.plstm_2d.triton  # noqa: F401  # they define the operators

    FORMULAS |= {
        torch.ops.plstm.sequence_triton: _sequence,
        torch.ops.plstm.sequence_triton_backward: _sequence_backward,
        torch.ops.plstm.grid_triton: _grid_by_rows,
        torch.ops.plstm.grid_triton_backward: _grid_by_rows_backward,
    }
