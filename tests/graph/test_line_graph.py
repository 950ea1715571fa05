"""LineGraph: levels, cycles, reverse, multitree, checks."""

import copy

import numpy as np
import pytest
import torch

from plstm.graph import LineGraph
from plstm.graph.topology import find_cycle, node_levels, ranges
from plstm.ops import plstm_dag
from tests.graph.graphs import grid_dag, path_counts, random_dag
from tests.helpers import assert_close


def longest_paths(edges: np.ndarray, size: int) -> list[int]:
    """Longest path into every node by relaxation, one edge at a time."""
    level = [0] * size
    for _ in range(size):
        for src, dst in edges.T.tolist():
            level[dst] = max(level[dst], level[src] + 1)
    return level


def test_ranges() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.zeros(0, np.int64), np.zeros(0, np.int64)).size == 0


@pytest.mark.parametrize("seed", range(5))
def test_levels_are_longest_paths(seed: int) -> None:
    edges = random_dag(12, 0.25, np.random.default_rng(seed))
    assert node_levels(edges, 12).tolist() == longest_paths(edges, 12)
    graph = LineGraph.from_edges(torch.from_numpy(edges), 12)
    assert graph.edge_level.tolist() == [longest_paths(edges, 12)[src] for src in edges[0]]


@pytest.mark.parametrize("seed", range(5))
def test_from_edges_finds_all_consecutive_pairs(seed: int) -> None:
    edges = random_dag(9, 0.4, np.random.default_rng(seed))
    graph = LineGraph.from_edges(torch.from_numpy(edges), 9)
    want = {(a, b) for a, i in enumerate(edges[1]) for b, o in enumerate(edges[0]) if i == o}
    got = list(map(tuple, graph.line_index.T.tolist()))
    assert len(got) == len(want) and set(got) == want


def test_cycle_is_named() -> None:
    edges = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 1, 0, 5]])
    assert sorted(find_cycle(edges.numpy(), 6)) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"LineGraph: .* through nodes 1 -> 2 -> 3;"):
        LineGraph.from_edges(edges[:, [1, 0, 2, 3, 4, 5]], 6)
    ring = torch.arange(20)
    with pytest.raises(ValueError, match=r"through nodes (\d+ -> ){7}\d+ \.\.\.;"):
        LineGraph.from_edges(torch.stack([ring, (ring + 1) % 20]), 20)
    with pytest.raises(ValueError, match="through nodes 1;"):
        LineGraph.from_edges(torch.tensor([[0, 1], [1, 1]]), 2)


def test_reverse_flips_and_is_cached() -> None:
    edges = random_dag(10, 0.3, np.random.default_rng(0))
    graph = LineGraph.from_edges(torch.from_numpy(edges), 10)
    back = graph.reverse()
    assert graph.reverse() is back
    assert torch.equal(back.edge_index, graph.edge_index.flip(0))
    assert torch.equal(back.line_index, graph.line_index.flip(0))
    assert back.reverse() is graph
    checked = LineGraph(back.edge_index, back.line_index, 10, edge_level=back.edge_level)
    assert checked.num_edges == back.num_edges


def assert_multitree(graph: LineGraph) -> None:
    """At most one path between two edges, over pairs of the graph."""
    tree = graph.multitree()
    counts = path_counts(tree.line_index.numpy(), tree.num_edges)
    assert counts.max(initial=0) <= 1
    full = set(map(tuple, graph.line_index.T.tolist()))
    assert set(map(tuple, tree.line_index.T.tolist())) <= full


@pytest.mark.parametrize("seed", range(20))
def test_multitree_by_path_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = random_dag(10, rng.choice([0.15, 0.3, 0.6]), rng)
    graph = LineGraph.from_edges(torch.from_numpy(edges), 10)
    assert_multitree(graph)
    assert_multitree(graph.reverse())
    reached = set(graph.line_index[1].tolist())
    assert set(graph.multitree().line_index[1].tolist()) == reached  # all keep an incoming pair
    assert graph.multitree().multitree() is graph.multitree()


