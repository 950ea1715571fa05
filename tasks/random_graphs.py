"""Connected random graphs of ten families, each a function of a random generator."""

import math
from collections.abc import Callable

import networkx as nx
import numpy as np
from scipy.sparse.csgraph import connected_components

Rng = np.random.Generator


def draw_graph(rng: Rng, num_nodes: int, rewired: float) -> np.ndarray:
    """Adjacency matrix (N, N) of a connected graph from a family drawn with `SHARES`.

    The node order is random. Graphs that are not connected are drawn again from the same family.

    Args:
        rng: Random generator.
        num_nodes: Number of nodes N, 2 or more.
        rewired: Fraction of the edges to remove; equally many are added elsewhere, on average.

    Source: arXiv 2004.05718, where graphs need not be connected.
    """
    draw = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
    while True:
        graph = rewire(rng, nx.to_numpy_array(draw(rng, num_nodes), dtype=np.int64), rewired)
        if connected_components(graph, directed=False, return_labels=False) == 1:
            order = rng.permutation(num_nodes)
            return graph[np.ix_(order, order)]


def rewire(rng: Rng, adjacency: np.ndarray, share: float) -> np.ndarray:
    """Remove a fraction of the edges, and add equally many elsewhere on average."""
    pairs = np.triu(np.ones_like(adjacency), 1)
    edges = (adjacency * pairs).sum()
    missing = pairs.sum() - edges
    # In nearly complete graphs fewer edges are moved, to keep their number.
    moved = share * min(edges, missing)
    chance = np.where(adjacency, moved / max(edges, 1), moved / max(missing, 1))
    toggled = (rng.random(adjacency.shape) < chance) * pairs
    return adjacency ^ (toggled + toggled.T)


def erdos_renyi(rng: Rng, num_nodes: int) -> nx.Graph:
    """Erdős-Rényi: every edge with the same probability, uniform in [0, 1]."""
    return nx.gnp_random_graph(num_nodes, rng.random(), seed=_seed(rng))


def barabasi_albert(rng: Rng, num_nodes: int) -> nx.Graph:
    """Barabási-Albert: new nodes attach by degree, with 1 to N - 1 edges each."""
    return nx.barabasi_albert_graph(num_nodes, int(rng.integers(1, num_nodes)), seed=_seed(rng))


def grid(rng: Rng, num_nodes: int) -> nx.Graph:
    """Grid, as square as the number of nodes allows."""
    return nx.grid_2d_graph(*_factors(num_nodes))


def caveman(rng: Rng, num_nodes: int) -> nx.Graph:
    """Caveman graph: a ring of cliques, about as many as nodes per clique."""
    cliques, size = _factors(num_nodes)
    return nx.connected_caveman_graph(cliques, size)


def tree(rng: Rng, num_nodes: int) -> nx.Graph:
    """Tree where new nodes attach by degree, with degrees in a power law of exponent 3."""
    return nx.barabasi_albert_graph(num_nodes, 1, seed=_seed(rng))


def ladder(rng: Rng, num_nodes: int) -> nx.Graph:
    """Ladder; if the number of nodes is odd, the last is attached to the first."""
    graph = nx.ladder_graph(num_nodes // 2)
    if num_nodes % 2:
        graph.add_edge(0, num_nodes - 1)
    return graph


def line(rng: Rng, num_nodes: int) -> nx.Graph:
    """Line."""
    return nx.path_graph(num_nodes)


def star(rng: Rng, num_nodes: int) -> nx.Graph:
    """Star."""
    return nx.star_graph(num_nodes - 1)


def caterpillar(rng: Rng, num_nodes: int) -> nx.Graph:
    """Caterpillar: a line of random length, with the other nodes attached to it."""
    spine = int(rng.integers(1, num_nodes))
    graph = nx.path_graph(spine)
    _hang(rng, graph, range(spine, num_nodes), range(spine))
    return graph


def lobster(rng: Rng, num_nodes: int) -> nx.Graph:
    """Lobster: a caterpillar of random size, with the other nodes attached to its legs."""
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
    """The two factors with the smallest difference, the smaller one first."""
    small = max(i for i in range(1, math.isqrt(number) + 1) if number % i == 0)
    return small, number // small
