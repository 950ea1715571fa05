"""PLSTMGraph: gates as written in the docstring, bounds of both modes, contract of a mixer."""

import copy

import pytest
import torch
from torch import Tensor

from plstm.graph import LineGraph
from plstm.layers.plstm_graph import PLSTMGraph
from plstm.ops.plstm_dag import plstm_dag
from tests.helpers import assert_close
from tests.ops.test_plstm_dag import random_graph

DIM, HEADS = 12, 3


def make(mode: str, edge_dim: int = 0, **options: object) -> PLSTMGraph:
    """A layer with all parameters drawn at random, so that no gate is constant."""
    layer = PLSTMGraph(DIM, HEADS, mode, edge_dim=edge_dim, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer


def features(graph: LineGraph, edge_dim: int = 0) -> tuple[Tensor, Tensor | None]:
    edge_attr = torch.randn(graph.num_edges, edge_dim) if edge_dim else None
    return torch.randn(graph.num_nodes, DIM), edge_attr


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("edge_dim", [0, 4])
def test_gates_by_loop(mode: str, edge_dim: int) -> None:
    """Every gate from the concatenated inputs named in the docstring, one at a time."""
    layer, graph = make(mode, edge_dim).double(), random_graph([6, 3], 0.6)
    graph = graph.multitree() if mode == "D" else graph
    x, edge_attr = (None if f is None else f.double() for f in features(graph, edge_dim))
    source, transition, mark, direct = layer.gates(x, graph, edge_attr)
    (src, dst), pairs = graph.edge_index.tolist(), graph.line_index.T.tolist()
    edge = (x[src] + x[dst]) / 2 if edge_attr is None else edge_attr
    bias = layer.gates.node_proj.bias.chunk(4)
    node_weight, edge_weight = layer.gates.node_proj.weight.chunk(4), layer.gates.edge_proj.weight
    w_source, w_mark, w_in, w_out = edge_weight.chunk(4)
    logits = torch.zeros(len(pairs), HEADS, dtype=torch.float64)
    for e in range(graph.num_edges):
        both = torch.cat([x[src[e]], edge[e]])
        want = torch.sigmoid(torch.cat([node_weight[0], w_source], 1) @ both + bias[0])
        assert_close("source", source[e], want)
        both = torch.cat([x[dst[e]], edge[e]])
        want = torch.sigmoid(torch.cat([node_weight[1], w_mark], 1) @ both + bias[1])
        assert_close("mark", mark[e], want)
    for p, (a, b) in enumerate(pairs):
        weight = torch.cat([w_in, w_out, node_weight[2]], 1)
        logits[p] = weight @ torch.cat([edge[a], edge[b], x[dst[a]]]) + bias[2]
    for p, (a, _) in enumerate(pairs):
        total = sum(logits[i].abs() for i, (other, _) in enumerate(pairs) if other == a)
        want = logits[p] / (0.5 + total) if mode == "P" else logits[p].tanh()
        assert_close("transition", transition[p], want)
    assert_close("direct", direct, torch.sigmoid(x @ node_weight[3].T + bias[3]))


@pytest.mark.parametrize("backend", ["naive", "levels", "reach", "auto"])
@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("norm", ["head", "batch"])
def test_forward_is_the_recurrence_between_projections(
    norm: str, bidirectional: bool, gated: bool, mode: str, backend: str
) -> None:
    options = {"norm": norm, "bidirectional": bidirectional, "output_gate": gated}
    layer = make(mode, backend=backend, qk_dim=5, v_dim=2, **options).double()
    graph = random_graph([7, 4])
    x = features(graph)[0].double()
    used = graph.multitree() if mode == "D" else graph
    q, k, v = (
        p(x).view(-1, HEADS, w)
        for p, w in zip((layer.q_proj, layer.k_proj, layer.v_proj), (5, 5, 2), strict=True)
    )
    out = plstm_dag(q, k, v, *layer.gates(x, used), used, backend="naive")
    if bidirectional:
        used = used.reverse()
        out = out + plstm_dag(q, k, v, *layer.reverse_gates(x, used), used, backend="naive")
    if norm == "head":
        want = (out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1)
        want = want * layer.norm.weight
    else:
        want = (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()
        want = want.flatten(1) * layer.norm.weight + layer.norm.bias
    if gated:
        z = x @ layer.output_gate_proj.weight.T
        want = want * z * z.sigmoid()
    assert_close("y", layer(x, graph), want @ layer.out_proj.weight.T)
    assert layer.out_proj.bias is None


def test_batch_norm_keeps_how_much_arrives() -> None:
    """A star of equal leaves: twice as many of them are twice as much; a norm per node forgets."""
    moved = {}
    for norm in ("head", "batch"):
        layer = make("P", norm=norm).double().eval()
        y = []
        for leaves in (2, 4):
            edges = torch.stack([torch.arange(1, leaves + 1), torch.zeros(leaves).long()])
            x = torch.ones(leaves + 1, DIM, dtype=torch.float64)
            y.append(layer(x, LineGraph.from_edges(edges, leaves + 1))[0])
        moved[norm] = (y[1] - y[0]).norm() / y[0].norm()
    assert moved["head"] < 0.1 < moved["batch"]


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 5, 1), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)], ids=str)
def test_a_corner_of_a_volume_hears_of_all_of_it(
    signs: tuple[int, ...], shape: tuple[int, ...], mode: str
) -> None:
    layer, graph = make(mode).double(), LineGraph.grid(shape, signs, num_graphs=2)
    x = features(graph)[0].double().requires_grad_()
    y = layer(x, graph).view(2, *shape, DIM)
    end = [0 if sign < 0 else -1 for sign in signs]
    start = [-1 if sign < 0 else 0 for sign in signs]
    (far,) = torch.autograd.grad(y[1, *end].square().sum(), x, retain_graph=True)
    (near,) = torch.autograd.grad(y[1, *start].square().sum(), x)
    far, near = (grad.view(2, *shape, DIM).abs().sum(-1) > 0 for grad in (far, near))
    assert far[1].all() and not far[0].any()
    assert near.sum() == 1 and near[1, *start]


