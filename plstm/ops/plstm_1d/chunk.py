"""Chunkwise form on a sequence: parallel inside a chunk, recurrent states across chunk borders.

Letters: B batch, L positions, H heads, N chunks, C positions in a chunk, K V widths.

Source and mark scale keys and queries, k' = S k and q' = scale M q. With the products of the
transitions of a chunk, P[t, s] = T_s ... T_{t-1}, and the state C_n that enters chunk n,

    out_t = sum_{s<t} P[t, s + 1] (q'_t . k'_s) v_s + scale D_t (q_t . k_t) v_t + P[t, 0] C_n^T q'_t
    C_{n+1} = P[C, 0] C_n + sum_s P[C, s + 1] k'_s v_s^T

The second line is a recurrence too, unrolled with the products of its factors P[C, 0].
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from plstm.ops.chunks import chunk_size, join_chunks, split_chunks, split_gates
from plstm.ops.derivatives import first_derivatives_only, transformed
from plstm.ops.gates import Gates
from plstm.ops.plstm_1d.chunk_lanes import plstm_1d_chunk_lanes
from plstm.ops.products import transition_gradient, transition_products

# Use the largest with C^2 <= K V: work inside chunks grows with C, on states with K V / C.
CHUNK_SIZES = (64, 32, 16)
# Pieces are several chunks at a time, so that temporaries fit in CPU caches, or elsewhere are few
# and large. Limits on the elements of a temporary, and on chunks, whose number enters squared:
PIECE_ELEMENTS = {"cpu": 2**17}
OTHER_PIECE_ELEMENTS = 2**26
MAX_CHUNKS = 64


def plstm_1d_chunk(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive`, in matrix products; with one lane, one PyTorch operator."""
    if v.ndim == 5 or transformed():
        return plstm_1d_chunk_lanes(q, k, v, gates, state, scale)
    out, state, _ = _chunkwise(q, k, v, *gates, state, scale)
    return out, state


@torch.library.custom_op("plstm::sequence_chunkwise", mutates_args=())
def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor,
    direct: Tensor, state: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, last state, and the states before and after every chunk, (B, H, N + 1, K, V)."""
    gates = Gates(source, transition, mark, direct)
    out, _, states = _empty_results(q, v, state)
    for piece in _pieces(q, v):
        y, piece_states = _piece_forward(*piece.cut(q, k, v, gates), state, scale)
        piece.paste(y, out)
        states[:, :, piece.start : piece.stop + 1] = piece_states
        state = piece_states[:, :, -1].contiguous()
    return out, state, states


@_chunkwise.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    *_, state, _ = rest  # gates, state and scale
    return _empty_results(q, v, state)


def _empty_results(q: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = largest_chunk(q.shape[-1], v.shape[-1])
    chunks = (q.shape[1] + size - 1) // size
    states = state.new_empty(*state.shape[:2], chunks + 1, *state.shape[2:])
    return v.new_empty(v.shape), state.new_empty(state.shape), states


@torch.library.custom_op("plstm::sequence_chunkwise_backward", mutates_args=())
def _chunkwise_backward(
    grad: Tensor, state_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, source: Tensor,
    transition: Tensor, mark: Tensor, direct: Tensor, states: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the inputs in their order, the state last; recomputes the rest."""
    inputs = (q, k, v, source, transition, mark, direct)
    grads = [x.new_empty(x.shape) for x in inputs]
    for piece in reversed(list(_pieces(q, v))):
        *piece_grads, state_grad = _piece_backward(
            *piece.cut(q, k, v, Gates(*inputs[3:])),
            states[:, :, piece.start : piece.stop],
            scale,
            piece.cut_rows(grad),
            state_grad,
        )
        for y, x in zip(piece_grads, grads, strict=True):
            piece.paste(y, x)
    return *grads, state_grad


@_chunkwise_backward.register_fake
def _(grad: Tensor, state_grad: Tensor, *inputs: Tensor | float) -> tuple[Tensor, ...]:
    *inputs, _, _ = inputs  # without states and scale
    return tuple(x.new_empty(x.shape) for x in (*inputs, state_grad))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.set_materialize_grads(False)  # the states have no gradient
    ctx.save_for_backward(*tensors, output[2])


