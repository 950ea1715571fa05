"""Linear time on a CPU: the scan over K x V states in C++, a cache-sized tile of them at a time.

Nothing but the inputs is kept for the backward pass, which scans again.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from plstm.ops import native
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d.corners import scan_orders
from plstm.ops.plstm_2d.gating import by_problem

SOURCE = Path(__file__).with_name("scan.cpp")
VALUE_BYTES = 64  # v is padded to a multiple, the widest vector there is


def plstm_2d_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Equation (6) as a scan over states; shapes as in `plstm_2d`."""
    width = v.shape[-1]
    v = F.pad(v, (0, -width % (VALUE_BYTES // v.element_size())))
    packed = pack_gates(gates.source, gates.transition, scale * gates.mark)
    q, k, v, direct = (x.contiguous() for x in (q, k, v, scale * gates.direct))
    return _scan(q, k, v, packed, direct, scan_orders(corners))[..., :width]


def pack_gates(source: Tensor, transition: Tensor, mark: Tensor) -> Tensor:
    """Gates of `plstm_2d` as the kernels read them, (B H, corners, Y, X, 8)."""
    return torch.cat([by_problem(x) for x in (source, transition.flatten(-2), mark)], -1)


@torch.library.custom_op("plstm::grid_scan", mutates_args=(), device_types="cpu")
def _scan(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int) -> Tensor:
    """q, k (B, Y, X, H, K), v (B, Y, X, H, V), direct (B, Y, X, H), gates of `pack_gates`."""
    parts = _parts(gates)
    (out,) = _partial_sums(parts, v)
    native.call(SOURCE, "scan", q, k, v, gates, direct, out, *_sizes(q, v, gates), orders, parts)
    return _sum(out)


@_scan.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("plstm::grid_scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parts = _parts(gates)
    partial = _partial_sums(parts, q, k, v)
    dgates, ddirect = torch.zeros_like(gates), torch.empty_like(direct)
    native.call(
        SOURCE, "scan_backward", q, k, v, gates, direct, grad, *partial, dgates, ddirect,
        *_sizes(q, v, gates), orders, parts,
    )  # fmt: skip
    dq, dk, dv = (_sum(x) for x in partial)
    return dq, dk, dv, dgates, ddirect


@_scan_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, direct: Tensor, orders: int
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (q, k, v, gates, direct))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, ctx.orders = inputs
    ctx.save_for_backward(*tensors)


@first_derivatives_only("plstm_2d")
def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_scan_backward(grad.contiguous(), *ctx.saved_tensors, ctx.orders), None


_scan.register_autograd(_backward, setup_context=_setup_context)


def _sizes(q: Tensor, v: Tensor, gates: Tensor) -> tuple[int, ...]:
    batch, num_rows, num_columns, heads, key_width = q.shape
    return batch, num_rows, num_columns, heads, gates.shape[1], key_width, v.shape[-1]


def _parts(gates: Tensor) -> int:
    """Every corner on its own where there are too few images and heads to keep threads busy."""
    problems, corners = gates.shape[:2]
    return corners if problems < 4 * torch.get_num_threads() else 1


def _partial_sums(parts: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Room for one entry per part; zeros where the kernel adds to all but the first."""
    new = torch.empty if parts == 1 else torch.zeros
    return tuple(new(parts, *x.shape, dtype=x.dtype) for x in tensors)


def _sum(partial: Tensor) -> Tensor:
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