def test_p_mode_never_amplifies_mass() -> None:
    """sum over outgoing edges |T| < 1, so the mass on every cut of the graph cannot grow."""
    layer, graph = make("P"), random_graph([12], 0.5)
    transition = layer.gates(features(graph)[0] * 10, graph)[1]
    mass = torch.zeros(graph.num_edges, HEADS).index_add(0, graph.line_index[0], transition.abs())
    assert mass.max() < 1
    # Inject 1 on one edge and follow it: what leaves through the sinks is at most what came in.
    state = torch.zeros(graph.num_edges, HEADS)
    state[graph.edge_level.argmin()] = 1
    ends = ~torch.isin(torch.arange(graph.num_edges), graph.line_index[0])
    for level in range(int(graph.edge_level.max()) + 1):
        here = (graph.edge_level[graph.line_index[1]] == level).nonzero()[:, 0]
        moved = transition[here] * state[graph.line_index[0, here]]
        state = state.index_add(0, graph.line_index[1, here], moved)
    assert 0 < state[ends].abs().sum(0).max() <= 1


def test_d_mode_bounds_every_pair() -> None:
    """On the multitree the gating matrix of the transitions has entries of size 1 at most."""
    layer, graph = make("D"), random_graph([12], 0.5).multitree()
    transition = layer.gates(features(graph)[0] * 10, graph)[1]
    step = torch.zeros(HEADS, graph.num_edges, graph.num_edges)
    step[:, graph.line_index[1], graph.line_index[0]] = transition.T
    total = torch.linalg.inv(torch.eye(graph.num_edges) - step)
    assert total.abs().max() <= 1 + 1e-4


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("edge_dim", [0, 4])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_contract(bidirectional: bool, mode: str, edge_dim: int) -> None:
    layer = make(mode, edge_dim, bidirectional=bidirectional)
    graph = random_graph([9, 1, 5])
    x, edge_attr = features(graph, edge_dim)
    y = layer(x, graph, edge_attr)
    assert y.shape == x.shape and y.dtype == x.dtype
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name
    other = PLSTMGraph(DIM, HEADS, mode, edge_dim=edge_dim, bidirectional=bidirectional)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, graph, edge_attr), y)
    assert torch.equal(copy.deepcopy(layer)(x, graph, edge_attr), y)


