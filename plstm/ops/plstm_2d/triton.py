"""The recurrence on a grid by Triton kernels: what fits, how it is cut into programs, gradients."""

import torch
import triton
from einops import rearrange
from torch import Tensor
from torch.autograd.function import FunctionCtx

from plstm.checks import accumulation_dtype
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.kernels import launch
from plstm.ops.plstm_2d.triton_kernels import backward_kernel, read_kernel

LONGEST_SIDE = 128  # of X, K and V
MAX_ROW_BYTES = 2**15  # of the q, k or v of a row; two such rows are in shared memory at once
PREFETCHED_ROW_BYTES = 2**13  # up to this size the next rows are loaded ahead
SMALLEST_BLOCK = 16  # the smallest side of a tile in tl.dot
READ_TILE, READ_WARPS = 64, 4  # the largest P, the warps of a program
BACKWARD_TILE, BACKWARD_WARPS = 32, 8
# P is cut, down to 16, until what a program owns fits in registers:
TILE_STATES = 2048  # P X
TILE_BYTES = 2**13  # of the q, k or v of the P nodes
BACKWARD_PROGRAMS = 512  # wanted: a few for each multiprocessor


def supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a row of the grid fits in a program: X, K, V <= 128, and 32 KiB of q, k or v.

    X and the widths count as the next power of two. In bfloat16 all of that fits; other dtypes are
    taken as float32, which fits up to X = 64 at a width of 128, or 128 at 64. Y is free.
    """
    num_columns, width = q.shape[2], max(q.shape[-1], v.shape[-1])
    itemsize = 2 if _all_bfloat16(q, k, v) else 4
    return (
        max(num_columns, width) <= LONGEST_SIDE
        and _row_bytes(num_columns, width, itemsize) <= MAX_ROW_BYTES
    )


def _all_bfloat16(*tensors: Tensor) -> bool:
    return all(x.dtype == torch.bfloat16 for x in tensors)


def plstm_2d_triton(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Parallel form that never writes a gating matrix; shapes as in `plstm_2d`.

    Products are of bfloat16 numbers if q, k and v are bfloat16. Sums and recurrences, and in all
    other cases products, are of float32, or float64 (for tests) if any input is.

    Raises:
        ValueError: a row of the grid does not fit in a program, see `supported`.
    """
    if not supported(q, k, v):
        raise ValueError(
            f'plstm_2d: backend "triton" needs X, K, V <= {LONGEST_SIDE} and at most '
            f"{MAX_ROW_BYTES} bytes of q, k or v in a row, got X={q.shape[2]}, K={q.shape[-1]}, "
            f'V={v.shape[-1]} in {v.dtype}; use backend "auto"'
        )
    dtype = accumulation_dtype(q, k, v, *gates)
    source, transition, mark, direct = (x.to(dtype) for x in gates)
    if not _all_bfloat16(q, k, v) or dtype != torch.float32:
        q, k, v = (x.to(dtype) for x in (q, k, v))
    # Linear in mark and direct, so the factor on the output goes into them.
    packed = torch.cat([source, scale * mark, transition.flatten(-2)], -1)
    packed = rearrange(packed, "c b y x h g -> b h c g y x").contiguous()
    direct = rearrange(scale * direct, "b y x h -> b h y x").contiguous()
    return _PLSTM2d.apply(q.contiguous(), k.contiguous(), v.contiguous(), packed, direct, corners)


class _PLSTM2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,  # (B, H, C, 8, Y, X), source, mark, transition
        direct: Tensor,  # (B, H, Y, X)
        corners: tuple[str, ...],
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, gates, direct)
        ctx.corners = corners
        return _read(q, k, v, gates, direct, corners)

    @staticmethod
    @first_derivatives_only("plstm_2d")
    def backward(ctx: FunctionCtx, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gates, direct = ctx.saved_tensors
        out_grad = out_grad.contiguous()
        q_grad = _read(out_grad, v, k, gates, direct, ctx.corners)
        return q_grad, *_backward(q, k, v, out_grad, gates, direct, ctx.corners), None


def _read(
    own: Tensor,
    other: Tensor,
    value: Tensor,
    gates: Tensor,
    direct: Tensor,
    corners: tuple[str, ...],
) -> Tensor:
    batch, num_rows, num_columns, heads, width = own.shape
    sizes = _sizes(own, value, corners, READ_TILE)
    out = torch.empty_like(value)
    num_tiles = triton.cdiv(num_rows * num_columns, sizes["P"])
    launch(
        read_kernel, (batch * heads * num_tiles,),
        own, other, value, gates, direct, out, num_rows, num_columns, heads, num_tiles,
        D=width, E=value.shape[-1], BLOCK_D=_block(width), BLOCK_E=_block(value.shape[-1]),
        num_warps=READ_WARPS, **sizes,
    )  # fmt: skip
    return out


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    gates: Tensor,
    direct: Tensor,
    corners: tuple[str, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, gates and direct."""
    batch, num_rows, num_columns, heads, key_width = q.shape
    sizes = _sizes(q, v, corners, BACKWARD_TILE)
    num_tiles = triton.cdiv(num_rows * num_columns, sizes["P"])
    num_shares = min(num_tiles, triton.cdiv(BACKWARD_PROGRAMS, max(1, batch * heads)))
    k_grad, v_grad, direct_grad = (torch.empty_like(x) for x in (k, v, direct))
    gate_grads = gates.new_zeros(batch, heads, num_shares, *gates.shape[2:])
    states = gates.new_empty(batch, heads, num_shares, 2, num_rows, sizes["P"], sizes["BLOCK_X"])
    launch(
        backward_kernel, (batch * heads * num_shares,),
        q, k, v, out_grad, gates, direct, k_grad, v_grad, direct_grad, gate_grads, states,
        num_rows, num_columns, heads, num_tiles, num_shares,
        K=key_width, V=v.shape[-1], BLOCK_K=_block(key_width), BLOCK_V=_block(v.shape[-1]),
        num_warps=BACKWARD_WARPS, **sizes,
    )  # fmt: skip
    return k_grad, v_grad, gate_grads.sum(2), direct_grad


def _sizes(
    q: Tensor, v: Tensor, corners: tuple[str, ...], largest_tile: int
) -> dict[str, int | str]:
    """What both kernels fix when they are compiled."""
    num_columns, width = q.shape[2], max(q.shape[-1], v.shape[-1])
    tile = min(
        largest_tile, TILE_STATES // _block(num_columns), TILE_BYTES // (_block(width) * q.itemsize)
    )
    prefetch = _row_bytes(num_columns, width, q.itemsize) <= PREFETCHED_ROW_BYTES
    number = {corner.upper(): c for c, corner in enumerate(corners)}
    names = ("TOP_LEFT", "TOP_RIGHT", "BOTTOM_LEFT", "BOTTOM_RIGHT")
    return {name: number.get(name, -1) for name in names} | {
        "CORNERS": len(corners),
        "P": max(SMALLEST_BLOCK, tile),
        "BLOCK_X": _block(num_columns),
        "num_stages": 2 if prefetch else 1,
    }


def _row_bytes(num_columns: int, width: int, itemsize: int) -> int:
    return _block(num_columns) * _block(width) * itemsize


def _block(size: int) -> int:
    return max(SMALLEST_BLOCK, triton.next_power_of_2(size))
