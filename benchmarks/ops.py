"""The plain recurrences in every form, beside softmax attention of the same shape.

Widths equal those in benchmarks.layers, which shows the share of the recurrence in a layer.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks import counts
from benchmarks.case import Case, Inputs, Setting, Work, differentiated
from plstm import LineGraph
from plstm.ops import plstm_1d, plstm_2d, plstm_dag
from plstm.ops.plstm_2d import CORNERS

LOOP_TOKENS = 512  # the loop takes seconds beyond this size


def cases(setting: Setting) -> Iterator[Case]:
    """All cases by group; softmax attention is last in each group."""
    for length in (128, 512, 2048):
        yield from sequence_cases(setting, batch=4, length=length, heads=3, width=64)
    for side in (12, 24, 32):
        yield from grid_cases(setting, batch=4, side=side, heads=3, width=64)
    for nodes in (15, 30, 60, 120):
        yield from graph_cases(setting, batch=64, nodes=nodes, heads=4, width=24)


def sequence_cases(
    setting: Setting, *, batch: int, length: int, heads: int, width: int
) -> Iterator[Case]:
    shape = (batch, length, heads, width)
    group = f"1-d op, {batch} x {length} positions, {heads} heads of {width}"
    case = partial(Case, "ops", "sequence", group, batch=batch, tokens=length)
    for form in ("naive", "chunk", *_kernels(setting)):
        long = form == "naive" and length > LOOP_TOKENS
        yield case(form, make=partial(_sequence, setting, form, *shape), long=long)
    if setting.device == "cuda" and find_spec("fla") is not None:
        yield case("simple GLA (flash-linear-attention)", make=partial(_simple_gla, setting, shape))
    yield case("softmax attention", make=partial(_causal_attention, setting, shape), anchor=True)


def _sequence(setting: Setting, form: str, batch: int, length: int, heads: int, width: int) -> Work:
    inputs = Inputs(setting)
    for _ in "qkv":
        inputs.normal(batch, length, heads, width)
    for _ in ("source", "transition", "mark", "direct"):
        inputs.between(0, 1, batch, length, heads)
    cost = counts.plstm_1d_cost(form, batch, length, heads, width, setting.dtype.itemsize)
    return differentiated(lambda: plstm_1d(*inputs, backend=form), inputs, cost)


def _simple_gla(setting: Setting, shape: tuple[int, ...]) -> Work:
    """Linear attention with one decay per head and position, in Triton; GPU only."""
    from fla.ops.simple_gla import chunk_simple_gla

    inputs = Inputs(setting)
    qkv = [inputs.normal(*shape) for _ in "qkv"]
    decay = inputs.between(0, 1, *shape[:-1])
    cost = counts.plstm_1d_cost("chunk", *shape, setting.dtype.itemsize)
    return differentiated(lambda: chunk_simple_gla(*qkv, g=decay.log())[0], inputs, cost)


def _causal_attention(setting: Setting, shape: tuple[int, ...]) -> Work:
    inputs = Inputs(setting)
    qkv = [inputs.normal(*shape).transpose(1, 2) for _ in "qkv"]
    cost = counts.attention_cost(*shape, setting.dtype.itemsize, causal=True)
    return differentiated(_attention(qkv, is_causal=True), inputs, cost)


def grid_cases(
    setting: Setting, *, batch: int, side: int, heads: int, width: int
) -> Iterator[Case]:
    shape = (batch, side, heads, width)
    group = f"2-d op, {batch} images of {side} x {side} tokens, 4 corners, {heads} heads of {width}"
    case = partial(Case, "ops", "grid", group, batch=batch, tokens=side**2)
    compiled = ("dense", "scan") if setting.device == "cpu" else ()
    for form in ("naive", "rows", "chunk", *compiled, *_kernels(setting)):
        long = form == "naive" and side**2 > LOOP_TOKENS
        yield case(form, make=partial(_grid, setting, form, *shape), long=long)
    yield case("softmax attention", make=partial(_grid_attention, setting, *shape), anchor=True)


def _grid(setting: Setting, form: str, batch: int, side: int, heads: int, width: int) -> Work:
    inputs = Inputs(setting)
    for _ in "qkv":
        inputs.normal(batch, side, side, heads, width)
    per_corner = (len(CORNERS), batch, side, side, heads)
    inputs.between(0, 1, *per_corner, 2)
    inputs.between(0, 0.5, *per_corner, 2, 2)
    inputs.between(0, 1, *per_corner, 2)
    inputs.between(0, 1, *per_corner[1:])
    cost = counts.plstm_2d_cost(form, batch, side, side, heads, width, setting.dtype.itemsize)
    return differentiated(lambda: plstm_2d(*inputs, corners=CORNERS, backend=form), inputs, cost)


def _grid_attention(setting: Setting, batch: int, side: int, heads: int, width: int) -> Work:
    inputs = Inputs(setting)
    qkv = [inputs.normal(batch, side**2, heads, width).transpose(1, 2) for _ in "qkv"]
    cost = counts.attention_cost(batch, side**2, heads, width, setting.dtype.itemsize)
    return differentiated(_attention(qkv), inputs, cost)


def graph_cases(
    setting: Setting, *, batch: int, nodes: int, heads: int, width: int
) -> Iterator[Case]:
    group = f"graph op, {batch} molecules of {nodes} nodes, {heads} heads of {width}"
    case = partial(Case, "ops", "graph", group, batch=batch, tokens=nodes)
    for form in ("naive", "levels", "reach"):
        long = form == "naive" and batch * nodes > 4 * LOOP_TOKENS
        make = partial(_graph, setting, form, batch, nodes, heads, width)
        yield case(form, make=make, long=long)
    make = partial(_graph_attention, setting, batch, nodes, heads, width)
    yield case("softmax attention", make=make, anchor=True)


def _graph(setting: Setting, form: str, batch: int, nodes: int, heads: int, width: int) -> Work:
    graph, inputs = molecules(batch, nodes).to(setting.device), Inputs(setting)
    for _ in "qkv":
        inputs.normal(graph.num_nodes, heads, width)
    inputs.between(0, 1, graph.num_edges, heads)
    inputs.between(0, 0.5, graph.line_index.shape[1], heads)
    inputs.between(0, 1, graph.num_edges, heads)
    inputs.between(0, 1, graph.num_nodes, heads)
    cost = graph_cost(form, graph, batch, heads, width, setting.dtype.itemsize)
    return differentiated(lambda: plstm_dag(*inputs, graph, backend=form), inputs, cost)


def graph_cost(
    form: str, graph: LineGraph, batch: int, heads: int, width: int, itemsize: int
) -> counts.Cost:
    """Cost of a form on a batch of graphs; "reach" depends on the pairs joined by paths."""
    plan = graph.reach_plan() if form == "reach" else None
    reach = (plan.nodes.shape[1] / batch, plan.num_products / batch) if plan else (0, 0)
    sizes = (graph.num_nodes, graph.num_edges, graph.num_pairs)
    return counts.plstm_dag_cost(
        form, batch, *(n / batch for n in sizes), heads, width, itemsize, *reach
    )


def _graph_attention(setting: Setting, batch: int, nodes: int, heads: int, width: int) -> Work:
    """Every node attends to all nodes of its graph; equal sizes, so no padding."""
    inputs = Inputs(setting)
    qkv = [inputs.normal(batch, nodes, heads, width).transpose(1, 2) for _ in "qkv"]
    cost = counts.attention_cost(batch, nodes, heads, width, setting.dtype.itemsize)
    return differentiated(_attention(qkv), inputs, cost)


def _kernels(setting: Setting) -> list[str]:
    return ["triton"] if setting.device == "cuda" else []


def _attention(qkv: list[Tensor], **options: object) -> Callable[[], Tensor]:
    return lambda: torch.nn.functional.scaled_dot_product_attention(*qkv, **options)


def molecules(graphs: int, nodes: int) -> LineGraph:
    """Random trees, each node attached to one of the last three, with some ring closures."""
    generator = torch.Generator().manual_seed(0)
    edges = []
    for offset in range(0, graphs * nodes, nodes):
        for node in range(1, nodes):
            parents = {node - 1 - int(torch.randint(min(node, 3), (), generator=generator))}
            if node % 10 == 6:
                parents.add(node - 6)
            edges += [(offset + parent, offset + node) for parent in parents]
    batch = torch.arange(graphs).repeat_interleave(nodes)
    return LineGraph.from_edges(torch.tensor(edges).T, graphs * nodes, batch)
