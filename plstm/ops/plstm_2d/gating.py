"""Whole form on a CPU: a C++ scan over scalars gates the scores, a few heads at a time.

Nothing of size (Y X)^2 is kept: a part of the heads is gated while its matrices are in the cache,
and the backward pass makes them again.

Letters: P problems (an image and a head), N nodes of the grid, G corners.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from plstm.ops import native
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d.corners import scan_orders

SOURCE = Path(__file__).with_name("gating.cpp")
PART_ENTRIES = 2**19  # of a matrix made at once, 2 MiB in float32: it stays in the cache


@torch.compiler.assume_constant_result
def kernels_available() -> bool:
    """Whether this machine can compile the kernels for grids."""
    return native.available(SOURCE)


def by_problem(gate: Tensor) -> Tensor:
    """A gate (G, B, Y, X, H, ...) as the kernels read it, (B H, G, Y, X, ...)."""
    return rearrange(gate, "g b y x h ... -> (b h) g y x ...").contiguous()


def plstm_2d_gated(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Gate q k^T by the whole gating matrix; shapes as in `plstm_2d`."""
    batch, num_rows, _, heads = gates.direct.shape
    of_corners = (by_problem(gate) for gate in gates[:3])
    direct = rearrange(gates.direct, "b y x h -> (b h) (y x)").contiguous()
    q, k, v = (rearrange(x, "b y x h w -> (b h) (y x) w").contiguous() for x in (q, k, v))
    out = _gated(q, k, v, *of_corners, direct, scan_orders(corners), scale)
    return rearrange(out, "(b h) (y x) w -> b y x h w", b=batch, y=num_rows, h=heads)


@torch.library.custom_op("plstm::grid_gated", mutates_args=(), device_types="cpu")
def _gated(
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
    """q, k (P, N, K), v (P, N, V), gates of `by_problem`, direct (P, N)."""
    out = torch.empty_like(v)
    gates = source, transition, mark, direct
    (scores,) = _matrices(q, 1)
    for part, count in _parts(q):
        s = scores[:count]
        _product(q[part], k[part].mT, s, scale)
        native.call(SOURCE, "gate", *(x[part] for x in gates), s, *_sizes(source[part]), orders)
        torch.bmm(s, v[part], out=out[part])
    return out


@_gated.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: object) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("plstm::grid_gated_backward", mutates_args=(), device_types="cpu")
def _gated_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gates = source, transition, mark, direct
    dq, dk, dv, *dgates = grads = tuple(torch.empty_like(x) for x in (q, k, v, *gates))
    scores, dscores = _matrices(q, 2)
    for part, count in _parts(q):
        s, ds = scores[:count], dscores[:count]
        _product(q[part], k[part].mT, s, scale)
        torch.bmm(grad[part], v[part].mT, out=ds)
        # From scores and the gradient of gated scores to gated scores and the gradient of scores.
        operands = *(x[part] for x in gates), s, ds, *(x[part] for x in dgates)
        native.call(SOURCE, "gate_backward", *operands, *_sizes(source[part]), orders)
        torch.bmm(s.mT, grad[part], out=dv[part])
        _product(ds, k[part], dq[part], scale)
        _product(ds.mT, q[part], dk[part], scale)
    return grads


@_gated_backward.register_fake
def _(grad: Tensor, *args: Tensor | float) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in args if isinstance(x, Tensor))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, ctx.orders, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


@first_derivatives_only("plstm_2d")
def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _gated_backward(grad.contiguous(), *ctx.saved_tensors, ctx.orders, ctx.scale)
    return *grads, None, None


_gated.register_autograd(_backward, setup_context=_setup_context)


def _product(a: Tensor, b: Tensor, out: Tensor, scale: float) -> None:
    """Write scale * a @ b."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _sizes(source: Tensor) -> torch.Size:
    return source.shape[:-1]  # problems, corners, rows, columns


def _matrices(q: Tensor, count: int) -> Iterator[Tensor]:
    """Room for `count` matrices of one part, (p, N, N) each."""
    nodes = q.shape[1]
    return (q.new_empty(_part_size(q), nodes, nodes) for _ in range(count))


def _parts(q: Tensor) -> Iterator[tuple[slice, int]]:
    size = _part_size(q)
    for start in range(0, q.shape[0], size):
        stop = min(start + size, q.shape[0])
        yield slice(start, stop), stop - start


def _part_size(q: Tensor) -> int:
    """Problems at once, 1 or more: what fits, but at least one per thread."""
    fitting = PART_ENTRIES // q.shape[1] ** 2
    return max(1, min(q.shape[0], max(torch.get_num_threads(), fitting)))
