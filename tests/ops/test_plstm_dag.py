"""plstm_dag: every backend against the loop, and the loop against hand and path sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plstm.graph import LineGraph, plans
from plstm.graph.plans import estimated_products, make_reach_plan
from plstm.ops.plstm_dag import FORMS, choose_backend, plstm_dag, reach
from tests.graph.graphs import path_counts
from tests.helpers import TOLERANCE, assert_close, gradients

FAST = sorted(set(FORMS) - {"naive"})


def random_graph(sizes: list[int], density: float = 0.5, seed: int = 0) -> LineGraph:
    """Packed random DAGs with the given numbers of nodes, their edges in random order."""
    generator = torch.Generator().manual_seed(seed)
    edges, batch, first = [], [], 0
    for i, size in enumerate(sizes):
        keep = torch.rand(size, size, generator=generator) < density
        rank = torch.randperm(size, generator=generator)
        edges.append(rank[keep.triu(1).nonzero()] + first)
        batch += [i] * size
        first += size
    edge_index = torch.cat(edges)
    edge_index = edge_index[torch.randperm(len(edge_index), generator=generator)].T
    return LineGraph.from_edges(edge_index.contiguous(), first, torch.tensor(batch).long())


def random_inputs(
    graph: LineGraph,
    heads: int = 2,
    qk_dim: int = 3,
    v_dim: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Inputs of plstm_dag; transitions of both signs, some exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    n, e, a = graph.num_nodes, graph.num_edges, graph.line_index.shape[1]
    rows = {"q": (n, qk_dim), "k": (n, qk_dim), "v": (n, v_dim)}
    rows |= {"source": (e,), "transition": (a,), "mark": (e,), "direct": (n,)}
    inputs = {}
    for name, (count, *width) in rows.items():
        x = torch.randn(count, heads, *width, generator=generator, dtype=torch.float64)
        if name == "transition":
            x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, 0.0, x)
        inputs[name] = x.to(dtype).requires_grad_()
    return inputs


def path_sums(graph: LineGraph, inputs: dict[str, Tensor]) -> Tensor:
    """G by walking every directed path, one at a time, (H, N, N)."""
    src, dst = graph.edge_index.tolist()
    pairs = list(enumerate(graph.line_index.T.tolist()))
    gates = torch.diag_embed(inputs["direct"].T).detach().clone()
    for start in range(graph.num_edges):
        walks = [(start, inputs["source"][start].detach())]
        while walks:
            edge, weight = walks.pop()
            gates[:, dst[edge], src[start]] += weight * inputs["mark"][edge].detach()
            for pair, (before, after) in pairs:
                if before == edge:
                    walks.append((after, weight * inputs["transition"][pair].detach()))
    return gates


SHAPES = {
    "one graph": [7],
    "several": [5, 1, 8, 2],
    "single nodes": [1, 1, 1],
    "one node": [1],
    "large": [31, 3],
}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_backend_equals_naive(backend: str, sizes: list[int]) -> None:
    graph = random_graph(sizes, 0.15 if max(sizes) > 20 else 0.5)
    inputs = random_inputs(graph)
    want = plstm_dag(**inputs, graph=graph, backend="naive")
    got = plstm_dag(**inputs, graph=graph, backend=backend)
    assert_close("out", got, want)
    want_grads, got_grads = gradients(want, inputs), gradients(got, inputs)
    for name in inputs:
        assert_close(f"gradient of {name}", got_grads[name], want_grads[name])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 1000),
    tree=st.booleans(),
    reverse=st.booleans(),
)
def test_backends_agree_on_random_graphs(
    sizes: list[int], density: float, seed: int, tree: bool, reverse: bool
) -> None:
    graph = random_graph(sizes, density, seed)
    graph = graph.multitree() if tree else graph
    graph = graph.reverse() if reverse else graph
    inputs = random_inputs(graph, heads=1, seed=seed)
    want = plstm_dag(**inputs, graph=graph, backend="naive")
    want_grads = gradients(want, inputs)
    for backend in [*FAST, "auto"]:
        got = plstm_dag(**inputs, graph=graph, backend=backend)
        assert_close(f"{backend} out", got, want)
        for name, grad in gradients(got, inputs).items():
            assert_close(f"{backend} gradient of {name}", grad, want_grads[name])


def test_read_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one pair, of a few, and of all of them at once."""
    graph, results = random_graph([9, 1, 6]), []
    inputs = random_inputs(graph)
    for chunk in (1, 70, 2**20):
        monkeypatch.setattr(reach, "_CHUNK", chunk)
        out = plstm_dag(**inputs, graph=graph, backend="reach")
        results.append({"out": out, **gradients(out, inputs)})
    for other in results[1:]:
        for name, value in results[0].items():
            assert_close(name, other[name], value)


