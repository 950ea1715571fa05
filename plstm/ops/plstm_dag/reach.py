"""Sparse parallel form: the gating matrix only at pairs of nodes joined by a path.

Letters: R entries (pairs of edges joined by a path), P pairs of nodes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from plstm.graph.line_graph import LineGraph
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates

_CHUNK = 2**19  # elements of a temporary of the read-out, so that it stays in cache


def plstm_dag_reach(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, graph: LineGraph, scale: float
) -> Tensor:
    """Equation (3) without the zeros of G; arguments as in plstm_dag."""
    plan = graph.reach_plan()
    (first, last, slot), nodes_2P = plan.entries, plan.nodes
    paths_RH = _paths(gates.transition, plan.entries, plan.products, plan.sizes)
    if graph.flipped:
        first, last, nodes_2P = last, first, nodes_2P.flip(0)
    factors_RH = gates.source.index_select(0, first) * paths_RH * gates.mark.index_select(0, last)
    gates_PH = factors_RH.new_zeros(nodes_2P.shape[1], factors_RH.shape[1])
    gates_PH = gates_PH.index_add(0, slot, factors_RH)
    own = torch.arange(q.shape[0], device=q.device).expand(2, -1)
    gates_PH, nodes_2P = torch.cat([gates_PH, gates.direct]), torch.cat([nodes_2P, own], 1)
    return _read(q, k, v, scale * gates_PH, nodes_2P)


@torch.library.custom_op("plstm::dag_paths", mutates_args=())
def _paths(transition: Tensor, entries: Tensor, products: Tensor, sizes: Tensor) -> Tensor:
    """Entries of (I - T)^-1: sums over paths of products of transitions, (R, H)."""
    early, late, _ = entries
    paths = (early == late).to(transition)[:, None].repeat(1, transition.shape[1])
    for pair, before, target in _levels(products, sizes):
        weight = transition.index_select(0, pair)
        paths.index_add_(0, target, paths.index_select(0, before).mul_(weight))
    return paths


@_paths.register_fake
def _(transition: Tensor, entries: Tensor, products: Tensor, sizes: Tensor) -> Tensor:
    return transition.new_empty(entries.shape[1], transition.shape[1])


@torch.library.custom_op("plstm::dag_paths_backward", mutates_args=())
def _paths_backward(
    grad: Tensor, paths: Tensor, transition: Tensor, products: Tensor, sizes: Tensor
) -> Tensor:
    grad = grad.clone(memory_format=torch.contiguous_format)
    transition_grad = torch.zeros_like(transition, memory_format=torch.contiguous_format)
    for pair, before, target in reversed(_levels(products, sizes)):
        moved = grad.index_select(0, target)
        transition_grad.index_add_(0, pair, moved * paths.index_select(0, before))
        grad.index_add_(0, before, moved.mul_(transition.index_select(0, pair)))
    return transition_grad


@_paths_backward.register_fake
def _(grad: Tensor, paths: Tensor, transition: Tensor, *args: object) -> Tensor:
    return torch.empty_like(transition, memory_format=torch.contiguous_format)


def _setup_paths(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    transition, _, products, sizes = inputs
    ctx.save_for_backward(output, transition, products, sizes)


@first_derivatives_only("plstm_dag")
def _backward_of_paths(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _paths_backward(grad, *ctx.saved_tensors), None, None, None


_paths.register_autograd(_backward_of_paths, setup_context=_setup_paths)


def _levels(products: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [tuple(part) for part in products.split(sizes.tolist(), 1)]


@torch.library.custom_op("plstm::dag_read", mutates_args=())
def _read(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, nodes: Tensor) -> Tensor:
    """y[dst] += gates (q[dst] . k[src]) v[src] over pairs of nodes; stores nothing per pair."""
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    for weight, (src, dst) in _chunks(gates, nodes, k, v):
        score = _dot(q.index_select(0, dst), k.index_select(0, src)) * weight
        out.index_add_(0, dst, v.index_select(0, src).mul_(score[..., None]))
    return out


@_read.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: object) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("plstm::dag_read_backward", mutates_args=())
def _read_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dgates = []
    for weight, (src, dst) in _chunks(gates, nodes, k, v):
        q_, grad_ = q.index_select(0, dst), grad.index_select(0, dst)
        k_, v_ = k.index_select(0, src), v.index_select(0, src)
        score, dscore = _dot(q_, k_), _dot(grad_, v_)
        dgates.append(score * dscore)
        dv.index_add_(0, src, grad_.mul_((score * weight)[..., None]))
        dscore.mul_(weight)
        dq.index_add_(0, dst, k_.mul_(dscore[..., None]))
        dk.index_add_(0, src, q_.mul_(dscore[..., None]))
    return dq, dk, dv, torch.cat(dgates)


@_read_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, nodes: Tensor
) -> tuple[Tensor, ...]:
    inputs = (q, k, v, gates)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _setup_read(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@first_derivatives_only("plstm_dag")
def _backward_of_read(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_read_backward(grad, *ctx.saved_tensors), None


_read.register_autograd(_backward_of_read, setup_context=_setup_read)


def _chunks(gates: Tensor, nodes: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, _CHUNK // max(1, k.shape[1] * max(k.shape[2], v.shape[2])))
    return zip(gates.split(step), nodes.split(step, 1), strict=True)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)