def test_multitree_is_maximal_and_keeps_trees_whole() -> None:
    """The multitree is maximal, and a graph that is already a multitree stays unchanged."""
    graph = LineGraph.from_edges(torch.from_numpy(random_dag(8, 0.6, np.random.default_rng(1))), 8)
    kept = graph.multitree().line_index
    for pair in set(map(tuple, graph.line_index.T.tolist())) - set(map(tuple, kept.T.tolist())):
        more = torch.cat([kept, torch.tensor(pair)[:, None]], 1)
        assert path_counts(more.numpy(), graph.num_edges).max() > 1
    tree = LineGraph.from_edges(torch.tensor([[0, 0, 1, 1, 2], [1, 2, 3, 4, 5]]), 6)
    assert torch.equal(tree.multitree().line_index, tree.line_index)


def test_multitree_of_a_packed_batch_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    parts = [random_dag(size, 0.4, rng) for size in (7, 1, 12, 9)]
    sizes, first, edge_first = [7, 1, 12, 9], 0, 0
    edges, batch, trees = [], [], []
    for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        alone = LineGraph.from_edges(torch.from_numpy(part), size).multitree()
        trees.append(alone.line_index + edge_first)
        edges.append(torch.from_numpy(part) + first)
        batch += [i] * size
        first, edge_first = first + size, edge_first + part.shape[1]
    packed = LineGraph.from_edges(torch.cat(edges, 1), first, torch.tensor(batch))
    assert packed.num_graphs == 4
    got = set(map(tuple, packed.multitree().line_index.T.tolist()))
    assert got == set(map(tuple, torch.cat(trees, 1).T.tolist()))


def test_grid() -> None:
    rows, columns = 3, 4
    graph = LineGraph.from_edges(grid_dag(rows, columns), rows * columns)
    assert graph.num_edges == rows * (columns - 1) + columns * (rows - 1)
    y, x = graph.edge_index[0] // columns, graph.edge_index[0] % columns
    assert torch.equal(graph.edge_level, y + x)
    assert_multitree(graph)
    assert graph.multitree().line_index.shape[1] < graph.line_index.shape[1]


@pytest.mark.parametrize("known", ["nothing", "tree", "reverse"])
def test_reverse_and_multitree_commute(known: str) -> None:
    """In any order of access."""
    edges = torch.from_numpy(random_dag(10, 0.5, np.random.default_rng(2)))
    graph = LineGraph.from_edges(edges, 10)
    if known == "tree":
        graph.multitree()
    if known == "reverse":
        graph.reverse().multitree()
    one, other = graph.reverse().multitree(), graph.multitree().reverse()
    assert torch.equal(one.line_index, other.line_index)
    assert torch.equal(one.edge_level, other.edge_level)


@pytest.mark.parametrize("num_nodes", [0, 1, 5])
def test_no_edges(num_nodes: int) -> None:
    edges = torch.zeros(2, 0, dtype=torch.int64)
    graph = LineGraph.from_edges(edges, num_nodes, torch.arange(num_nodes))
    assert graph.num_graphs == num_nodes and graph.num_edges == 0
    for other in (graph.reverse(), graph.multitree(), graph.reverse().multitree()):
        assert other.edge_index.shape == other.line_index.shape == (2, 0)


def test_to_and_deepcopy_keep_everything() -> None:
    edges = torch.from_numpy(random_dag(6, 0.5, np.random.default_rng(0)))
    graph = LineGraph.from_edges(edges, 6, torch.zeros(6, dtype=torch.int64))
    assert graph.to("cpu") is graph
    moved = graph.reverse().to("meta")
    assert moved.device.type == "meta" and moved.batch.device.type == "meta"
    twin = copy.deepcopy(graph)
    assert torch.equal(twin.multitree().line_index, graph.multitree().line_index)