@pytest.mark.parametrize("backend", FORMS)
def test_hand_computed(backend: str) -> None:
    """A diamond 0 -> {1, 2} -> 3 with width 1, computed by hand."""
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]])
    graph = LineGraph(edges, torch.tensor([[0, 1], [2, 3]]), 4)

    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    q, k, v = column(1, 2, 3, 4), column(2, 3, 5, 7), column(1, -1, 2, 1)
    out = plstm_dag(
        q[..., None],
        k[..., None],
        v[..., None],
        source=column(1.0, 2.0, 3.0, 4.0),
        transition=column(0.5, -2.0),
        mark=column(1.0, 10.0, 0.1, 0.01),
        direct=column(1.0, 0.0, 0.0, 0.5),
        graph=graph,
        backend=backend,
    )[:, 0]
    c01, c02 = 1 * 2 * 1, 2 * 2 * 1
    c13, c23 = 0.5 * c01 + 3 * 3 * -1, -2.0 * c02 + 4 * 5 * 2
    want = [1 * 2 * 1.0, 2 * 1.0 * c01, 3 * 10.0 * c02, 4 * (0.1 * c13 + 0.01 * c23) + 0.5 * 28 * 1]
    assert_close("out", out, column(*want))


def test_gradcheck_of_naive() -> None:
    graph = random_graph([4, 1, 3], 0.7)
    inputs = random_inputs(graph, qk_dim=2, v_dim=2)
    assert torch.autograd.gradcheck(
        lambda *args: plstm_dag(*args, graph, backend="naive"), tuple(inputs.values())
    )


@pytest.mark.parametrize("backend", FORMS)
def test_equals_sum_over_paths(backend: str) -> None:
    graph = random_graph([6, 4], 0.6, seed=3)
    inputs = random_inputs(graph)
    q, k, v = (inputs[name].transpose(0, 1) for name in "qkv")  # H N width
    want = 0.7 * (path_sums(graph, inputs) * (q @ k.transpose(-1, -2))) @ v
    got = plstm_dag(**inputs, graph=graph, scale=0.7, backend=backend)
    assert_close("out", got, want.transpose(0, 1))


@pytest.mark.parametrize("backend", FORMS)
def test_path_graph_equals_sequence(backend: str) -> None:
    length = 9
    nodes = torch.arange(length - 1)
    graph = LineGraph.from_edges(torch.stack([nodes, nodes + 1]), length)
    x = random_inputs(graph)
    state, rows = torch.zeros(2, 3, 5, dtype=torch.float64), []
    for t in range(length):
        row = x["direct"][t, :, None] * (x["q"][t] * x["k"][t]).sum(-1, keepdim=True) * x["v"][t]
        if t > 0:
            row = row + x["mark"][t - 1, :, None] * torch.einsum("hkv,hk->hv", state, x["q"][t])
        rows.append(row * 3**-0.5)
        if t < length - 1:
            new = x["k"][t, :, :, None] * x["v"][t, :, None, :] * x["source"][t, :, None, None]
            old = x["transition"][t - 1, :, None, None] * state if t > 0 else 0
            state = old + new
    assert_close("out", plstm_dag(**x, graph=graph, backend=backend), torch.stack(rows))


