"""Sparse parallel form: the gating matrix at those pairs of nodes only that a path joins."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from plstm.graph.line_graph import LineGraph
from plstm.graph.topology import IntArray, ranges
from plstm.ops.derivatives import first_derivatives_only

_CHUNK = 2**19  # numbers in a temporary of the read-out, so that it stays in the cache of a core


@dataclass(frozen=True)
class ReachPlan:
    """Entries (early edge, late edge) joined by a path along the forward direction of a graph.

    An entry is the sum of products (entry before) * (transition), level after level. The reverse of
    the graph has the same entries with the two edges in each other's role.
    """

    early: Tensor  # (R,)
    late: Tensor  # (R,)
    pair: Tensor  # line-graph pair of every product
    before: Tensor  # entry that is multiplied
    target: Tensor  # entry that the product adds to
    sizes: list[int]  # products per level
    slot: Tensor  # (R,) which of the pairs of nodes
    src: Tensor  # (P,) pairs of nodes: src of early edges
    dst: Tensor  # (P,) and dst of late ones


def reach_plan(graph: LineGraph, limit: int | None = None) -> ReachPlan | None:
    """List the entries and how they follow from each other; None beyond `limit` products."""
    edge_index, line_index, edge_level = (x.cpu().numpy() for x in graph.forward_arrays)
    closure = _closure(line_index, edge_level, limit)
    if closure is None:
        return None
    early, late, products, sizes = closure
    (src, dst), size = edge_index, max(graph.num_nodes, 1)
    nodes, slot = np.unique(dst[late] * size + src[early], return_inverse=True)
    arrays = (early, late, *products, slot, nodes % size, nodes // size)
    early, late, pair, before, target, slot, src, dst = (
        torch.from_numpy(x).to(graph.device) for x in arrays
    )
    return ReachPlan(early, late, pair, before, target, sizes, slot, src, dst)


def _closure(
    line_index: IntArray, edge_level: IntArray, limit: int | None
) -> tuple[IntArray, IntArray, IntArray, list[int]] | None:
    """Early and late edge of every entry; products (pair, before, target) and their levels."""
    (incoming, outgoing), num_edges = line_index, edge_level.size
    start, count = np.zeros((2, num_edges), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    early, late, products, total = empty, [empty], [np.zeros((3, 0), dtype=np.int64)], 0
    for edges, pairs in _levels(edge_level, outgoing):
        repeat = count[incoming[pairs]]
        total += int(repeat.sum())
        if limit is not None and total > limit:
            return None
        before = ranges(start[incoming[pairs]], repeat)
        pairs = np.repeat(pairs, repeat)
        keys = np.concatenate([edges, outgoing[pairs]]) * num_edges
        keys += np.concatenate([edges, early[before]])
        keys, place = np.unique(keys, return_inverse=True)  # by edge, then by early edge
        products.append(np.stack([pairs, before, early.size + place[edges.size :]]))
        late.append(keys // num_edges)
        bounds = np.searchsorted(late[-1], np.append(edges, num_edges))
        start[edges], count[edges] = early.size + bounds[:-1], np.diff(bounds)
        early = np.concatenate([early, keys % num_edges])
    sizes = [part.shape[1] for part in products]
    return early, np.concatenate(late), np.concatenate(products, axis=1), sizes


def _levels(edge_level: IntArray, outgoing: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Edges of every level, ascending, and the pairs that lead into them."""
    values, level = np.unique(edge_level, return_inverse=True)
    groups = []
    for group in (level, level[outgoing]):
        order = np.argsort(group, kind="stable")
        groups.append(np.split(order, np.searchsorted(group[order], np.arange(1, values.size))))
    return list(zip(*groups, strict=True))[: values.size]


def plstm_dag_reach(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    graph: LineGraph,
    scale: float,
) -> Tensor:
    """Equation (3) without the zeros of G; arguments as in plstm_dag."""
    plan = graph.cached("reach_plan", reach_plan, both_ways=True)
    first, last, src, dst = plan.early, plan.late, plan.src, plan.dst
    if graph.flipped:
        first, last, src, dst = last, first, dst, src
    factors = _Paths.apply(transition, plan)  # (R, H)
    factors = source.index_select(0, first) * factors * mark.index_select(0, last)
    gates = factors.new_zeros(src.numel(), factors.shape[1]).index_add(0, plan.slot, factors)
    own = torch.arange(graph.num_nodes, device=graph.device)
    gates, src, dst = torch.cat([gates, direct]), torch.cat([src, own]), torch.cat([dst, own])
    return _Read.apply(q, k, v, scale * gates, src, dst)


class _Paths(Function):
    """Entries of (I - T)^-1: the sum over paths of the product of transitions, (R, H)."""

    @staticmethod
    def forward(ctx, transition: Tensor, plan: ReachPlan) -> Tensor:
        factor = transition.index_select(0, plan.pair)
        entries = (plan.early == plan.late).to(factor)[:, None].repeat(1, factor.shape[1])
        for weight, before, target in _by_level(plan, factor):
            entries.index_add_(0, target, entries.index_select(0, before).mul_(weight))
        ctx.save_for_backward(factor, entries)
        ctx.plan, ctx.num_pairs = plan, transition.shape[0]
        return entries

    @staticmethod
    @first_derivatives_only("plstm_dag")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (factor, entries), plan = ctx.saved_tensors, ctx.plan
        grad = grad.clone(memory_format=torch.contiguous_format)
        for weight, before, target in reversed(_by_level(plan, factor)):
            grad.index_add_(0, before, grad.index_select(0, target).mul_(weight))
        products = grad.index_select(0, plan.target).mul_(entries.index_select(0, plan.before))
        return grad.new_zeros(ctx.num_pairs, grad.shape[1]).index_add_(0, plan.pair, products), None


def _by_level(plan: ReachPlan, factor: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = (x.split(plan.sizes) for x in (factor, plan.before, plan.target))
    return list(zip(*parts, strict=True))


class _Read(Function):
    """y[dst] += gates (q[dst] . k[src]) v[src] over pairs of nodes; keeps no rows per pair."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, src: Tensor, dst: Tensor):
        ctx.save_for_backward(q, k, v, gates, src, dst)
        out = torch.zeros_like(v)
        for weight, a, b in _chunks(gates, src, dst, k, v):
            score = _dot(q.index_select(0, b), k.index_select(0, a)) * weight
            out.index_add_(0, b, v.index_select(0, a).mul_(score[..., None]))
        return out

    @staticmethod
    @first_derivatives_only("plstm_dag")
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gates, src, dst = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        grad_gates = []
        for weight, a, b in _chunks(gates, src, dst, k, v):
            q_, k_, v_, grad_ = (
                x.index_select(0, i) for x, i in ((q, b), (k, a), (v, a), (grad, b))
            )
            score, grad_score = _dot(q_, k_), _dot(grad_, v_)
            grad_gates.append(score * grad_score)
            grad_v.index_add_(0, a, grad_.mul_((score * weight)[..., None]))
            grad_score.mul_(weight)
            grad_q.index_add_(0, b, k_.mul_(grad_score[..., None]))
            grad_k.index_add_(0, a, q_.mul_(grad_score[..., None]))
        return grad_q, grad_k, grad_v, torch.cat(grad_gates), None, None


def _chunks(gates: Tensor, src: Tensor, dst: Tensor, k: Tensor, v: Tensor) -> list:
    width = k.shape[1] * max(k.shape[2], v.shape[2], 1)
    parts = (x.split(max(1, _CHUNK // max(width, 1))) for x in (gates, src, dst))
    return list(zip(*parts, strict=True))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)
