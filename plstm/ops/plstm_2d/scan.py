"""Linear time on a CPU: a C++ scan over K x V states, one cache-sized tile at a time.

The backward pass stores only the inputs and scans again.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from plstm.ops import native

SOURCE = Path(__file__).with_name("scan.cpp")
VALUE_BYTES = 64  # v is padded to a multiple of this, the widest vector


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
    width, v = v.shape[-1], _padded(v)
    parts = _parts(source)
    (out,) = _partial_sums(parts, v)
    operands = q, k, v, source, transition, scale * mark, scale * direct, out
    native.call(SOURCE, "scan", *operands, *_sizes(q, v, source), orders, parts)
    return _sum(out)[..., :width].contiguous()


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
    width, v, grad = v.shape[-1], _padded(v), _padded(grad)
    parts = _parts(source)
    partial = _partial_sums(parts, q, k, v)
    dsource, dtransition, dmark = (torch.zeros_like(x) for x in (source, transition, mark))
    ddirect = torch.empty_like(direct)
    native.call(
        SOURCE, "scan_backward", q, k, v, source, transition, scale * mark, scale * direct, grad,
        *partial, dsource, dtransition, dmark, ddirect, *_sizes(q, v, source), orders, parts,
    )  # fmt: skip
    dq, dk, dv = (_sum(x) for x in partial)
    dv = dv[..., :width].contiguous()
    return dq, dk, dv, dsource, dtransition, dmark.mul_(scale), ddirect.mul_(scale)


def _padded(v: Tensor) -> Tensor:
    missing = -v.shape[-1] % (VALUE_BYTES // v.element_size())
    return F.pad(v, (0, missing)) if missing else v


def _sizes(q: Tensor, v: Tensor, source: Tensor) -> tuple[int, ...]:
    batch, heads, num_rows, num_columns, key_width = q.shape
    return batch * heads, num_rows, num_columns, source.shape[2], key_width, v.shape[-1]


def _parts(source: Tensor) -> int:
    """One part per corner if there are too few images and heads to keep threads busy."""
    batch, heads, corners = source.shape[:3]
    return corners if batch * heads < 4 * torch.get_num_threads() else 1


def _partial_sums(parts: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Allocate one entry per part; zeros, as the kernel adds to all but the first."""
    new = torch.empty if parts == 1 else torch.zeros
    return tuple(new(parts, *x.shape, dtype=x.dtype) for x in tensors)


def _sum(partial: Tensor) -> Tensor:
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
