"""Triton kernels of the chunkwise form for one lane: launch settings, operators, gradients."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from plstm.checks import accumulation_dtype
from plstm.ops import kernels
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.kernels import Launch, block, ceil_div, launch, operand_dtype
from plstm.ops.plstm_1d.triton_kernels import (
    border_kernel,
    gate_kernel,
    output_kernel,
    query_key_kernel,
)

# Positions per chunk, and the largest tile along K and V: what fits in registers.
CHUNK_SIZE = {torch.bfloat16: 64, torch.float32: 32, torch.float64: 32}
BLOCK = {torch.bfloat16: 64, torch.float32: 32, torch.float64: 32}
BORDER_BLOCK = 32  # smaller: a program runs along all chunks, so only tiles give parallelism


class Problem(NamedTuple):
    """All that launches depend on; `acc_dtype` is the dtype of gates, states and sums."""

    batch: int
    length: int
    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    acc_dtype: torch.dtype
    chunk_size: int
    precision: str

    @property
    def sequences(self) -> int:
        """Sequences times heads."""
        return self.batch * self.heads

    @property
    def chunks(self) -> int:
        """Chunks per sequence."""
        return ceil_div(self.length, self.chunk_size)

    @property
    def key_tiles(self) -> int:
        """Tiles along K, each with its partial results of three sums."""
        return _tiles(self.key_width, BLOCK[self.dtype])

    @property
    def value_tiles(self) -> int:
        """Tiles along V."""
        return _tiles(self.value_width, BLOCK[self.dtype])


def problem_of(
    q: Tensor, v: Tensor, dtype: torch.dtype, acc_dtype: torch.dtype, chunk_size: int
) -> Problem:
    """Problem of q (B, L, H, K) and v (B, L, H, V), multiplied in `dtype`."""
    return Problem(*q.shape, v.shape[-1], dtype, acc_dtype, chunk_size, kernels.precision())


def border_launch(problem: Problem, *, reverse: bool) -> Launch:
    """States at the chunk borders; reverse: their gradients, with q in place of k."""
    x, acc_dtype = problem.dtype, problem.acc_dtype
    tiles = (_tiles(width, BORDER_BLOCK) for width in (problem.key_width, problem.value_width))
    return Launch(
        border_kernel, (problem.sequences, *tiles),
        (x, x, *3 * (acc_dtype,), x, acc_dtype),
        _sizes(problem), _constants(problem, BORDER_BLOCK) | {"REVERSE": reverse},
        num_warps=4, num_stages=3,
    )  # fmt: skip


def output_launch(problem: Problem, *, reverse: bool) -> Launch:
    """Outputs of the chunks; reverse: the gradient of v."""
    x, acc_dtype = problem.dtype, problem.acc_dtype
    return Launch(
        output_kernel, (problem.sequences * problem.chunks, problem.value_tiles),
        (x, x, x, *4 * (acc_dtype,), x, x),
        _sizes(problem), _constants(problem, BLOCK[x]) | {"REVERSE": reverse},
        num_warps=4, num_stages=2,
    )  # fmt: skip


def query_key_launch(problem: Problem) -> Launch:
    """Gradients of q and k, and partial gradients of the gates.

    Uses one stage: with two, Triton 3.7 copies the next states into shared memory that products on
    Hopper still read.
    """
    x, acc_dtype = problem.dtype, problem.acc_dtype
    return Launch(
        query_key_kernel, (problem.sequences * problem.chunks, problem.key_tiles),
        (x, x, x, *4 * (acc_dtype,), x, x, x, x, x, *3 * (acc_dtype,)),
        _sizes(problem), _constants(problem, BLOCK[x]), num_warps=8, num_stages=1,
    )  # fmt: skip


def gate_launch(problem: Problem) -> Launch:
    """Gradients of the gates."""
    x, acc_dtype = problem.dtype, problem.acc_dtype
    return Launch(
        gate_kernel, (problem.sequences * problem.chunks,),
        (x, x, x, *3 * (acc_dtype,), x, *7 * (acc_dtype,)),
        _sizes(problem), _constants(problem, BLOCK[x]), num_warps=8, num_stages=2,
    )  # fmt: skip


def launches(problem: Problem) -> list[Launch]:
    """Launches of a forward and a backward pass."""
    return [
        border_launch(problem, reverse=False),
        output_launch(problem, reverse=False),
        border_launch(problem, reverse=True),
        output_launch(problem, reverse=True),
        query_key_launch(problem),
        gate_launch(problem),
    ]


def _sizes(problem: Problem) -> dict[str, int]:
    return {"length": problem.length, "heads": problem.heads, "chunks": problem.chunks}


def _constants(problem: Problem, widest_tile: int) -> dict[str, int | str]:
    return {
        "K": problem.key_width,
        "V": problem.value_width,
        "C": problem.chunk_size,
        "BLOCK_K": min(widest_tile, block(problem.key_width)),
        "BLOCK_V": min(widest_tile, block(problem.value_width)),
        "PRECISION": problem.precision,
    }


def _tiles(width: int, widest_tile: int) -> int:
    return ceil_div(width, min(widest_tile, block(width)))


def compiles(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels compile for the device of q; see `plstm.ops.kernels.compiles`."""
    if torch.compiler.is_compiling():
        return True  # tracing cannot test this; if they do not, compiling the graph fails
    dtype = operand_dtype(torch.float32, q, k, v)
    problem = problem_of(q, v, dtype, torch.float32, CHUNK_SIZE[dtype])
    # The compiled code does not depend on the other axes.
    problem = problem._replace(batch=1, length=1, heads=1)
    return _compiles(problem, q.device)


