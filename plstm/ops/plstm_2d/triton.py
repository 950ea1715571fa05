"""Triton kernels of the recurrence on a grid: size limits, launch settings, operators."""

import functools
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from plstm.checks import accumulation_dtype
from plstm.ops import kernels
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.kernels import Launch, block, ceil_div, launch, operand_dtype
from plstm.ops.plstm_2d.corners import scan_orders
from plstm.ops.plstm_2d.triton_kernels import backward_kernel, read_kernel

LONGEST_SIDE = 128  # of X, K and V
MAX_ROW_BYTES = 2**15  # of q, k or v per row; shared memory holds two such rows
PREFETCHED_ROW_BYTES = 2**13  # up to this size the next rows are prefetched
READ_TILE, READ_WARPS = 64, 4  # largest P, warps per program
BACKWARD_TILE, BACKWARD_WARPS = 16, 8  # tiles of 32 spill up to 1376 bytes at a width of 32
# P is reduced, down to 16, until what a program owns fits in registers:
TILE_STATES = 2048  # P X
TILE_BYTES = 2**13  # of q, k or v of the P nodes
BACKWARD_PROGRAMS = 512  # target: a few per multiprocessor
CORNERS = ("TOP_LEFT", "TOP_RIGHT", "BOTTOM_LEFT", "BOTTOM_RIGHT")  # in the order of `scan_orders`


class Problem(NamedTuple):
    """All that launches depend on; `acc_dtype` is the dtype of gates and sums."""

    batch: int
    rows: int
    columns: int
    heads: int
    key_width: int
    value_width: int
    num_corners: int
    orders: int  # see `scan_orders`
    dtype: torch.dtype
    acc_dtype: torch.dtype
    precision: str

    @property
    def images(self) -> int:
        """Images times heads."""
        return self.batch * self.heads

    @property
    def row_bytes(self) -> int:
        """Bytes of q, k or v in a row."""
        width = max(self.key_width, self.value_width)
        return block(self.columns) * block(width) * self.dtype.itemsize

    def tile(self, largest: int) -> int:
        """P, the number of nodes that a program owns."""
        width = max(self.key_width, self.value_width)
        by_states = TILE_STATES // block(self.columns)
        by_bytes = TILE_BYTES // (block(width) * self.dtype.itemsize)
        return max(kernels.SMALLEST_BLOCK, min(largest, by_states, by_bytes))

    def tiles(self, largest: int) -> int:
        """Tiles of P nodes per image."""
        return ceil_div(self.rows * self.columns, self.tile(largest))

    @property
    def shares(self) -> int:
        """Programs that share the tiles of an image in the backward pass."""
        return min(self.tiles(BACKWARD_TILE), ceil_div(BACKWARD_PROGRAMS, max(1, self.images)))


def problem_of(
    q: Tensor, v: Tensor, num_corners: int, orders: int, dtype: torch.dtype, acc_dtype: torch.dtype
) -> Problem:
    """Problem of q (B, Y, X, H, K) and v (B, Y, X, H, V), multiplied in `dtype`."""
    sizes = (*q.shape, v.shape[-1], num_corners, orders)
    return Problem(*sizes, dtype, acc_dtype, kernels.precision())


def read_launch(problem: Problem, *, reverse: bool) -> Launch:
    """Outputs; reverse: the gradient of q, with K and V exchanged."""
    x, acc_dtype = problem.dtype, problem.acc_dtype
    widths = problem.key_width, problem.value_width
    own_width, value_width = widths[::-1] if reverse else widths
    num_tiles = problem.tiles(READ_TILE)
    sizes = _sizes(problem) | {"num_tiles": num_tiles}
    constants = _constants(problem, READ_TILE) | {
        "D": own_width,
        "E": value_width,
        "BLOCK_D": block(own_width),
        "BLOCK_E": block(value_width),
    }
    return Launch(
        read_kernel, (problem.images * num_tiles,),
        (x, x, x, acc_dtype, acc_dtype, x), sizes, constants,
        num_warps=READ_WARPS, num_stages=_stages(problem),
    )  # fmt: skip


