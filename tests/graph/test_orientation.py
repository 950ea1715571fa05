"""Node orders and the DAG they make of an undirected graph."""

import numpy as np
import pytest
import torch

from plstm.graph.orientation import ORDERS, node_rank, orient, wl_colours
from plstm.graph.topology import node_levels
from tests.graph.graphs import molecule, random_dag


def both_ways(edges: np.ndarray) -> np.ndarray:
    return np.concatenate([edges, edges[::-1]], 1)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "directed"])
@pytest.mark.parametrize("kind", ["ring", "tree", "apart", "node"])
def test_orders_make_dags(order: str, kind: str) -> None:
    edge_index, size = molecule(kind)
    edges = edge_index.numpy()
    rank = node_rank(edges, size, order)
    assert sorted(rank.tolist()) == list(range(size))
    dag, column = orient(edges, rank)
    assert (rank[dag[0]] < rank[dag[1]]).all()
    assert (node_levels(dag, size) >= 0).all()
    undirected = {frozenset(edge) for edge in edges.T.tolist()}
    assert len(undirected) == dag.shape[1]
    assert {frozenset(edge) for edge in dag.T.tolist()} == undirected
    assert {frozenset(edge) for edge in edges[:, column].T.tolist()} == undirected


def test_orient_drops_loops_and_duplicates_and_turns_single_directions() -> None:
    edges = np.array([[0, 1, 1, 2, 2, 0], [1, 0, 1, 1, 1, 2]])
    dag, column = orient(edges, np.array([2, 0, 1]))
    assert dag.T.tolist() == [[1, 2], [1, 0], [2, 0]]
    assert column.tolist() == [3, 0, 5]


def test_orient_wants_a_permutation() -> None:
    with pytest.raises(ValueError, match=r"rank must be a permutation of 0\.\.2"):
        orient(np.array([[0], [1]]), np.array([0, 0, 1]))


def test_bfs_by_hand() -> None:
    """A star with a tail: the centre first, then its leaves, then the tail; isolated nodes last."""
    edges = both_ways(np.array([[3, 3, 3, 1], [0, 1, 2, 4]]))
    rank = node_rank(edges, 6, "bfs")
    assert rank[3] == 0 and {rank[0], rank[1], rank[2]} == {1, 2, 3}
    assert rank[4] == 4 and rank[5] == 5


def test_bfs_prefers_large_degree_components_and_goes_by_distance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        edges = both_ways(random_dag(15, 0.15, rng))
        rank = node_rank(edges, 15, "bfs")
        dag, _ = orient(edges, rank)
        degree = np.bincount(edges[0], minlength=15)
        assert degree[rank.argmin()] == degree.max()
        roots = np.flatnonzero(np.bincount(dag[1], minlength=15) == 0)
        components = np.arange(15)  # one root per connected component: all else has an earlier end
        for _ in range(15):
            np.minimum.at(components, edges[1], components[edges[0]])
        assert len(roots) == len(np.unique(components))


@pytest.mark.parametrize("seed", range(10))
def test_bfs_is_invariant_under_relabelling(seed: int) -> None:
    """Up to ties of the colours; if all colours differ, the DAG is the same."""
    rng = np.random.default_rng(seed)
    edges = both_ways(random_dag(14, 0.3, rng))
    new_name = rng.permutation(14)
    renamed = new_name[edges][:, rng.permutation(edges.shape[1])]
    colour, renamed_colour = wl_colours(edges, 14), wl_colours(renamed, 14)
    assert np.array_equal(renamed_colour[new_name], colour)
    rank, renamed_rank = node_rank(edges, 14, "bfs"), node_rank(renamed, 14, "bfs")
    if np.unique(colour).size == 14:
        assert np.array_equal(renamed_rank[new_name], rank)
    assert np.array_equal(colour[rank.argsort()], renamed_colour[renamed_rank.argsort()])


def test_some_random_graph_has_distinct_colours() -> None:
    """Otherwise the test above would never compare ranks."""
    edges = both_ways(random_dag(14, 0.3, np.random.default_rng(0)))
    assert np.unique(wl_colours(edges, 14)).size == 14


def test_random_order() -> None:
    edges = molecule("ring")[0].numpy()
    fixed = [node_rank(edges, 8, "random", seed=s).tolist() for s in (0, 0, 1)]
    assert fixed[0] == fixed[1] != fixed[2]
    fresh = [node_rank(edges, 8, "random").tolist() for _ in range(2)]
    assert fresh[0] != fresh[1]
    torch.manual_seed(3)
    first = node_rank(edges, 8, "random")
    torch.manual_seed(3)
    assert np.array_equal(first, node_rank(edges, 8, "random"))


def test_unknown_order() -> None:
    with pytest.raises(ValueError, match="order must be one of 'given', 'bfs', 'random'"):
        node_rank(np.zeros((2, 0), np.int64), 1, "dfs")


def test_directed_order_keeps_every_direction() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 20):
        edges = random_dag(size, 0.4, rng)
        rank = node_rank(edges, size, "directed")
        kept, column = orient(edges, rank)
        assert np.array_equal(kept, edges[:, column]) and len(set(column)) == edges.shape[1]
    assert node_rank(np.zeros((2, 0), dtype=np.int64), 0, "directed").size == 0
    with pytest.raises(ValueError, match="must have no cycle, got one of nodes 1, 3, 2; other ord"):
        node_rank(np.array([[0, 1, 3, 2], [1, 3, 2, 1]]), 4, "directed")
