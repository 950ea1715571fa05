"""Chunkwise form on a sequence: parallel inside a chunk, recurrent states across chunk borders.

Letters: B batch, N chunks, C positions in a chunk, H heads, K V widths.

Source and mark scale keys and queries, k' = S k and q' = scale M q. With the products of the
transitions of a chunk, P[t, s] = T_s ... T_{t-1}, and the state C_n that enters chunk n,

    out_t = sum_{s<t} P[t, s + 1] (q'_t . k'_s) v_s + scale D_t (q_t . k_t) v_t + P[t, 0] C_n^T q'_t
    C_{n+1} = P[C, 0] C_n + sum_s P[C, s + 1] k'_s v_s^T

The second line is a recurrence again, unrolled by the products of its own factors P[C, 0].
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import FunctionCtx

from plstm.ops.derivatives import first_derivatives_only, transformed
from plstm.ops.plstm_1d.chunk_lanes import plstm_1d_chunk_lanes
from plstm.ops.products import transition_gradient, transition_products

# The longest with C^2 <= K V: work inside chunks grows with C, that of the states with K V / C.
CHUNK_SIZES = (64, 32, 16)
# Chunks are taken together in pieces, so that temporaries stay in the caches of a CPU or are few
# and large elsewhere. Numbers of a temporary, and most chunks, whose number enters squared:
PIECE_NUMBERS = {"cpu": 2**17}
OTHER_PIECE_NUMBERS = 2**26
MAX_CHUNKS = 64


def plstm_1d_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Same result as `plstm_1d_naive`, in matrix products; lane shapes as in `plstm_1d`."""
    gates = (source, transition, mark, direct)
    if transformed() or any(lanes > 1 for gate in gates for lanes in gate.shape[-2:]):
        return plstm_1d_chunk_lanes(q, k, v, *gates, state, scale)
    gates = (gate.flatten(2) for gate in gates)
    out, state = _Chunkwise.apply(q, k, v.squeeze(-1), *gates, state.squeeze(-1), scale)
    return out.unsqueeze(-1), state.unsqueeze(-1)