@first_derivatives_only("plstm_1d")
def _backward(ctx: object, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, state, states = ctx.saved_tensors
    grad, state_grad, _ = grads
    grad = torch.zeros_like(inputs[2]) if grad is None else grad
    state_grad = torch.zeros_like(state) if state_grad is None else state_grad
    return *_chunkwise_backward(grad, state_grad, *inputs, states, ctx.scale), None


_chunkwise.register_autograd(_backward, setup_context=_setup_context)


class Piece(NamedTuple):
    """Chunks from `start` to `stop`, of `size` positions each."""

    start: int
    stop: int
    size: int

    def cut(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates
    ) -> tuple[Tensor, Tensor, Tensor, Gates]:
        """This part of the inputs (B, L, H, ...) as chunks, (B, H, N, C, ...)."""
        gates = split_gates(Gates(*(x[:, self.positions] for x in gates)), self.size)
        gates = Gates(*(x.contiguous() for x in gates))
        return self.cut_rows(q), self.cut_rows(k), self.cut_rows(v), gates

    def cut_rows(self, x: Tensor) -> Tensor:
        """The same for one tensor, padded with zeros."""
        return split_chunks(x[:, self.positions], self.size).contiguous()

    def paste(self, part: Tensor, x: Tensor) -> None:
        """Write (B, H, N, C, ...) to its positions in x (B, L, H, ...)."""
        x = x[:, self.positions]
        x.copy_(join_chunks(part, x.shape[1]))

    @property
    def positions(self) -> slice:
        return slice(self.start * self.size, self.stop * self.size)


def largest_chunk(key_width: int, value_width: int) -> int:
    """Largest number of positions per chunk."""
    sizes = (size for size in CHUNK_SIZES if size**2 <= key_width * value_width)
    return next(sizes, CHUNK_SIZES[-1])


def _pieces(q: Tensor, v: Tensor) -> Iterator[Piece]:
    batch, length, heads, key_width = q.shape
    value_width = v.shape[-1]
    size = chunk_size(length, largest_chunk(key_width, value_width))
    rows, state_size = size * max(size, key_width, value_width), key_width * value_width
    numbers = batch * heads * max(rows, state_size)
    limit = PIECE_ELEMENTS.get(q.device.type, OTHER_PIECE_ELEMENTS)
    step = min(max(1, limit // max(1, numbers)), MAX_CHUNKS)
    chunks = -(-length // size)
    for start in range(0, chunks, step):
        yield Piece(start, min(start + step, chunks), size)


class Gated(NamedTuple):
    """Intermediate results that forward and backward of a piece share."""

    q: Tensor  # scale M q, (B, H, N, C, K)
    k: Tensor  # S k, (B, H, N, C, K)
    own: Tensor  # scale q . k of every position, (B, H, N, C)
    products: Tensor  # (B, H, N, C + 1, C + 1)
    inside: Tensor  # P[t, s + 1]: input at s to output at t, (B, H, N, C, C)
    enter: Tensor  # P[t, 0]: entering state to output at t, (B, H, N, C, 1)
    leave: Tensor  # P[C, s + 1]: input at s to leaving state, (B, H, N, C, 1)
    across: Tensor  # products of the factors P[C, 0] of the chunks, (B, H, N + 1, N + 1)


def _gated(q: Tensor, k: Tensor, gates: Gates, scale: float) -> Gated:
    products = transition_products(gates.transition)
    inside, enter = products[..., :-1, 1:], products[..., :-1, :1]
    leave = products[..., -1, 1:, None]
    own = (q * k).sum(-1).mul_(scale)
    q, k = q * (scale * gates.mark)[..., None], k * gates.source[..., None]
    across = transition_products(products[..., -1, 0])
    return Gated(q, k, own, products, inside, enter, leave, across)


def _piece_forward(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output, and the states before and after every chunk."""
    g = _gated(q, k, gates, scale)
    updates = torch.cat([state[:, :, None], (g.k * g.leave).mT @ v], 2)  # (B, H, N + 1, K, V)
    states = (g.across @ updates.flatten(3)).view_as(updates)
    weights_BHNCC = (g.q @ g.k.mT).mul_(g.inside)
    _diagonal(weights_BHNCC).copy_(gates.direct * g.own)
    out = (weights_BHNCC @ v).add_((g.q * g.enter) @ states[:, :, :-1])
    return out, states


def _piece_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    states: Tensor,
    scale: float,
    grad: Tensor,
    state_grad: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of the inputs in their order, the state last."""
    g = _gated(q, k, gates, scale)

    # Through the states, with the transpose of `across`.
    grad_states = torch.cat([(g.q * g.enter).mT @ grad, state_grad[:, :, None]], 2)
    grad_updates = (g.across.mT @ grad_states.flatten(3)).view_as(grad_states)
    grad_state, grad_updates_BHNKV = grad_updates[:, :, 0], grad_updates[:, :, 1:]
    grad_read_BHNCK = grad @ states.mT  # of P[t, 0] q'
    grad_written_BHNCK = v @ grad_updates_BHNKV.mT  # of P[C, s + 1] k'
    grad_v = (g.k * g.leave) @ grad_updates_BHNKV

    # Inside the chunks.
    scores_BHNCC, grad_weights_BHNCC = g.q @ g.k.mT, grad @ v.mT
    grad_own = _diagonal(grad_weights_BHNCC) * gates.direct
    grad_direct = _diagonal(grad_weights_BHNCC) * g.own
    grad_products = torch.empty_like(g.products)
    grad_products[..., :-1, 1:] = grad_weights_BHNCC * scores_BHNCC
    weights_BHNCC = scores_BHNCC.mul_(g.inside)
    _diagonal(weights_BHNCC).copy_(gates.direct * g.own)
    grad_v.add_(weights_BHNCC.mT @ grad)
    grad_scores_BHNCC = grad_weights_BHNCC.mul_(g.inside)
    grad_q = (grad_scores_BHNCC @ g.k).addcmul_(grad_read_BHNCK, g.enter)
    grad_k = (grad_scores_BHNCC.mT @ g.q).addcmul_(grad_written_BHNCK, g.leave)

    # The gates.
    grad_products[..., :-1, 0] = (grad_read_BHNCK * g.q).sum(-1)
    grad_products[..., -1, 1:] = (grad_written_BHNCK * g.k).sum(-1)
    grad_products[..., -1, 0] = (grad_updates_BHNKV * states).sum((-2, -1))
    grad_transition = transition_gradient(g.products, grad_products)
    grad_mark, grad_source = (grad_q * q).sum(-1).mul_(scale), (grad_k * k).sum(-1)
    grad_own = (scale * grad_own)[..., None]
    grad_q = grad_q.mul_((scale * gates.mark)[..., None]).addcmul_(grad_own, k)
    grad_k = grad_k.mul_(gates.source[..., None]).addcmul_(grad_own, q)
    grad_gates = (grad_source, grad_transition, grad_mark, grad_direct)
    return grad_q, grad_k, grad_v, *grad_gates, grad_state.contiguous()


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)
