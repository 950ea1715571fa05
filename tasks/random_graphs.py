"""Connected random graphs of ten families, each a function of its random numbers."""

import math
from collections.abc import Callable

import networkx as nx
import numpy as np
from scipy.sparse.csgraph import connected_components

Rng = np.random.Generator


def draw_graph(rng: Rng, num_nodes: int, rewired: float) -> np.ndarray:
    """Adjacency matrix of a connected graph of a family drawn by `SHARES`, (N, N) of 0 and 1.

    Its nodes are numbered at random. What is not connected is drawn again, of the same family.

    Args:
        rng: Source of random numbers.
        num_nodes: Number of nodes N, 2 or more.
        rewired: Share of the edges that are taken away; as many are put elsewhere, on average.

    Source: arXiv 2004.05718, where graphs need not be connected.
    """
    draw = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
    while True:
        graph = rewire(rng, nx.to_numpy_array(draw(rng, num_nodes), dtype=np.int64), rewired)
        if connected_components(graph, directed=False, return_labels=False) == 1:
            order = rng.permutation(num_nodes)
            return graph[np.ix_(order, order)]


def rewire(rng: Rng, adjacency: np.ndarray, share: float) -> np.ndarray:
    """Take a share of the edges away, and put as many elsewhere on average."""
    pairs = np.triu(np.ones_like(adjacency), 1)
    edges = (adjacency * pairs).sum()
    missing = pairs.sum() - edges
    # With few missing edges, fewer are moved, so that the number of edges stays.
    moved = share * min(edges, missing)
    chance = np.where(adjacency, moved / max(edges, 1), moved / max(missing, 1))
    toggled = (rng.random(adjacency.shape) < chance) * pairs
    return adjacency ^ (toggled + toggled.T)


def erdos_renyi(rng: Rng, num_nodes: int) -> nx.Graph:
    """Every edge with the same probability, drawn from 0 to 1."""
    return nx.gnp_random_graph(num_nodes, rng.random(), seed=_seed(rng))


def barabasi_albert(rng: Rng, num_nodes: int) -> nx.Graph:
    """Nodes come with 1 to N - 1 edges, a number drawn once, to nodes that have many."""
    return nx.barabasi_albert_graph(num_nodes, int(rng.integers(1, num_nodes)), seed=_seed(rng))


def grid(rng: Rng, num_nodes: int) -> nx.Graph:
    """Rows and columns, as square as their product allows."""
    return nx.grid_2d_graph(*_factors(num_nodes))


def caveman(rng: Rng, num_nodes: int) -> nx.Graph:
    """Cliques on a ring, about as many as each has nodes."""
    cliques, size = _factors(num_nodes)
    return nx.connected_caveman_graph(cliques, size)


def tree(rng: Rng, num_nodes: int) -> nx.Graph:
    """Nodes come with one edge each, to nodes that have many: degrees fall with their cube."""
    return nx.barabasi_albert_graph(num_nodes, 1, seed=_seed(rng))


def ladder(rng: Rng, num_nodes: int) -> nx.Graph:
    """Two lines joined by rungs; of an odd number the last node hangs on the first."""
    graph = nx.ladder_graph(num_nodes // 2)
    if num_nodes % 2:
        graph.add_edge(0, num_nodes - 1)
    return graph


def line(rng: Rng, num_nodes: int) -> nx.Graph:
    """Nodes in a row."""
    return nx.path_graph(num_nodes)


def star(rng: Rng, num_nodes: int) -> nx.Graph:
    """One node in the middle of all others."""
    return nx.star_graph(num_nodes - 1)


def caterpillar(rng: Rng, num_nodes: int) -> nx.Graph:
    """A line of drawn length, on which the other nodes hang."""
    spine = int(rng.integers(1, num_nodes))
    graph = nx.path_graph(spine)
    _hang(rng, graph, range(spine, num_nodes), range(spine))
    return graph


def lobster(rng: Rng, num_nodes: int) -> nx.Graph:
    """A caterpillar of a drawn number of nodes, on whose legs the other nodes hang."""
    spine = int(rng.integers(1, num_nodes))
    legs = int(rng.integers(spine + 1, num_nodes + 1))
    graph = nx.path_graph(spine)
    _hang(rng, graph, range(spine, legs), range(spine))
    _hang(rng, graph, range(legs, num_nodes), range(spine, legs))
    return graph


SHARES: dict[Callable[[Rng, int], nx.Graph], float] = {
    erdos_renyi: 0.2,
    barabasi_albert: 0.2,
    grid: 0.05,
    caveman: 0.05,
    tree: 0.15,
    ladder: 0.05,
    line: 0.05,
    star: 0.05,
    caterpillar: 0.1,
    lobster: 0.1,
}


def _seed(rng: Rng) -> int:
    return int(rng.integers(2**32))  # networkx is slow with a Generator of NumPy


def _hang(rng: Rng, graph: nx.Graph, nodes: range, on: range) -> None:
    graph.add_edges_from((node, int(rng.integers(on.start, on.stop))) for node in nodes)


def _factors(number: int) -> tuple[int, int]:
    """The two factors that differ least, the smaller one first."""
    small = max(i for i in range(1, math.isqrt(number) + 1) if number % i == 0)
    return small, number // small