def backward_launch(problem: Problem) -> Launch:
    """Gradients of k, v, direct and the gates; one stage, as prefetching needs registers."""
    x, acc_dtype = problem.dtype, problem.acc_dtype
    sizes = _sizes(problem) | {
        "num_tiles": problem.tiles(BACKWARD_TILE),
        "num_shares": problem.shares,
    }
    constants = _constants(problem, BACKWARD_TILE) | {
        "K": problem.key_width,
        "V": problem.value_width,
        "BLOCK_K": block(problem.key_width),
        "BLOCK_V": block(problem.value_width),
    }
    dtypes = (*4 * (x,), acc_dtype, acc_dtype, x, x, *3 * (acc_dtype,))
    return Launch(
        backward_kernel, (problem.images * problem.shares,), dtypes, sizes, constants,
        num_warps=BACKWARD_WARPS, num_stages=1,
    )  # fmt: skip


def launches(problem: Problem) -> list[Launch]:
    """Launches of a forward and a backward pass."""
    return [
        read_launch(problem, reverse=False),
        read_launch(problem, reverse=True),
        backward_launch(problem),
    ]


def _sizes(problem: Problem) -> dict[str, int]:
    return {"num_rows": problem.rows, "num_columns": problem.columns, "heads": problem.heads}


def _constants(problem: Problem, largest_tile: int) -> dict[str, int | str]:
    orders = [problem.orders >> (2 * c) & 3 for c in range(problem.num_corners)]
    numbers = {name: c for c, name in enumerate(CORNERS[order] for order in orders)}
    return {name: numbers.get(name, -1) for name in CORNERS} | {
        "CORNERS": problem.num_corners,
        "P": problem.tile(largest_tile),
        "BLOCK_X": block(problem.columns),
        "PRECISION": problem.precision,
    }


def _stages(problem: Problem) -> int:
    return 2 if problem.row_bytes <= PREFETCHED_ROW_BYTES else 1


def supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a row of the grid fits in a program: X, K, V <= 128, and 32 KiB for q, k or v.

    X and the widths are rounded up to a power of two. In bfloat16 every allowed size fits; other
    dtypes count as float32, which fits up to X = 64 at width 128, or 128 at width 64. Y is free.
    """
    width = max(q.shape[-1], v.shape[-1])
    itemsize = operand_dtype(torch.float32, q, k, v).itemsize
    longest_row = MAX_ROW_BYTES // (block(width) * itemsize)  # compared without padding X, which
    return width <= LONGEST_SIDE and q.shape[2] <= min(LONGEST_SIDE, longest_row)  # may be symbolic


def compiles(q: Tensor, k: Tensor, v: Tensor, corners: tuple[str, ...]) -> bool:
    """Whether the kernels compile for the device of q; see `plstm.ops.kernels.compiles`."""
    if torch.compiler.is_compiling():
        return True  # tracing cannot test this; if they do not, compiling the graph fails
    dtype = operand_dtype(torch.float32, q, k, v)
    problem = problem_of(q, v, len(corners), scan_orders(corners), dtype, torch.float32)
    # The compiled code does not depend on the other axes.
    problem = problem._replace(batch=1, rows=1, heads=1)
    return _compiles(problem, q.device)


@functools.lru_cache
def _compiles(problem: Problem, device: torch.device) -> bool:
    return kernels.compiles("plstm_2d", launches(problem), device)


@torch.library.custom_op("plstm::grid_triton", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
) -> Tensor:
    """Shapes as in `plstm_2d`; `orders` from `scan_orders`."""
    problem = problem_of(q, v, source.shape[0], orders, q.dtype, source.dtype)
    out = torch.empty_like(v)
    gates = _pack(source, transition, mark), _by_head(direct)
    launch(read_launch(problem, reverse=False), q, k, v, *gates, out)
    return out


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Tensor | int) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("plstm::grid_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = problem_of(q, v, source.shape[0], orders, q.dtype, source.dtype)
    settings = backward_launch(problem)
    gates, direct = _pack(source, transition, mark), _by_head(direct)
    dq, dk, dv, ddirect = (torch.empty_like(x) for x in (q, k, v, direct))
    batch, heads, *sizes = gates.shape
    dgates = gates.new_zeros(batch, heads, problem.shares, *sizes)
    tile, columns = settings.constants["P"], settings.constants["BLOCK_X"]
    states = gates.new_empty(batch, heads, problem.shares, 2, problem.rows, tile, columns)

    launch(read_launch(problem, reverse=True), grad, v, k, gates, direct, dq)
    launch(settings, q, k, v, grad, gates, direct, dk, dv, ddirect, dgates, states)
    ddirect = rearrange(ddirect, "b h y x -> b y x h").contiguous()
    return dq, dk, dv, *_unpack(dgates.sum(2), problem.columns), ddirect


@_backward.register_fake
def _(grad: Tensor, *args: Tensor | int) -> tuple[Tensor, ...]:
    *tensors, _orders = args
    return tuple(torch.empty_like(x) for x in tensors)


def _pack(source: Tensor, transition: Tensor, mark: Tensor) -> Tensor:
    """Gates in the layout of the kernels, (B, H, C, Y, 8, X), padded with zeros to the tile side.

    The distance between the gates of a row is a compile-time constant, so one address serves all.
    """
    gates = rearrange(
        torch.cat([source, transition.flatten(-2), mark], -1), "c b y x h g -> b h c y g x"
    )
    columns = gates.shape[-1]
    return F.pad(gates, (0, block(columns) - columns)).contiguous()


def _unpack(gates: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `_pack`: source, transition and mark."""
    gates = rearrange(gates[..., :columns], "b h c y g x -> c b y x h g")
    # Clones, because outputs of an operator must not share memory.
    copies = (x.clone(memory_format=torch.contiguous_format) for x in gates.split((2, 4, 2), -1))
    source, transition, mark = copies
    return source, transition.unflatten(-1, (2, 2)), mark


def _by_head(direct: Tensor) -> Tensor:
    return rearrange(direct, "b y x h -> b h y x").contiguous()


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, ctx.orders = inputs
    ctx.save_for_backward(*tensors)


@first_derivatives_only("plstm_2d")
def _gradients(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad.contiguous(), *ctx.saved_tensors, ctx.orders), None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def plstm_2d_triton(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    """Parallel form that never writes a gating matrix; shapes as in `plstm_2d`.

    If q, k and v are bfloat16, their products are in bfloat16. Sums and recurrences, and otherwise
    also products, are in float32, or in float64 (for tests) if any input is.

    Raises:
        ValueError: a row of the grid does not fit in a program, see `supported`.
    """
    if not supported(q, k, v):
        raise ValueError(
            f'plstm_2d: backend "triton" needs X, K, V <= {LONGEST_SIDE} and at most '
            f"{MAX_ROW_BYTES} bytes of q, k or v in a row, got X={q.shape[2]}, K={q.shape[-1]}, "
            f'V={v.shape[-1]} in {v.dtype}; use backend "auto"'
        )
    acc_dtype = accumulation_dtype(q, k, v, *gates)
    source, transition, mark, direct = (x.to(acc_dtype) for x in gates)
    dtype = operand_dtype(acc_dtype, q, k, v)
    # The output is linear in mark and direct, so scale multiplies them.
    inputs = (*(x.to(dtype) for x in (q, k, v)), source, transition, scale * mark, scale * direct)
    return _forward(*(x.contiguous() for x in inputs), scan_orders(corners))