def test_same_seed_same_init_and_constant_gates_at_start() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        layers.append(PLSTMGraph(DIM, HEADS, source_bias=-4.0, transition_std=10.0))
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(a, b)
    graph = random_graph([8])
    source, _, mark, direct = layers[0].gates(features(graph)[0], graph)
    for gate, bias in ((source, -4.0), (mark, 0.0), (direct, -5.0)):
        assert_close("gate", gate, torch.sigmoid(torch.full_like(gate, bias)), 1e-6)


@pytest.mark.parametrize("mode", ["P", "D"])
def test_reverse_takes_the_same_edge_features(mode: str) -> None:
    """Information flows from the last node to the first only in the reverse."""
    layer, edges = make(mode, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])
    graph = LineGraph.from_edges(edges, 4)
    x, edge_attr = features(graph, 4)
    moved = x.clone()
    moved[3] += 1
    same = layer(x, graph, edge_attr)[0] - layer(moved, graph, edge_attr)[0]
    flipped = graph.reverse()
    changed = layer(x, flipped, edge_attr)[0] - layer(moved, flipped, edge_attr)[0]
    assert same.abs().max() < 1e-6 < changed.abs().max()
    fresh = LineGraph.from_edges(edges.flip(0), 4)
    assert_close("y", layer(x, flipped, edge_attr), layer(x, fresh, edge_attr), 1e-5)


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("norm", ["head", "batch"])
def test_no_edges_and_autocast(norm: str, mode: str) -> None:
    layer, empty = (
        make(mode, norm=norm),
        LineGraph.from_edges(torch.zeros(2, 0, dtype=torch.int64), 3),
    )
    assert torch.isfinite(layer(features(empty)[0], empty)).all()
    graph = random_graph([9])
    x = features(graph)[0]
    want = layer(x, graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x, graph)
    assert got.dtype == torch.bfloat16
    assert_close("y", got, want, 0.03)  # projections and gates in bfloat16
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16(), graph)
    assert half.dtype == torch.bfloat16
    assert_close("y", half, want, 0.05)  # parameters rounded too


def test_errors() -> None:
    with pytest.raises(ValueError, match="PLSTMGraph: dim must be divisible by num_heads"):
        PLSTMGraph(10, 3)
    PLSTMGraph(10, 3, qk_dim=2, v_dim=4)
    with pytest.raises(ValueError, match="PLSTMGraph: mode must be one of 'P', 'D', got 'X'"):
        PLSTMGraph(DIM, HEADS, "X")
    with pytest.raises(
        ValueError, match="PLSTMGraph: norm must be one of 'head', 'batch', got 'X'"
    ):
        PLSTMGraph(DIM, HEADS, norm="X")
    graph = random_graph([4])
    x, edge_attr = features(graph, 4)
    with pytest.raises(ValueError, match=r"got None; pass one row per edge"):
        PLSTMGraph(DIM, HEADS, edge_dim=4)(x, graph)
    with pytest.raises(ValueError, match=r"edge_attr must be None .* set edge_dim"):
        PLSTMGraph(DIM, HEADS)(x, graph, edge_attr)
    with pytest.raises(ValueError, match=r"edge_attr must be \(\d+, 5\)"):
        PLSTMGraph(DIM, HEADS, edge_dim=5)(x, graph, edge_attr)


@pytest.mark.parametrize("shape", [(9, DIM + 1), (9,), (3, 3, DIM)])
def test_wrong_features(shape: tuple[int, ...]) -> None:
    layer, graph = make("P"), random_graph([6, 3], 0.6)
    with pytest.raises(ValueError, match=r"^PLSTMGraph: x must have shape \(N, 12\)") as error:
        layer(torch.randn(shape), graph)
    assert str(shape) in str(error.value)
