"""Whole form on a CPU: the gating matrix comes from a C++ scan over scalars, a few heads at a time.

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
from plstm.ops.plstm_2d.naive import LEFTWARD, UPWARD

SOURCE = Path(__file__).with_name("gating.cpp")
PART_ENTRIES = 2**19  # of a matrix made at once, 2 MiB in float32: it stays in the cache


@torch.compiler.assume_constant_result
def kernels_available() -> bool:
    """Whether this machine can compile the kernels for grids."""
    return native.available(SOURCE)


def pack_gates(source: Tensor, transition: Tensor, mark: Tensor) -> Tensor:
    """Gates of `plstm_2d` as the kernels read them, (B H, corners, Y, X, 8)."""
    gates = torch.cat([source, transition.flatten(-2), mark], -1)
    return rearrange(gates, "g b y x h n -> (b h) g y x n").contiguous()


def scan_orders(corners: tuple[str, ...]) -> int:
    """Two bits per corner: whether it scans leftward, whether upward."""
    return sum(
        ((corner in LEFTWARD) + 2 * (corner in UPWARD)) << (2 * n)
        for n, corner in enumerate(corners)
    )


def plstm_2d_gated(
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
    """Gate q k^T by the whole gating matrix; shapes as in `plstm_2d`."""
    num_rows, heads = direct.shape[1], direct.shape[3]
    gates = pack_gates(source, transition, scale * mark)
    direct = rearrange(scale * direct, "b y x h -> (b h) (y x)").contiguous()
    q, k, v = (rearrange(x, "b y x h w -> (b h) (y x) w").contiguous() for x in (q, k, v))
    out = _gated(q, k, v, gates, direct, scan_orders(corners))
    return rearrange(out, "(b h) (y x) w -> b y x h w", y=num_rows, h=heads)


@torch.library.custom_op("plstm::grid_gated", mutates_args=(), device_types="cpu")
def _gated(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int) -> Tensor:
    """q, k (P, N, K), v (P, N, V), gates (P, G, Y, X, 8), direct (P, N)."""
    out = torch.empty_like(v)
    scores, gating = _matrices(q, 2)
    for part, count in _parts(q):
        s, g = scores[:count], gating[:count]
        _gating(gates[part], direct[part], orders, g)
        torch.bmm(q[part], k[part].mT, out=s)
        torch.bmm(s.mul_(g), v[part], out=out[part])
    return out


@_gated.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("plstm::grid_gated_backward", mutates_args=(), device_types="cpu")
def _gated_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dgates, ddirect = (torch.empty_like(x) for x in (q, k, v, gates, direct))
    scores, gating, products = _matrices(q, 3)
    for part, count in _parts(q):
        s, g, p = (x[:count] for x in (scores, gating, products))
        _gating(gates[part], direct[part], orders, g)
        torch.bmm(q[part], k[part].mT, out=s)
        torch.bmm(torch.mul(s, g, out=p).mT, grad[part], out=dv[part])
        torch.bmm(grad[part], v[part].mT, out=p)
        s.mul_(p)  # now the gradient of the gating matrix
        grads = (dgates[part], ddirect[part])
        native.call(SOURCE, "gating_backward", gates[part], s, *grads, *_sizes(gates[part]), orders)
        p.mul_(g)  # and that of the scores
        torch.bmm(p, k[part], out=dq[part])
        torch.bmm(p.mT, q[part], out=dk[part])
    return dq, dk, dv, dgates, ddirect


@_gated_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (q, k, v, gates, direct))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, ctx.orders = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gated_backward(grad.contiguous(), *ctx.saved_tensors, ctx.orders), None


_gated.register_autograd(_backward, setup_context=_setup_context)


def _gating(gates: Tensor, direct: Tensor, orders: int, out: Tensor) -> None:
    native.call(SOURCE, "gating", gates, direct, out, *_sizes(gates), orders)


def _sizes(gates: Tensor) -> torch.Size:
    return gates.shape[:-1]  # problems, corners, rows, columns


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
    """Problems at once: what fits, but at least one per thread."""
    fitting = PART_ENTRIES // q.shape[1] ** 2
    return min(q.shape[0], max(torch.get_num_threads(), fitting))
