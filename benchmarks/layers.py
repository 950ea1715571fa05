"""Complete layers, including projections and gates, beside an anchor of equal width."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks import counts
from benchmarks.case import Case, Setting, Work, differentiated
from benchmarks.counts import Cost
from benchmarks.ops import graph_cost, molecules
from plstm import PLSTM1d, PLSTM2d, PLSTMGraph, SoftmaxAttention
from plstm.ops.plstm_2d import CORNERS

DIM, HEADS, WIDTH = 192, 3, 64  # for sequences and grids: the tiny size of the arrow task
GRAPH_DIM, GRAPH_HEADS = 96, 4  # for graphs: the net of the TU task


def cases(setting: Setting) -> Iterator[Case]:
    """All cases by group; the anchor, if any, is last in each group."""
    for length in (256, 1024, 4096):
        yield from sequence_cases(setting, batch=4, length=length)
    yield from sequence_cases(setting, batch=1, length=16384, long=True)
    yield from sequence_cases(setting, batch=1, length=65536, anchor=False, long=True)
    for side in (12, 24, 48):
        yield from grid_cases(setting, batch=8, rows=side, columns=side)
    yield from grid_cases(setting, batch=8, rows=64, columns=64, long=True)
    series = partial(grid_cases, setting, batch=1, columns=64, series="64 columns", anchor=False)
    for rows in (16, 32, 64, 128):  # memory should be linear in the rows
        yield from series(rows=rows, long=True)
    for nodes in (15, 30, 60, 120):
        yield from graph_cases(setting, batch=64, nodes=nodes)


def sequence_cases(
    setting: Setting, *, batch: int, length: int, anchor: bool = True, long: bool = False
) -> Iterator[Case]:
    group = f"1-d layer, {batch} x {length} positions, width {DIM}, {HEADS} heads"
    case = partial(Case, "layers", "sequence", group, batch=batch, tokens=length, long=long)
    shape, itemsize = (batch, length), setting.dtype.itemsize
    forms = [
        counts.plstm_1d_cost(form, *shape, HEADS, WIDTH, itemsize)
        for form in ("naive", "chunk", "triton")
    ]
    layer = partial(PLSTM1d, DIM, HEADS)
    yield case("PLSTM1d", make=partial(_dense, setting, layer, shape, 4 * HEADS, forms))
    if anchor:
        layer = partial(SoftmaxAttention, DIM, HEADS, causal=True)
        forms = [counts.attention_cost(*shape, HEADS, WIDTH, itemsize, causal=True)]
        make = partial(_dense, setting, layer, shape, 0, forms)
        yield case("SoftmaxAttention", make=make, anchor=True)


def grid_cases(
    setting: Setting,
    *,
    batch: int,
    rows: int,
    columns: int,
    series: str = "",
    anchor: bool = True,
    long: bool = False,
) -> Iterator[Case]:
    group = f"2-d layer, {batch} x {rows} x {columns} tokens, width {DIM}, {HEADS} heads"
    tokens, itemsize = rows * columns, setting.dtype.itemsize
    case = partial(Case, "layers", "grid", group, batch=batch, tokens=tokens)
    case = partial(case, series=series, long=long)
    shape = (batch, rows, columns)
    forms = [
        counts.plstm_2d_cost(form, *shape, HEADS, WIDTH, itemsize)
        for form in ("naive", "rows", "chunk", "dense", "scan", "triton")
    ]
    for mode, per_corner in {"P": 4, "D": 7}.items():
        gates = HEADS * (len(CORNERS) * per_corner + 1)
        layer = partial(PLSTM2d, DIM, HEADS, mode=mode)
        yield case(f"PLSTM2d {mode}", make=partial(_dense, setting, layer, shape, gates, forms))
    if anchor:
        layer = partial(SoftmaxAttention, DIM, HEADS)
        forms = [counts.attention_cost(batch, tokens, HEADS, WIDTH, itemsize)]
        make = partial(_dense, setting, layer, shape, 0, forms)
        yield case("SoftmaxAttention", make=make, anchor=True)


def graph_cases(setting: Setting, *, batch: int, nodes: int) -> Iterator[Case]:
    group = f"graph layer, {batch} molecules of {nodes} nodes, width {GRAPH_DIM}"
    case = partial(Case, "layers", "graph", group, batch=batch, tokens=nodes)
    for mode in ("P", "D"):
        yield case(f"PLSTMGraph {mode}", make=partial(_graph, setting, mode, batch, nodes))
    yield case("GIN", make=partial(_gin, setting, batch, nodes), anchor=True)


def _dense(
    setting: Setting,
    build: Callable[[], nn.Module],
    positions: tuple[int, ...],
    gates: int,
    forms: list[Cost],
) -> Work:
    """A mixer applied to (B, *positions, DIM)."""
    tokens = torch.Size(positions).numel()
    cost = counts.layer_cost(tokens, DIM, gates, forms, setting.dtype.itemsize)
    return _work(setting, build, (*positions, DIM), cost)


def _graph(setting: Setting, mode: str, batch: int, nodes: int) -> Work:
    graph = molecules(batch, nodes).to(setting.device)
    itemsize = setting.dtype.itemsize
    sizes = (batch, GRAPH_HEADS, GRAPH_DIM // GRAPH_HEADS, itemsize)
    forms = [graph_cost(form, graph, *sizes) for form in ("levels", "reach")]
    gates = 8 * GRAPH_HEADS  # per node, including those for its edges
    cost = counts.layer_cost(graph.num_nodes, GRAPH_DIM, gates, forms, itemsize)
    layer = partial(PLSTMGraph, GRAPH_DIM, GRAPH_HEADS, mode=mode)
    return _work(setting, layer, (graph.num_nodes, GRAPH_DIM), cost, graph)


def _gin(setting: Setting, batch: int, nodes: int) -> Work:
    """One convolution of PyTorch Geometric's GIN, on both directions of every edge."""
    from torch_geometric.nn.models import GIN

    edges = molecules(batch, nodes).edge_index
    edges = torch.cat([edges, edges.flip(0)], 1).to(setting.device)
    maps = counts.linear_cost(batch * nodes, GRAPH_DIM, 2 * GRAPH_DIM, setting.dtype.itemsize)
    sums = counts.training(
        edges.shape[1] * GRAPH_DIM,
        batch * nodes * GRAPH_DIM,
        batch * nodes * GRAPH_DIM,
        0,
        setting.dtype.itemsize,
    )
    cost = Cost(maps.flops + sums.flops, maps.bytes + sums.bytes)
    layer = partial(GIN, GRAPH_DIM, GRAPH_DIM, num_layers=1, norm="batch_norm")
    return _work(setting, layer, (batch * nodes, GRAPH_DIM), cost, edges)


def _work(
    setting: Setting,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    cost: Cost,
    *arguments: object,
) -> Work:
    """Forward of a new layer on random x, with backward to x and all weights."""
    torch.manual_seed(0)
    layer = build().to(setting.device)
    x = torch.randn(shape, device=setting.device, requires_grad=True)

    def forward() -> torch.Tensor:
        with setting.autocast():
            return layer(x, *arguments)

    return differentiated(forward, [x, *layer.parameters()], cost)
