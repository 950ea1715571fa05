"""Operations of kernels that the counter of PyTorch does not see into.

    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter: ...

Two per multiply-add, as there. Counted are the products of queries, keys, values and states, those
that a backward pass repeats included; gates and other work per element are not. Triton kernels and
those of fla-core are no operators of PyTorch and stay unseen.
"""

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from plstm.ops.chunks import chunk_size
from plstm.ops.plstm_1d.chunk import largest_chunk
from plstm.ops.plstm_2d import gating, scan  # noqa: F401  # they define the operators

Shape = tuple[int, ...]


def _chunkwise(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    """Scores and their product with the values, the update of a state and its reading.

    q (B, L, H, K) and v (B, L, H, V); positions that fill up the last chunk count.
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
    """The scores again, then two products for each of the four; states are kept."""
    positions, size, state = _chunks(q, v)
    return 2 * positions * (size * (3 * q[-1] + 2 * v[-1]) + 4 * state)


def _chunks(q: Shape, v: Shape) -> tuple[int, int, int]:
    """Positions of all samples and heads, those of a chunk, and the numbers of a state."""
    batch, length, heads, key_width = q
    size = chunk_size(length, largest_chunk(key_width, v[-1]))
    return batch * heads * size * -(-length // size), size, key_width * v[-1]


def _gated(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    """Scores and their product with the values, q (P, N, K) and v (P, N, V)."""
    problems, nodes, key_width = q
    return 2 * problems * nodes**2 * (key_width + v[-1])


def _gated_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object
) -> int:
    """The scores again, then two products for each of the two of the forward pass."""
    problems, nodes, key_width = q
    return 2 * problems * nodes**2 * (3 * key_width + 2 * v[-1])


def _scan(q: Shape, k: Shape, v: Shape, gates: Shape, *args: object, **kwargs: object) -> int:
    """Eight multiply-adds per corner and number of a state.

    They are the outer product k v^T in two directions, the 2 x 2 transition, and the states read in
    two directions; q (B, Y, X, H, K) and v (B, Y, X, H, V).
    """
    return 2 * 8 * _states(q, v, gates)


def _scan_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, gates: Shape, *args: object, **kwargs: object
) -> int:
    """The states again without reading them, then two multiply-adds for each of the eight."""
    return 2 * (6 + 16) * _states(q, v, gates)


def _states(q: Shape, v: Shape, gates: Shape) -> int:
    """Numbers of all states, one K x V state per node, head and corner."""
    return math.prod(q) * v[-1] * gates[1]


def _attention(q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(
    grad: Shape, q: Shape, k: Shape, v: Shape, *args: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


FORMULAS: dict[object, Callable[..., int]] = {
    torch.ops.plstm.sequence_chunkwise: _chunkwise,
    torch.ops.plstm.sequence_chunkwise_backward: _chunkwise_backward,
    torch.ops.plstm.grid_gated: _gated,
    torch.ops.plstm.grid_gated_backward: _gated_backward,
    torch.ops.plstm.grid_scan: _scan,
    torch.ops.plstm.grid_scan_backward: _scan_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
