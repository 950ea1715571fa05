"""Parallel form on a CPU: a C++ scan computes the gating matrices of a few heads at a time.

Nothing of size (Y X)^2 is stored: the matrices of these heads multiply the scores while they are in
the cache, and the backward pass recomputes them.

Letters: P problems (one head of one image), N nodes of the grid, G corners.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from plstm.ops import native

SOURCE = Path(__file__).with_name("dense.cpp")
PART_ENTRIES = 2**19  # matrix entries at a time, 2 MiB in float32: they stay in the cache


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
    scale: float,
) -> Tensor:
    """Output of the operator `grid`; same shapes."""
    out = torch.empty_like(v)
    q, k, v, read = (_by_problem(x) for x in (q, k, v, out))
    gates = [x.flatten(0, 1) for x in (source, transition, mark, direct)]
    (scores,) = _matrices(q, 1)
    for part, count in _parts(q):
        s = scores[:count]
        _product(q[part], k[part].mT, s, scale)
        native.call(SOURCE, "gate", *(x[part] for x in gates), s, *_sizes(source, count), orders)
        torch.bmm(s, v[part], out=read[part])
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients of the tensors of `forward`."""
    tensors = q, k, v, source, transition, mark, direct
    grads = tuple(torch.empty_like(x) for x in tensors)
    grad, q, k, v, dq, dk, dv = (_by_problem(x) for x in (grad, *tensors[:3], *grads[:3]))
    of_gates = [x.flatten(0, 1) for x in (*tensors[3:], *grads[3:])]
    scores, dscores = _matrices(q, 2)
    for part, count in _parts(q):
        s, ds = scores[:count], dscores[:count]
        _product(q[part], k[part].mT, s, scale)
        torch.bmm(grad[part], v[part].mT, out=ds)
        # Replaces scores by gated scores, and the gradient of gated scores by that of scores.
        gates = [x[part] for x in of_gates]
        operands = *gates[:4], s, ds, *gates[4:]
        native.call(SOURCE, "gate_backward", *operands, *_sizes(source, count), orders)
        torch.bmm(s.mT, grad[part], out=dv[part])
        _product(ds, k[part], dq[part], scale)
        _product(ds.mT, q[part], dk[part], scale)
    return grads


def _by_problem(x: Tensor) -> Tensor:
    """View (B, H, Y, X, W) as (P, N, W)."""
    return x.flatten(2, 3).flatten(0, 1)


def _product(a: Tensor, b: Tensor, out: Tensor, scale: float) -> None:
    """Write scale * a @ b."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _sizes(source: Tensor, problems: int) -> tuple[int, ...]:
    _, _, corners, num_rows, num_columns, _ = source.shape
    return problems, corners, num_rows, num_columns


def _matrices(q: Tensor, count: int) -> Iterator[Tensor]:
    """Allocate `count` matrices of one part, (p, N, N) each."""
    nodes = q.shape[1]
    return (q.new_empty(_part_size(q), nodes, nodes) for _ in range(count))


def _parts(q: Tensor) -> Iterator[tuple[slice, int]]:
    size = _part_size(q)
    for start in range(0, q.shape[0], size):
        stop = min(start + size, q.shape[0])
        yield slice(start, stop), stop - start


def _part_size(q: Tensor) -> int:
    """Problems at a time: as many as fit, but at least one per thread."""
    fitting = PART_ENTRIES // q.shape[1] ** 2
    return max(1, min(q.shape[0], max(torch.get_num_threads(), fitting)))