def test_errors() -> None:
    edges, pairs = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0], [1]])
    LineGraph(edges, pairs, 3)
    with pytest.raises(ValueError, match=r"edge_index must be an int64 tensor, got torch\.int32"):
        LineGraph(edges.int(), pairs, 3)
    with pytest.raises(ValueError, match=r"edge_index must lie in 0..1 \(2 nodes\)"):
        LineGraph(edges, pairs, 2)
    with pytest.raises(ValueError, match=r"line_index must lie in 0..1 \(2 edges\)"):
        LineGraph(edges, pairs + 1, 3)
    with pytest.raises(ValueError, match=r"line_index must have shape \(2, count\)"):
        LineGraph(edges, pairs.T, 3)
    with pytest.raises(ValueError, match=r"got pairs \[\[1, 0\]\] that do not meet"):
        LineGraph(edges, pairs.flip(0), 3)
    with pytest.raises(ValueError, match=r"got edges \[\[1, 2\]\] between two"):
        LineGraph(edges, pairs, 3, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="batch must be ascending"):
        LineGraph(edges, pairs, 3, torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match=r"batch must be int64 of shape \(3,\)"):
        LineGraph(edges, pairs, 3, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"edge_level must rise along every pair"):
        LineGraph(edges, pairs, 3, edge_level=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"edge_level must be int64 of shape \(2,\)"):
        LineGraph(edges, pairs, 3, edge_level=torch.tensor([1]))


def test_cycle_beside_given_levels() -> None:
    edges, none = torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"no directed cycle, got one through nodes 0 -> 1;"):
        LineGraph(edges, none, 2, edge_level=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["naive", "levels", "reach"])
def test_last_graphs_without_nodes(backend: str) -> None:
    edges, batch = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1, 1, 1])
    graph = LineGraph.from_edges(edges, 3, batch, num_graphs=4)
    assert graph.num_graphs == graph.reverse().num_graphs == graph.multitree().num_graphs == 4
    assert LineGraph(edges, graph.line_index, 3, batch, num_graphs=4).num_graphs == 4
    assert LineGraph.from_edges(edges, 3, batch).num_graphs == 2
    x, gate = torch.randn(3, 1, 2), torch.randn(3, 1)
    pairs = gate[: graph.line_index.shape[1]]
    args = (x, x, x, gate[:2], pairs, gate[:2], gate)
    want = plstm_dag(*args, LineGraph.from_edges(edges, 3), backend="naive")
    assert_close("output", plstm_dag(*args, graph, backend=backend), want, 1e-5)


@pytest.mark.parametrize(("batch", "num_graphs"), [([0, 0, 2], 2), (None, 0), (None, 2)])
def test_wrong_number_of_graphs(batch: list[int] | None, num_graphs: int) -> None:
    batch = batch if batch is None else torch.tensor(batch)
    edges = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match=f"LineGraph: num_graphs must .* got {num_graphs};"):
        LineGraph.from_edges(edges, 3, batch, num_graphs=num_graphs)


def test_plans_move_along() -> None:
    """The meta device cannot plan, and the sizes of levels are read on the CPU."""
    graph = LineGraph.grid((3, 4))
    plans = graph.reach_plan(), graph.multitree().reverse().reach_plan()
    for moved in (graph.to("meta"), graph.reverse().to("meta").reverse()):
        for plan, want in zip((moved, moved.multitree()), plans, strict=True):
            got = plan.reach_plan()
            assert [x.shape for x in got] == [x.shape for x in want]
            assert [x.device.type for x in got] == ["meta", "meta", "meta", "cpu"]


def test_a_multitree_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = LineGraph.from_edges(grid_dag(4, 5), 20)
    monkeypatch.setattr("plstm.graph.multitree.MAX_BYTES", 8 * graph.num_edges - 1)
    with pytest.raises(ValueError, match=r"^prune_to_multitree: .* got 248 bytes for 31 edges"):
        graph.multitree()
    monkeypatch.setattr("plstm.graph.multitree.MAX_BYTES", 8 * graph.num_edges)
    assert graph.multitree().num_pairs > 0


def test_multitree_moves_along() -> None:
    """The meta device cannot prune again."""
    edges = random_dag(12, 0.5, np.random.default_rng(0))
    graph = LineGraph.from_edges(torch.from_numpy(edges), 12)
    for one_way in (graph, graph.reverse()):
        tree = one_way.multitree()
        assert tree.line_index.shape[1] < graph.line_index.shape[1]
        moved = one_way.to("meta").multitree()
        assert moved.line_index.shape == tree.line_index.shape
        assert moved.flipped == tree.flipped
