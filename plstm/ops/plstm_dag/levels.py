"""Recurrent form: all edges of one topological level at once, K x V states, memory linear in N."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from plstm.graph.line_graph import LineGraph
from plstm.ops.derivatives import first_derivatives_only

_CHUNK = 2**22  # numbers in a temporary of the transition gradient


@dataclass(frozen=True)
class LevelPlan:
    """Pairs in the order of their outgoing (forward) or incoming (backward) edges' levels."""

    forward: list[Tensor]  # numbers of the pairs whose outgoing edge is on one level
    backward: list[Tensor]  # numbers of the pairs whose incoming edge is on one level, last first
    incoming: Tensor  # (A,)
    outgoing: Tensor  # (A,)


def level_plan(graph: LineGraph) -> LevelPlan:
    """Group the pairs by level."""
    incoming, outgoing = graph.line_index
    backward = _group(graph.edge_level[incoming])[::-1]
    return LevelPlan(_group(graph.edge_level[outgoing]), backward, incoming, outgoing)


def _group(level: Tensor) -> list[Tensor]:
    """Indices of equal levels, ascending."""
    if level.numel() == 0:
        return []
    counts = torch.bincount(level).tolist()
    groups = torch.argsort(level, stable=True).split(counts)
    return [group for group in groups if group.numel()]


def plstm_dag_levels(
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
    """Equations (1) and (2), level by level; arguments as in plstm_dag."""
    src, dst = graph.edge_index
    plan = graph.cached("level_plan", level_plan)
    own = direct[..., None] * (q * k).sum(-1, keepdim=True) * v
    k, v_ = (source[..., None] * k.index_select(0, src)), v.index_select(0, src)
    states = _Propagate.apply(k[..., None] * v_[..., None, :], transition, plan)  # E H K V
    read = torch.einsum("ehkv,ehk->ehv", states, mark[..., None] * q.index_select(0, dst))
    return scale * own.index_add(0, dst, read)


class _Propagate(Function):
    """C = (I - T)^-1 U over the line graph; the gradient runs the same recurrence backwards."""

    @staticmethod
    def forward(ctx, inject: Tensor, transition: Tensor, plan: LevelPlan) -> Tensor:
        states = _run(inject, transition, plan.forward, plan.incoming, plan.outgoing)
        ctx.save_for_backward(states, transition)
        ctx.plan = plan
        return states

    @staticmethod
    @first_derivatives_only("plstm_dag")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (states, transition), plan = ctx.saved_tensors, ctx.plan
        adjoint = _run(grad, transition, plan.backward, plan.outgoing, plan.incoming)
        return adjoint, _pair_products(adjoint, states, plan), None


def _run(x: Tensor, transition: Tensor, groups: list[Tensor], start: Tensor, end: Tensor) -> Tensor:
    """x[end] += transition * x[start], group after group."""
    x = x.clone(memory_format=torch.contiguous_format)
    for pairs in groups:
        moved = x.index_select(0, start[pairs]).mul_(transition[pairs, :, None, None])
        x.index_add_(0, end[pairs], moved)
    return x


def _pair_products(adjoint: Tensor, states: Tensor, plan: LevelPlan) -> Tensor:
    """<adjoint of the outgoing edge, state of the incoming edge> per pair and head, (A, H)."""
    step = max(1, _CHUNK // max(1, states[0].numel())) if states.shape[0] else 1
    starts, ends = plan.incoming.split(step), plan.outgoing.split(step)
    return torch.cat(
        [
            adjoint.index_select(0, end).mul_(states.index_select(0, start)).sum((-1, -2))
            for start, end in zip(starts, ends, strict=True)
        ]
    )
