"""LineGraph.grid: edges and pairs, and plstm_dag on it against the functions for grids."""

from itertools import product

import pytest
import torch
from torch import Tensor

from plstm.graph import LineGraph
from plstm.graph.grid import grid_gates, grid_index
from plstm.ops import plstm_1d, plstm_2d, plstm_dag
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d.corners import SIGNS
from plstm.ops.plstm_2d.naive import plstm_grid_naive
from tests.graph.graphs import grid_dag
from tests.graph.test_line_graph import assert_multitree
from tests.helpers import assert_close, gradients

BATCH, HEADS, KEY, VALUE = 2, 2, 3, 4


def grid_inputs(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """q, k, v and the gates of one corner."""
    generator, axes, nodes = torch.Generator().manual_seed(0), len(shape), (BATCH, *shape, HEADS)
    ends = {"q": (KEY,), "k": (KEY,), "v": (VALUE,), "source": (axes,)}
    ends |= {"transition": (axes, axes), "mark": (axes,), "direct": ()}
    return {
        name: torch.randn(*nodes, *end, generator=generator, dtype=torch.float64).requires_grad_()
        for name, end in ends.items()
    }


def as_graph(inputs: dict[str, Tensor], signs: tuple[int, ...] | None, backend: str) -> Tensor:
    """plstm_dag on the grid, (B, *grid, H, V)."""
    q, k, v, source, transition, mark, direct = inputs.values()
    shape = q.shape[1:-2]
    graph = LineGraph.grid(shape, signs, num_graphs=q.shape[0])
    rows = (x.flatten(0, len(shape)) for x in (q, k, v))
    gates = *grid_gates(source, transition, mark, signs), direct.flatten(0, len(shape))
    return plstm_dag(*rows, *gates, graph, backend=backend).view_as(v)


def assert_equal(got: Tensor, want: Tensor, inputs: dict[str, Tensor]) -> None:
    assert_close("out", got, want)
    want_grads = gradients(want, inputs)
    for name, grad in gradients(got, inputs).items():
        assert_close(f"gradient of {name}", grad, want_grads[name])


@pytest.mark.parametrize("length", [1, 7])
def test_one_axis_is_a_sequence(length: int) -> None:
    inputs = grid_inputs((length,))
    flat = inputs | {name: inputs[name].squeeze(-1) for name in ("source", "mark")}
    flat["transition"] = inputs["transition"].squeeze((-1, -2))
    assert_equal(as_graph(inputs, None, "levels"), plstm_1d(**flat, backend="naive"), inputs)
    backwards = {name: x.flip(1) for name, x in flat.items()}
    want = plstm_1d(**backwards, backend="naive").flip(1)
    assert_equal(as_graph(inputs, (-1,), "reach"), want, inputs)


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("corner", SIGNS)
def test_two_axes_are_a_grid(corner: str, shape: tuple[int, ...]) -> None:
    inputs = grid_inputs(shape)
    per_corner = {name: inputs[name][None] for name in ("source", "transition", "mark")}
    for backend in ("levels", "reach"):
        want = plstm_2d(**(inputs | per_corner), corners=(corner,), backend="naive")
        assert_equal(as_graph(inputs, SIGNS[corner], backend), want, inputs)


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)), ids=str)
def test_three_axes(signs: tuple[int, ...]) -> None:
    inputs = grid_inputs((2, 3, 2))
    q, k, v, *gates, direct = inputs.values()
    of_corner = Gates(*(gate[None] for gate in gates), direct)
    want = plstm_grid_naive(q, k, v, of_corner, [signs], KEY**-0.5)
    assert_equal(as_graph(inputs, signs, "auto"), want, inputs)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (2, 3, 5), (2, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("backend", ["naive", "levels", "reach"])
def test_axes_of_any_length(backend: str, shape: tuple[int, ...]) -> None:
    signs = (1, -1, 1, 1)[: len(shape)]
    inputs = grid_inputs(shape)
    q, k, v, *gates, direct = inputs.values()
    of_corner = Gates(*(gate[None] for gate in gates), direct)
    want = plstm_grid_naive(q, k, v, of_corner, [signs], KEY**-0.5)
    assert_equal(as_graph(inputs, signs, backend), want, inputs)


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1)], ids=str)
def test_multitree_of_an_image_is_that_of_plstm_2d(signs: tuple[int, int]) -> None:
    inputs = grid_inputs((3, 4))
    with torch.no_grad():
        inputs["transition"][..., 1, 0] = 0  # no turn from along x to along y: chirality "L"
    q, k, v, source, transition, mark, direct = inputs.values()
    tree = LineGraph.grid((3, 4), signs, num_graphs=BATCH).multitree()
    source, transition, mark = grid_gates(source, transition, mark, signs)
    transition = transition[grid_index((3, 4), signs, BATCH).in_tree]
    rows = (x.flatten(0, 2) for x in (q, k, v))
    got = plstm_dag(*rows, source, transition, mark, direct.flatten(0, 2), tree).view_as(v)
    (corner,) = (name for name, axes in SIGNS.items() if tuple(axes) == signs)
    per_corner = {name: inputs[name][None] for name in ("source", "transition", "mark")}
    want = plstm_2d(**(inputs | per_corner), corners=(corner,), backend="naive")
    assert_close("out", got, want)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 1, 3), (3, 2, 3), (2, 2, 2, 2)], ids=str)
