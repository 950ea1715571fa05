"""Orient a graph as a DAG: a rank per node, edges from low to high rank."""

import numpy as np
import torch

from plstm.checks import check_choice
from plstm.graph.topology import IntArray, find_cycle, node_levels, ranges

ORDERS = ("given", "bfs", "random", "directed")


def node_rank(
    edge_index: IntArray, num_nodes: int, order: str = "bfs", seed: int | None = None
) -> IntArray:
    """Rank of every node, a permutation of 0..N-1.

    Args:
        edge_index: Undirected edges, (2, E), in one or both directions; for "directed", the edges
            of a DAG.
        num_nodes: Number of nodes N.
        order: "given" keeps the node order. "bfs" is canonical: sorted by connected component,
            distance from the root of the component, Weisfeiler-Leman colour, node index; the root
            has the largest degree, then the smallest colour. "random" draws a permutation.
            "directed" is topological: sorted by the longest path to a node, then node index; edges
            keep their directions.
        seed: For "random": the permutation is a fixed function of seed and graph; None draws a new
            one from torch's global generator at every call (augmentation).

    Returns:
        Ranks, (N,).

    Raises:
        ValueError: order is unknown; "directed" edges have a cycle.
    """
    check_choice("node_rank", "order", order, ORDERS)
    if order == "given":
        return np.arange(num_nodes, dtype=np.int64)
    if order == "directed":
        return _topological_rank(edge_index, num_nodes)
    if order == "random":
        return _random_rank(edge_index, num_nodes, seed)
    return _bfs_rank(edge_index, num_nodes)


def drawn_rank(seeds: IntArray, nodes: IntArray) -> IntArray:
    """Random ranks of the nodes of several graphs, each a function of the seed of its graph.

    Args:
        seeds: Seed of the graph of every node, (N,).
        nodes: Index of every node within its graph, (N,).

    Returns:
        Ranks, a permutation of 0..N-1, (N,). The relative order of the nodes of a graph depends
        only on its own seed.
    """
    return _invert(np.argsort(mix(mix(seeds.astype(np.uint64)) ^ nodes.astype(np.uint64))))


def orient(edge_index: IntArray, rank: IntArray) -> tuple[IntArray, IntArray]:
    """Keep every undirected edge once, from low to high rank; drop self-loops and duplicates.

    Args:
        edge_index: Undirected edges, (2, E_in), in one or both directions.
        rank: A permutation of 0..N-1, (N,).

    Returns:
        DAG edges sorted by the ranks of src and dst, (2, E), and the column of edge_index for each,
        (E,): `edge_attr[column]` are its attributes.

    Raises:
        ValueError: rank is not a permutation.
    """
    num_nodes = rank.size
    if not np.array_equal(np.sort(rank), np.arange(num_nodes)):
        raise ValueError(
            f"orient: rank must be a permutation of 0..{num_nodes - 1}, got "
            f"{rank.tolist()[:8]}...; rank the nodes without ties"
        )
    low, high = np.sort(rank[edge_index], axis=0)
    column = np.flatnonzero(low != high)
    key, first = np.unique(low[column] * num_nodes + high[column], return_index=True)
    node = np.argsort(rank)
    return np.stack([node[key // max(num_nodes, 1)], node[key % max(num_nodes, 1)]]), column[first]


def wl_colours(edge_index: IntArray, num_nodes: int) -> np.ndarray:
    """Weisfeiler-Leman colours, starting from the degree, (N,) uint64; invariant to node order.

    A round hashes every colour together with the sum of its neighbors' hashed colours; rounds
    continue while they split colour classes. Expects a simple graph with both directions stored.
    """
    src, dst = edge_index
    colour = mix(np.bincount(dst, minlength=num_nodes).astype(np.uint64))
    classes = 0
    for _ in range(num_nodes):
        now = np.unique(colour).size
        if now == classes:
            break
        classes = now
        neighbors = np.zeros(num_nodes, dtype=np.uint64)
        np.add.at(neighbors, dst, mix(colour)[src])
        colour = mix(colour * np.uint64(3) + neighbors)
    return colour


def mix(x: np.ndarray) -> np.ndarray:
    """Bijective hash of 64-bit integers (the finalizer of SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def simple_both_ways(edge_index: IntArray, num_nodes: int) -> IntArray:
    """Both directions of every edge, once, without self-loops, sorted by src."""
    both = np.concatenate([edge_index, edge_index[::-1]], axis=1)
    both = both[:, both[0] != both[1]]
    key = np.unique(both[0] * num_nodes + both[1])
    return np.stack([key // max(num_nodes, 1), key % max(num_nodes, 1)])


def _bfs_rank(edge_index: IntArray, num_nodes: int) -> IntArray:
    edges = simple_both_ways(edge_index, num_nodes)
    degree = np.bincount(edges[0], minlength=num_nodes)
    colour = wl_colours(edges, num_nodes)
    number = np.arange(num_nodes, dtype=np.int64)
    priority = _invert(np.lexsort((number, colour, -degree)))
    component = _smallest_in_component(edges, priority)
    distance = _distances(edges, num_nodes, np.flatnonzero(component == priority))
    return _invert(np.lexsort((number, colour, distance, component)))


def _invert(order: IntArray) -> IntArray:
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size, dtype=order.dtype)
    return rank


def _smallest_in_component(edges: IntArray, value: IntArray) -> IntArray:
    """Minimum over the connected component of every node."""
    value, (src, dst) = value.copy(), edges
    while True:
        before = value.copy()
        np.minimum.at(value, dst, value[src])
        if np.array_equal(value, before):
            return value


def _distances(edges: IntArray, num_nodes: int, roots: IntArray) -> IntArray:
    """Distance of every node to the root of its component, one round per distance."""
    count = np.bincount(edges[0], minlength=num_nodes)  # edges are sorted by src
    start = np.cumsum(count) - count
    distance = np.full(num_nodes, -1, dtype=np.int64)
    frontier, depth = roots, 0
    while frontier.size:
        distance[frontier] = depth
        reached = edges[1][ranges(start[frontier], count[frontier])]
        frontier, depth = np.unique(reached[distance[reached] < 0]), depth + 1
    return distance


def _topological_rank(edge_index: IntArray, num_nodes: int) -> IntArray:
    level = node_levels(edge_index, num_nodes)
    if num_nodes and level.min() < 0:
        cycle = ", ".join(map(str, find_cycle(edge_index, num_nodes)))
        raise ValueError(
            f"node_rank: with order='directed' edges must have no cycle, got one of nodes {cycle}; "
            "other orders make a DAG of any graph"
        )
    return _invert(np.argsort(level, kind="stable"))


def _random_rank(edge_index: IntArray, num_nodes: int, seed: int | None) -> IntArray:
    if seed is None:
        return torch.randperm(num_nodes).numpy()
    graph = np.ascontiguousarray(edge_index).astype(np.uint64).ravel()
    place = np.arange(graph.size, dtype=np.uint64)
    content = np.bitwise_xor.reduce(mix(graph + mix(place)), initial=np.uint64(num_nodes))
    return np.random.default_rng([seed, int(content)]).permutation(num_nodes).astype(np.int64)