@functools.lru_cache
def _compiles(problem: Problem, device: torch.device) -> bool:
    return kernels.compiles("plstm_1d", launches(problem), device)


@torch.library.custom_op("plstm::sequence_triton", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, state after the last position, and the state that enters every chunk."""
    problem = problem_of(q, v, q.dtype, transition.dtype, chunk_size)
    out, last, borders = _empty_results(problem, v, state)
    launch(border_launch(problem, reverse=False), k, v, source, transition, state, borders, last)
    launch(
        output_launch(problem, reverse=False),
        q, k, v, source, transition, mark, direct, borders, out,
    )  # fmt: skip
    return out, last, borders


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    *_, state, chunk_size = args
    return _empty_results(problem_of(q, v, q.dtype, state.dtype, chunk_size), v, state)


def _empty_results(problem: Problem, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Flat, so that a graph compiled for dynamic lengths has no guard on N = 1.
    borders = v.new_empty(
        problem.sequences * problem.chunks * problem.key_width * problem.value_width
    )
    return torch.empty_like(v), torch.empty_like(state), borders


@torch.library.custom_op("plstm::sequence_triton_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    borders: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the four gates and the state."""
    problem = problem_of(q, v, q.dtype, transition.dtype, chunk_size)
    gates = (source, transition, mark, direct)
    grad_borders, grad_state = torch.empty_like(borders), torch.empty_like(grad_last)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_gates = [torch.empty_like(gate) for gate in gates]
    grad_enter, grad_leave = transition.new_empty(2, *transition.shape, problem.key_tiles)
    grad_across = transition.new_empty(problem.sequences, problem.chunks, problem.key_tiles)

    launch(
        border_launch(problem, reverse=True),
        q, grad_out, mark, transition, grad_last, grad_borders, grad_state,
    )  # fmt: skip
    launch(output_launch(problem, reverse=True), k, q, grad_out, *gates, grad_borders, grad_v)
    launch(
        query_key_launch(problem),
        q, k, v, *gates, borders, grad_out, grad_borders, grad_q, grad_k,
        grad_enter, grad_leave, grad_across,
    )  # fmt: skip
    parts = (x.sum(-1) for x in (grad_enter, grad_leave, grad_across))
    launch(gate_launch(problem), q, k, v, source, transition, mark, grad_out, *parts, *grad_gates)
    return grad_q, grad_k, grad_v, *grad_gates, grad_state


@_backward.register_fake
def _(grad_out: Tensor, grad_last: Tensor, *args: Tensor | int) -> tuple[Tensor, ...]:
    *inputs, _borders, _chunk_size = args
    return tuple(torch.empty_like(x) for x in (*inputs, grad_last))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.chunk_size = inputs
    *_, borders = output
    ctx.mark_non_differentiable(borders)
    ctx.set_materialize_grads(False)  # saves zeros of the size of borders
    ctx.save_for_backward(*tensors, borders)


@first_derivatives_only("plstm_1d")
def _gradients(ctx: object, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, state, borders = ctx.saved_tensors
    grads = (
        torch.zeros_like(x) if grad is None else grad.contiguous()
        for grad, x in zip(grads, (inputs[2], state), strict=False)
    )  # gradients of the output and of the last state
    return *_backward(*grads, *inputs, borders, ctx.chunk_size), None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def plstm_1d_triton(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive` for one lane, without the lane axes; first derivatives only.

    If q, k and v are bfloat16, products among them and with states at chunk borders are in
    bfloat16. Sums, and otherwise also products, are in float32, or in float64 (for tests) if any
    input is.

    Args:
        q, k, v: As in `plstm_1d`.
        gates: Each (B, L, H).
        state: Initial state, (B, H, K, V).
        scale: Factor on the output.
    """
    acc_dtype = accumulation_dtype(q, k, v, *gates)
    dtype = operand_dtype(acc_dtype, q, k, v)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    source, transition, mark, direct = (x.to(acc_dtype) for x in gates)
    # The output is linear in mark and direct, so scale multiplies them.
    inputs = (q, k, v, source, transition, scale * mark, scale * direct, state.to(acc_dtype))
    out, last, _ = _forward(*(x.contiguous() for x in inputs), CHUNK_SIZE[dtype])
    return out, last