def test_multitree_of_a_grid_has_one_path_between_any_two_nodes(shape: tuple[int, ...]) -> None:
    for signs in ((1,) * len(shape), (-1, 1, 1, -1)[: len(shape)]):
        graph = LineGraph.grid(shape, signs, num_graphs=2)
        assert_multitree(graph)
        assert_multitree(graph.reverse())
        tree, nodes = graph.multitree(), torch.eye(graph.num_nodes).double()
        sizes = (tree.num_edges, tree.num_pairs, tree.num_edges, tree.num_nodes)
        gates = (torch.ones(size, 1).double() for size in sizes)
        one = nodes.new_ones(len(nodes), 1, 1)
        paths = plstm_dag(one, one, nodes[:, None], *gates, tree, scale=1.0)
        steps = torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))
        steps = steps * torch.tensor(signs)
        behind = (steps[:, None] >= steps).all(-1).double()
        assert torch.equal(paths[:, 0], torch.block_diag(behind, behind))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 1, 3), (2, 2, 2, 2)], ids=str)
def test_is_the_line_graph_of_its_edges(shape: tuple[int, ...]) -> None:
    for signs in product((1, -1), repeat=len(shape)):
        graph = LineGraph.grid(shape, signs, num_graphs=2)
        want = LineGraph.from_edges(graph.edge_index, graph.num_nodes, graph.batch)
        assert torch.equal(graph.edge_level, want.edge_level)
        pairs = set(map(tuple, graph.line_index.T.tolist()))
        assert pairs == set(map(tuple, want.line_index.T.tolist()))
        assert len(pairs) == graph.num_pairs == want.num_pairs


def test_edges_of_an_image() -> None:
    edges = LineGraph.grid((3, 4)).edge_index.T.tolist()
    assert edges == sorted(edges) and edges[:2] == [[0, 1], [0, 4]]
    assert edges == sorted(grid_dag(3, 4).T.tolist())
    assert LineGraph.grid((2, 2), (-1, 1)).edge_index.T.tolist() == [[0, 1], [2, 3], [2, 0], [3, 1]]


def test_errors() -> None:
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match=r"LineGraph.grid: shape must have an axis"):
            LineGraph.grid(shape)
    for signs in ((1,), (1, 0)):
        with pytest.raises(ValueError, match=r"signs must be 1 or -1 for each of the 2 axes"):
            LineGraph.grid((2, 3), signs)
