"""Families of random graphs: their shapes, and what moves edges."""

import networkx as nx
import numpy as np
import pytest

from tasks import random_graphs
from tasks.random_graphs import SHARES, draw_graph, rewire


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [2, 3, 4, 7, 12, 30, 35])
@pytest.mark.parametrize("draw", list(SHARES), ids=lambda draw: draw.__name__)
def test_families_have_all_nodes_and_no_loops(draw, size: int) -> None:
    graph = draw(rng(), size)
    assert graph.number_of_nodes() == size and nx.number_of_selfloops(graph) == 0


TREES = {"tree", "line", "star", "caterpillar", "lobster"}


@pytest.mark.parametrize("size", [2, 13, 30])
def test_trees_are_trees_and_shapes_are_what_they_are_called(size: int) -> None:
    graphs = {draw.__name__: draw(rng(1), size) for draw in SHARES}
    assert {name for name in TREES if nx.is_tree(graphs[name])} == TREES
    assert nx.diameter(graphs["line"]) == size - 1
    assert max(dict(graphs["star"].degree).values()) == size - 1
    legs = graphs["caterpillar"]
    spine = legs.subgraph(node for node, degree in legs.degree if degree > 1)
    assert len(spine) == 0 or max(dict(spine.degree).values()) <= 2
    assert nx.is_connected(graphs["grid"]) and nx.is_connected(graphs["ladder"])


def test_grids_are_as_square_as_they_can_be() -> None:
    assert [random_graphs._factors(n) for n in (1, 2, 7, 12, 30, 36)] == [
        (1, 1),
        (1, 2),
        (1, 7),
        (3, 4),
        (5, 6),
        (6, 6),
    ]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9, 1.0])
def test_rewiring_keeps_the_number_of_edges_on_average(density: float) -> None:
    half = np.triu(rng(1).random((40, 40)) < density, 1).astype(np.int64)
    before, counts, moved = half + half.T, [], []
    for seed in range(60):
        after = rewire(rng(seed), before, 0.1)
        assert np.array_equal(after, after.T) and not after.diagonal().any()
        assert set(np.unique(after)) <= {0, 1}
        counts.append(after.sum() / 2)
        moved.append((before & ~after & 1).sum() / 2)
    edges = half.sum()
    want = 0.1 * min(edges, 780 - edges)
    assert abs(np.mean(counts) - edges) < 6 * (2 * want / 60) ** 0.5 + 1e-9
    assert abs(np.mean(moved) - want) < 6 * (want / 60) ** 0.5 + 1e-9


def test_nothing_is_rewired_without_a_share() -> None:
    line = nx.to_numpy_array(nx.path_graph(9), dtype=np.int64)
    assert np.array_equal(rewire(rng(), line, 0.0), line)


def test_drawn_graphs_are_connected_and_all_families_come() -> None:
    lines = 0
    for seed in range(150):
        graph = nx.from_numpy_array(draw_graph(rng(seed), 9, 0.1))
        assert nx.is_connected(graph) and len(graph) == 9
        lines += nx.diameter(graph) == 8
    assert 0 < lines < 75
    assert sum(SHARES.values()) == pytest.approx(1)


def test_node_numbers_say_nothing() -> None:
    """Without the shuffle, the two ends of a line would be its first and its last node."""
    ends = set()
    for seed in range(200):
        graph = draw_graph(rng(seed), 6, 0.0)
        if graph.sum() == 10 and graph.sum(0).max() == 2:  # a line
            ends.add(tuple(np.flatnonzero(graph.sum(0) == 1)))
    assert len(ends) > 3
