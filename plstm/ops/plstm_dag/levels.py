"""Recurrent form: all edges of one topological level at once, K x V states, memory linear in N."""

import torch
from torch import Tensor

from plstm.graph.line_graph import LineGraph
from plstm.graph.plans import LevelPlan
from plstm.ops.derivatives import first_derivatives_only, transformed
from plstm.ops.gates import Gates

_CHUNK = 2**22  # elements of a temporary of the transition gradient


def plstm_dag_levels(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, graph: LineGraph, scale: float
) -> Tensor:
    """Equations (1) and (2), level by level; arguments as in plstm_dag."""
    src, dst = graph.edge_index
    k_EHK = gates.source[..., None] * k.index_select(0, src)
    v_EHV = v.index_select(0, src)
    states_EHKV = _propagated(k_EHK[..., None] * v_EHV[..., None, :], gates.transition, graph)
    q_EHK = gates.mark[..., None] * q.index_select(0, dst)
    read_EHV = torch.einsum("ehkv,ehk->ehv", states_EHKV, q_EHK)
    own_NHV = gates.direct[..., None] * (q * k).sum(-1, keepdim=True) * v
    return scale * own_NHV.index_add(0, dst, read_EHV)


def _propagated(x_EHKV: Tensor, transition: Tensor, graph: LineGraph) -> Tensor:
    """(I - T)^-1 x over the line graph."""
    order, sizes = graph.cached("levels", _level_plan)
    incoming, outgoing = graph.line_index
    if transformed():
        for pairs in _groups(order, sizes, graph.flipped):
            moved = transition[pairs, :, None, None] * x_EHKV[incoming[pairs]]
            x_EHKV = x_EHKV.index_add(0, outgoing[pairs], moved)
        return x_EHKV
    return _propagate(x_EHKV, transition, incoming, outgoing, order, sizes, graph.flipped)


def _level_plan(graph: LineGraph) -> LevelPlan:
    return LevelPlan(*_sorted_by_level(graph.line_index[1], graph.edge_level))


@torch.library.custom_op("plstm::dag_level_plan", mutates_args=())
def _sorted_by_level(outgoing: Tensor, edge_level: Tensor) -> tuple[Tensor, Tensor]:
    """The tensors of a LevelPlan; an operator, as torch.compile cannot read the levels."""
    level, order = edge_level[outgoing].sort(stable=True)
    counts = level.unique_consecutive(return_counts=True)[1].cpu()
    sizes = torch.zeros(edge_level.shape, dtype=torch.int64)
    sizes[: counts.numel()] = counts
    return order, sizes


@_sorted_by_level.register_fake
def _(outgoing: Tensor, edge_level: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(outgoing), torch.empty_like(edge_level, device="cpu")


@torch.library.custom_op("plstm::dag_levels", mutates_args=())
def _propagate(
    x: Tensor,
    transition: Tensor,
    incoming: Tensor,
    outgoing: Tensor,
    order: Tensor,
    sizes: Tensor,
    backwards: bool,
) -> Tensor:
    """x[outgoing] += transition * x[incoming] in the order of a LevelPlan, (E, H, K, V)."""
    x = x.clone(memory_format=torch.contiguous_format)
    for pairs in _groups(order, sizes, backwards):
        moved = x.index_select(0, incoming[pairs]).mul_(transition[pairs, :, None, None])
        x.index_add_(0, outgoing[pairs], moved)
    return x


@_propagate.register_fake
def _(x: Tensor, *args: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("plstm::dag_levels_backward", mutates_args=())
def _propagate_backward(
    grad: Tensor,
    states: Tensor,
    transition: Tensor,
    incoming: Tensor,
    outgoing: Tensor,
    order: Tensor,
    sizes: Tensor,
    backwards: bool,
) -> tuple[Tensor, Tensor]:
    """The same recurrence backwards, then a product of states per pair."""
    adjoint = _propagate(grad, transition, outgoing, incoming, order, sizes, not backwards)
    transition_grad = torch.empty_like(transition, memory_format=torch.contiguous_format)
    step = max(1, _CHUNK // max(1, states.shape[1:].numel()))
    parts = (x.split(step) for x in (incoming, outgoing, transition_grad))
    for start, end, part in zip(*parts, strict=True):
        products = adjoint.index_select(0, end).mul_(states.index_select(0, start))
        torch.sum(products, (-1, -2), out=part)
    return adjoint, transition_grad


@_propagate_backward.register_fake
def _(grad: Tensor, states: Tensor, transition: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    new = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (grad, transition))
    return tuple(new)


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    _, *tensors, ctx.backwards = inputs
    ctx.save_for_backward(output, *tensors)


@first_derivatives_only("plstm_dag")
def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _propagate_backward(grad, *ctx.saved_tensors, ctx.backwards)
    return *grads, None, None, None, None, None


_propagate.register_autograd(_backward, setup_context=_setup_context)


def _groups(order: Tensor, sizes: Tensor, backwards: bool) -> list[Tensor]:
    """Pairs of each level, in topological order."""
    groups = order.split(sizes[sizes > 0].tolist())
    return list(reversed(groups)) if backwards else list(groups)
