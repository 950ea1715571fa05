"""Chunkwise form on a sequence whose edges carry several states (lanes).

Letters: B batch, L positions, H heads, N chunks, C positions in a chunk, K V widths, W = K V, J I O
lanes of the state, the values and the outputs.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from plstm.compiler import statically_known_true
from plstm.ops.chunks import chunk_size, join_chunks, scan_chunks, split_chunks, split_gates
from plstm.ops.derivatives import first_derivatives_only, transformed
from plstm.ops.gates import Gates
from plstm.ops.lanes import accept_one_lane, lane_products, lane_rows

CHUNK_LANES = 32  # with J lanes a chunk has 32 / J positions
NARROW = 8  # up to this K V per lane, computing the states of all positions is cheaper


class ChunkGates(NamedTuple):
    """Products of all gates of a chunk, from every input to every output."""

    inside: Tensor  # input at c' to output at c, (B, H, N, C, O, C, I)
    enter: Tensor  # state before the chunk to output at c, (B, H, N, C, O, J)
    leave: Tensor  # input at c' to state after the chunk, (B, H, N, J, C, I)
    across: Tensor  # state before to state after the chunk, (B, H, N, J, J)


@accept_one_lane
def plstm_1d_chunk_lanes(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive`, in matrix products; one operator when compiled."""
    if torch.compiler.is_compiling() and not transformed():
        return _operator(q, k, v, *gates, state, scale)
    return _chunkwise(q, k, v, gates, state, scale)


@torch.library.custom_op("plstm::sequence_lanes", mutates_args=())
def _operator(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor,
    direct: Tensor, state: Tensor, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """For compiled graphs, where plain operations would be thousands of nodes and guards."""
    gates = Gates(source, transition, mark, direct)
    out, state = _chunkwise(q, k, v, gates, state, scale)
    return out.contiguous(), state.contiguous()


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | float) -> tuple[Tensor, Tensor]:
    *_, direct, state, _ = rest  # gates, state and scale
    return v.new_empty(*v.shape[:-1], direct.shape[-2]), state.new_empty(state.shape)