@pytest.mark.parametrize("backend", FORMS)
def test_packed_equals_one_by_one(backend: str) -> None:
    graph = random_graph([6, 1, 9, 3])
    inputs = random_inputs(graph)
    packed = plstm_dag(**inputs, graph=graph, backend=backend)
    node_graph, (src, dst) = graph.batch, graph.edge_index
    for i in range(graph.num_graphs):
        node = (node_graph == i).nonzero()[:, 0]
        edge = (node_graph[src] == i).nonzero()[:, 0]
        pair = (node_graph[src][graph.line_index[0]] == i).nonzero()[:, 0]
        edge_number = torch.empty_like(src).index_copy_(0, edge, torch.arange(len(edge)))
        alone = LineGraph(
            torch.stack([src[edge], dst[edge]]) - node[0],
            edge_number[graph.line_index[:, pair]],
            len(node),
        )
        rows = dict.fromkeys(("q", "k", "v", "direct"), node)
        rows |= {"source": edge, "mark": edge, "transition": pair}
        part = {name: x[rows[name]] for name, x in inputs.items()}
        assert_close("out", plstm_dag(**part, graph=alone, backend=backend), packed[node])


@pytest.mark.parametrize("backend", FORMS)
def test_relabelling_permutes_and_edge_order_is_irrelevant(backend: str) -> None:
    graph = random_graph([8])
    x = random_inputs(graph)
    node = torch.randperm(graph.num_nodes)  # new number of every node
    edge = torch.randperm(graph.num_edges)  # new position -> old edge
    pair = torch.randperm(graph.line_index.shape[1])
    new_number = torch.argsort(edge)
    other = LineGraph(
        node[graph.edge_index[:, edge]], new_number[graph.line_index[:, pair]], graph.num_nodes
    )
    old = torch.argsort(node)
    moved = {name: x[name][old] for name in ("q", "k", "v", "direct")}
    moved |= {name: x[name][edge] for name in ("source", "mark")}
    moved["transition"] = x["transition"][pair]
    want = plstm_dag(**x, graph=graph, backend=backend)
    got = plstm_dag(**moved, graph=other, backend=backend)
    assert_close("out", got[node], want)


@pytest.mark.parametrize("backend", FORMS)
def test_only_descendants_see_a_node(backend: str) -> None:
    """A long path with transitions of 1 carries the first value to the last node."""
    graph = LineGraph.from_edges(torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 4, 5]]), 6)
    x = random_inputs(graph)
    x["transition"] = torch.ones_like(x["transition"])
    before = plstm_dag(**x, graph=graph, backend=backend)
    first = (
        before[4]
        - plstm_dag(
            **{**x, "v": x["v"] * torch.arange(6).ne(0)[:, None, None]},
            graph=graph,
            backend=backend,
        )[4]
    )
    assert first.abs().max() > 1e-3 * before[4].abs().max()
    third = plstm_dag(
        **{**x, "v": x["v"] * torch.arange(6).ne(2)[:, None, None]}, graph=graph, backend=backend
    )
    changed = (before - third).abs().amax((1, 2)) > 1e-12
    assert changed.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [*FAST, "auto"])
def test_low_precision(backend: str, dtype: torch.dtype) -> None:
    graph = random_graph([12, 7], 0.3)
    inputs = random_inputs(graph, dtype=dtype)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    want = plstm_dag(**exact, graph=graph, backend="naive")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = plstm_dag(**inputs, graph=graph, backend=backend)
    assert got.dtype == dtype
    values, grads = TOLERANCE[dtype]
    assert_close("out", got, want, values)
    want_grads = gradients(want, exact)
    for name, grad in gradients(got, inputs).items():
        assert_close(f"gradient of {name}", grad, want_grads[name], grads)


