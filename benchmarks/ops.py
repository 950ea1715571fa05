"""Cases: the three recurrences in every form, beside softmax attention of the same shape."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from plstm import LineGraph
from plstm.ops import plstm_1d, plstm_2d, plstm_dag
from plstm.ops.plstm_2d import CORNERS


class Case(NamedTuple):
    """One form of one recurrence on one input."""

    group: str  # what is compared with each other
    form: str
    function: Callable[[], Tensor]
    inputs: list[Tensor]  # those that get a gradient


def cases() -> Iterator[Case]:
    """All cases, group by group; softmax attention last in each."""
    yield from sequence_cases(batch=4, length=512, heads=4, width=64)
    for side in (12, 24):
        yield from grid_cases(images=4, side=side, heads=3, width=64)
    yield from graph_cases(graphs=64, nodes=30, heads=4, width=24)


def sequence_cases(batch: int, length: int, heads: int, width: int) -> Iterator[Case]:
    inputs = [_normal(batch, length, heads, width) for _ in "qkv"]
    gates = [_between(0, 1, batch, length, heads) for _ in "stmd"]
    group = f"1-d, {batch} x {length} positions, {heads} heads of {width}"
    for form in ("naive", "chunk"):
        yield Case(group, form, lambda f=form: plstm_1d(*inputs, *gates, backend=f), inputs + gates)
    yield _softmax(group, [x.transpose(1, 2) for x in inputs], inputs, is_causal=True)


def grid_cases(images: int, side: int, heads: int, width: int) -> Iterator[Case]:
    inputs = [_normal(images, side, side, heads, width) for _ in "qkv"]
    shape = (len(CORNERS), images, side, side, heads)
    gates = [
        _between(0, 1, *shape, 2),
        _between(0, 0.5, *shape, 2, 2),
        _between(0, 1, *shape, 2),
        _between(0, 1, *shape[1:]),
    ]
    group = (
        f"2-d, {images} images x {heads} heads x 4 corners, {side} x {side} tokens, width {width}"
    )
    for form in ("naive", "rows", "chunk"):
        yield Case(
            group,
            form,
            lambda f=form: plstm_2d(*inputs, *gates, corners=CORNERS, backend=f),
            inputs + gates,
        )
    yield _softmax(group, [x.flatten(1, 2).transpose(1, 2) for x in inputs], inputs)


def graph_cases(graphs: int, nodes: int, heads: int, width: int) -> Iterator[Case]:
    graph = molecules(graphs, nodes)
    inputs = [_normal(graph.num_nodes, heads, width) for _ in "qkv"]
    gates = [
        _between(0, 1, graph.num_edges, heads),
        _between(0, 0.5, graph.line_index.shape[1], heads),
        _between(0, 1, graph.num_edges, heads),
        _between(0, 1, graph.num_nodes, heads),
    ]
    group = f"graphs, {graphs} molecules of {nodes} nodes, {heads} heads of {width}"
    for form in ("naive", "levels", "solve"):
        yield Case(
            group, form, lambda f=form: plstm_dag(*inputs, *gates, graph, backend=f), inputs + gates
        )
    padded = [x.unflatten(0, (graphs, nodes)).transpose(1, 2) for x in inputs]
    yield _softmax(group, padded, inputs)


def molecules(graphs: int, nodes: int) -> LineGraph:
    """Random trees whose nodes hang on one of the last three, with some ring closures."""
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


def _softmax(group: str, qkv: list[Tensor], inputs: list[Tensor], **options: object) -> Case:
    attention = torch.nn.functional.scaled_dot_product_attention
    return Case(group, "softmax attention", lambda: attention(*qkv, **options), inputs)


def _normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).requires_grad_()


def _between(low: float, high: float, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return (low + (high - low) * torch.rand(shape, generator=generator)).requires_grad_()