class _Chunkwise(torch.autograd.Function):
    """Keeps its inputs and the states between pieces; all else is computed again backwards."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        source: Tensor,
        transition: Tensor,
        mark: Tensor,
        direct: Tensor,
        state: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        inputs = (q, k, v, source, transition, mark, direct)
        out, states = torch.empty_like(v, memory_format=torch.contiguous_format), []
        for piece in _pieces(q, v):
            states.append(state)
            y, state = _piece_forward(*(piece.cut(x) for x in inputs), state, scale)
            piece.paste(y, out)
        ctx.save_for_backward(*inputs, *states)
        ctx.scale = scale
        return out, state

    @staticmethod
    @first_derivatives_only("plstm_1d")
    def backward(ctx: FunctionCtx, grad: Tensor, state_grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, states = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        pieces = list(_pieces(inputs[0], inputs[2]))
        for piece, state in zip(reversed(pieces), reversed(states), strict=True):
            *piece_grads, state_grad = _piece_backward(
                *(piece.cut(x) for x in inputs), state, ctx.scale, piece.cut(grad), state_grad
            )
            for y, x in zip(piece_grads, grads, strict=True):
                piece.paste(y, x)
        return *grads, state_grad, None


class Piece(NamedTuple):
    """Positions from `start` to `stop`, whole chunks of size `chunk_size`."""

    start: int
    stop: int
    chunk_size: int

    def cut(self, x: Tensor) -> Tensor:
        """This part of x (B, L, H, ...) by chunks, (B, H, N, C, ...)."""
        part = x[:, self.start : self.stop]
        return rearrange(part, "b (n c) h ... -> b h n c ...", c=self.chunk_size).contiguous()

    def paste(self, part: Tensor, x: Tensor) -> None:
        """Write (B, H, N, C, ...) to its place in x (B, L, H, ...)."""
        x[:, self.start : self.stop] = rearrange(part, "b h n c ... -> b (n c) h ...")


def _pieces(q: Tensor, v: Tensor) -> Iterator[Piece]:
    """Pieces of several chunks, then what is left as one shorter chunk."""
    batch, length, heads, key_width = q.shape
    state_size = key_width * v.shape[-1]
    size = next((size for size in CHUNK_SIZES if size**2 <= state_size), CHUNK_SIZES[-1])
    numbers = batch * heads * max(size**2, size * key_width, size * v.shape[-1], state_size)
    limit = PIECE_NUMBERS.get(q.device.type, OTHER_PIECE_NUMBERS)
    step = size * min(max(1, limit // max(1, numbers)), MAX_CHUNKS)
    whole = length - length % size
    for start in range(0, whole, step):
        yield Piece(start, min(start + step, whole), size)
    if whole < length:
        yield Piece(whole, length, length - whole)


class Gated(NamedTuple):
    """What forward and backward of a piece share."""

    q: Tensor  # scale M q, (B, H, N, C, K)
    k: Tensor  # S k, (B, H, N, C, K)
    own: Tensor  # scale q . k of every position, (B, H, N, C)
    products: Tensor  # (B, H, N, C + 1, C + 1)
    inside: Tensor  # P[t, s + 1]: input at s to output at t, (B, H, N, C, C)
    enter: Tensor  # P[t, 0]: entering state to output at t, (B, H, N, C, 1)
    leave: Tensor  # P[C, s + 1]: input at s to leaving state, (B, H, N, C, 1)
    chunk_products: Tensor  # of the factors P[C, 0], (B, H, N + 1, N + 1)
    states: Tensor  # that enter each chunk, and the one that leaves, (B, H, N + 1, K, V)


def _gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    state: Tensor,
    scale: float,
) -> Gated:
    products = transition_products(transition)
    inside, enter = products[..., :-1, 1:], products[..., :-1, :1]
    leave = products[..., -1, 1:, None]
    own = (q * k).sum(-1).mul_(scale)
    q, k = q * (scale * mark)[..., None], k * source[..., None]
    chunk_products = transition_products(products[..., -1, 0])
    updates = torch.cat([state[:, :, None], (k * leave).mT @ v], 2)
    states = (chunk_products @ updates.flatten(3)).view_as(updates)
    return Gated(q, k, own, products, inside, enter, leave, chunk_products, states)


def _piece_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    g = _gated(q, k, v, source, transition, mark, state, scale)
    weights = (g.q @ g.k.mT).mul_(g.inside)
    _diagonal(weights).copy_(direct * g.own)
    out = (weights @ v).add_((g.q * g.enter) @ g.states[:, :, :-1])
    return out, g.states[:, :, -1].contiguous()


def _piece_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor,
    scale: float,
    grad: Tensor,
    state_grad: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of the inputs in their order, the state last."""
    g = _gated(q, k, v, source, transition, mark, state, scale)
    states = g.states[:, :, :-1]

    # Through the states: chunk_products is transposed where it was applied.
    grad_states = torch.cat([(g.q * g.enter).mT @ grad, state_grad[:, :, None]], 2)
    grad_updates = (g.chunk_products.mT @ grad_states.flatten(3)).view_as(grad_states)
    grad_state, grad_updates = grad_updates[:, :, 0], grad_updates[:, :, 1:]
    grad_read = grad @ states.mT  # of P[t, 0] q'
    grad_written = v @ grad_updates.mT  # of P[C, s + 1] k'
    grad_v = (g.k * g.leave) @ grad_updates

    # Inside the chunks.
    scores, grad_weights = g.q @ g.k.mT, grad @ v.mT
    grad_own = _diagonal(grad_weights) * direct
    grad_direct = _diagonal(grad_weights) * g.own
    grad_products = torch.empty_like(g.products)
    grad_products[..., :-1, 1:] = grad_weights * scores
    weights = scores.mul_(g.inside)
    _diagonal(weights).copy_(direct * g.own)
    grad_v.add_(weights.mT @ grad)
    grad_scores = grad_weights.mul_(g.inside)
    grad_q = (grad_scores @ g.k).addcmul_(grad_read, g.enter)
    grad_k = (grad_scores.mT @ g.q).addcmul_(grad_written, g.leave)

    # The gates.
    grad_products[..., :-1, 0] = (grad_read * g.q).sum(-1)
    grad_products[..., -1, 1:] = (grad_written * g.k).sum(-1)
    grad_products[..., -1, 0] = (grad_updates * states).sum((-2, -1))
    grad_transition = transition_gradient(g.products, grad_products)
    grad_mark, grad_source = (grad_q * q).sum(-1).mul_(scale), (grad_k * k).sum(-1)
    grad_own = (scale * grad_own)[..., None]
    grad_q = grad_q.mul_((scale * mark)[..., None]).addcmul_(grad_own, k)
    grad_k = grad_k.mul_(source[..., None]).addcmul_(grad_own, q)
    gates = (grad_source, grad_transition, grad_mark, grad_direct)
    return grad_q, grad_k, grad_v, *gates, grad_state.contiguous()


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)