def test_auto_picks_by_size() -> None:
    assert choose_backend(random_graph([20] * 8, 0.1), 24, 24) == "reach"
    assert choose_backend(random_graph([16] * 4, 1.0), 24, 24) == "reach"
    assert choose_backend(random_graph([16] * 4, 1.0), 4, 4) == "levels"
    chain = torch.arange(2000)
    path = LineGraph.from_edges(torch.stack([chain, chain + 1]), 2001)
    assert choose_backend(path, 8, 8) == choose_backend(path.reverse(), 8, 8) == "levels"


def listed(graph: LineGraph, limit: int | None = None):
    """Arguments of make_reach_plan."""
    edge_graph = graph.node_graph[graph.edge_index[0]]
    arrays = (graph.edge_index, graph.line_index, graph.edge_level, edge_graph)
    return *(x.numpy() for x in arrays), graph.num_nodes, limit


def test_reach_plan_is_shared_by_both_directions_and_bounded() -> None:
    graph = random_graph([9, 4], 0.5)
    products = make_reach_plan(*listed(graph)).num_products
    assert graph.reach_plan(products - 1) is None
    plan = graph.reverse().reach_plan(products)
    assert plan.num_products == products
    assert graph.reach_plan() is graph.reach_plan(0) is plan
    counts = path_counts(graph.line_index.numpy(), graph.num_edges)
    entries = set(zip(plan.entries[1].tolist(), plan.entries[0].tolist(), strict=True))
    assert entries == set(map(tuple, np.argwhere(counts).tolist()))
    assert len(entries) == plan.entries.shape[1]


@pytest.mark.parametrize(
    ("sizes", "density"), [([6, 1, 9], 0.6), ([40, 3], 0.05), ([10], 1.0), ([3], 0.0)], ids=str
)
def test_products_of_graphs_of_64_edges_are_counted(sizes: list[int], density: float) -> None:
    graph = random_graph(sizes, density)
    edge_index, line_index, edge_level, edge_graph, num_nodes, _ = listed(graph)
    plan = make_reach_plan(edge_index, line_index, edge_level, edge_graph, num_nodes)
    assert estimated_products(line_index, edge_level, edge_graph, 10**9) == plan.num_products


@pytest.mark.parametrize(("size", "density"), [(30, 1.0), (60, 0.2), (200, 0.01)])
def test_products_of_larger_graphs_are_estimated(size: int, density: float) -> None:
    graph = random_graph([size, 5], density)
    _, line_index, edge_level, edge_graph, *_ = listed(graph)
    got = estimated_products(line_index, edge_level, edge_graph, 10**9)
    assert got == pytest.approx(make_reach_plan(*listed(graph)).num_products, rel=0.25)
    assert estimated_products(line_index, edge_level, edge_graph, 1) < got  # it gives up


def test_nothing_is_listed_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of dense graphs had 5 million products listed before they were rejected."""
    graph = random_graph([30] * 4, 1.0)
    monkeypatch.setattr(plans, "_closure", None)
    assert choose_backend(graph, 8, 8) == "levels"


def test_errors() -> None:
    graph = random_graph([5])
    x = random_inputs(graph)
    with pytest.raises(ValueError, match="backend must be one of"):
        plstm_dag(**x, graph=graph, backend="fast")
    with pytest.raises(ValueError, match=r"plstm_dag: mark must have shape \(E, H\)"):
        plstm_dag(**{**x, "mark": x["mark"][:-1]}, graph=graph)
    with pytest.raises(ValueError, match=r"transition must have A=\d+ rows"):
        plstm_dag(**{**x, "transition": x["transition"][:-1]}, graph=graph)
    with pytest.raises(ValueError, match="graph must be a LineGraph"):
        plstm_dag(**x, graph=graph.edge_index)