@torch.library.custom_op("plstm::sequence_lanes_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, state_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, source: Tensor,
    transition: Tensor, mark: Tensor, direct: Tensor, state: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Recomputes everything from the inputs."""

    def run(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        return _chunkwise(q, k, v, Gates(*gates), state, scale)

    _, pull_back = torch.func.vjp(run, q, k, v, state, source, transition, mark, direct)
    grad_q, grad_k, grad_v, grad_state, *grad_gates = pull_back((grad, state_grad))
    return tuple(x.contiguous() for x in (grad_q, grad_k, grad_v, *grad_gates, grad_state))


@_operator_backward.register_fake
def _(grad: Tensor, state_grad: Tensor, *inputs: Tensor | float) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:-1])  # without the scale


def _setup_context(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


@first_derivatives_only("plstm_1d")
def _backward(ctx: object, grad: Tensor, state_grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_operator_backward(grad, state_grad, *ctx.saved_tensors, ctx.scale), None


_operator.register_autograd(_backward, setup_context=_setup_context)


def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    if statically_known_true(q.shape[-1] * v.shape[3] <= NARROW):
        return _with_all_states(q, k, v, gates, state, scale)
    length = q.shape[1]
    size = chunk_size(length, max(1, CHUNK_LANES // state.shape[-1]))
    q, k, v = (split_chunks(x, size) for x in (q, k, v))
    gating = _collapse(split_gates(gates, size))

    written_BHNCVJ = torch.einsum("bhnjci,bhncvi->bhncvj", gating.leave, v)
    update_BHNKVJ = _product(k.mT, written_BHNCVJ)
    states, state = scan_chunks(  # K and V flattened, so that a step is one matrix product
        lambda across, state, update: state @ across.mT + update,
        gating.across,
        update_BHNKVJ.flatten(3, 4),
        state.flatten(2, 3),
    )
    states_BHNKVJ = states.unflatten(3, update_BHNKVJ.shape[3:5])
    state = state.unflatten(2, update_BHNKVJ.shape[3:5])
    gated_BHNCOCI = (q @ k.mT)[..., None, :, None] * gating.inside
    values = rearrange(v, "b h n c v i -> b h n (c i) v")
    out = gated_BHNCOCI.flatten(-2).flatten(-3, -2) @ values  # (B, H, N, C O, V)
    out_BHNCVO = rearrange(out, "b h n (c o) v -> b h n c v o", c=size)
    read_BHNCVJ = _product(q, states_BHNKVJ)  # C^T q
    out_BHNCVO = out_BHNCVO + torch.einsum("bhncoj,bhncvj->bhncvo", gating.enter, read_BHNCVJ)
    return scale * join_chunks(out_BHNCVO, length), state


def _with_all_states(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """For small K V: compute the states of all positions, then read them at once."""
    source, transition, mark, direct = gates
    length, lanes, widths = q.shape[1], state.shape[-1], (k.shape[-1], v.shape[3])
    size = chunk_size(length, math.isqrt(length))
    one = torch.eye(lanes, dtype=state.dtype, device=state.device)
    update = torch.einsum("blhji,blhk,blhvi->blhjkv", source, k, v).flatten(4)
    update_BHNCJW = split_chunks(update, size)
    transition_BHNCJJ = split_chunks(transition, size, one)

    # Within a chunk: states from a zero state, and the product of all transitions.
    both = torch.cat(
        [torch.zeros_like(update_BHNCJW[:, :, :, 0]), one.expand_as(transition_BHNCJJ[:, :, :, 0])],
        -1,
    )
    reached = []
    for a, b in zip(transition_BHNCJJ.unbind(3), update_BHNCJW.unbind(3), strict=True):
        reached.append(both)
        both = a @ both + torch.nn.functional.pad(b, (0, lanes))
    local_BHNCJW, product_BHNCJJ = torch.stack(reached, 3).split([update.shape[-1], lanes], -1)
    leave, across = both.split([update.shape[-1], lanes], -1)
    entering_BHNJW, state = scan_chunks(
        lambda across, state, leave: across @ state + leave,
        across,
        leave,
        rearrange(state, "b h k v j -> b h j (k v)"),
    )
    states = join_chunks(local_BHNCJW + product_BHNCJJ @ entering_BHNJW[:, :, :, None], length)
    read_BLHJV = torch.einsum("blhjkv,blhk->blhjv", states.unflatten(-1, widths), q)
    own_BLHVI = (q * k).sum(-1)[..., None, None] * v
    out = (mark @ read_BLHJV).mT + own_BLHVI @ direct.mT
    return scale * out, state.unflatten(-1, widths).movedim(2, -1)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product of (..., M, W) and (..., W, V, J): (..., M, V, J)."""
    return (x @ y.flatten(-2)).unflatten(-1, y.shape[-2:])


def _collapse(gates: Gates) -> ChunkGates:
    """Loop over the positions of a chunk, for all chunks at once; gates as chunks."""
    chunk_size, lanes_in = gates.source.shape[3], gates.source.shape[-1]
    source, transition, mark = (x.unbind(3) for x in gates[:3])
    rows, leave = lane_rows(transition, source, mark)
    enter, across = lane_products(transition, mark)
    rows = [
        torch.nn.functional.pad(r, (0, (chunk_size - t) * lanes_in)) for t, r in enumerate(rows)
    ]
    inside = torch.stack(rows, 3).unflatten(-1, (chunk_size, lanes_in))
    diagonal = torch.diag_embed(gates.direct.movedim(3, -1)).movedim((-2, -1), (3, 5))
    return ChunkGates(inside + diagonal, enter, leave.unflatten(-1, (chunk_size, lanes_in)), across)
