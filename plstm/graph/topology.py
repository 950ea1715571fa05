"""Vectorized algorithms on directed graphs: levels, cycles, consecutive edges (numpy only)."""

import numpy as np

IntArray = np.ndarray  # int64


def ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Concatenate arange(start, start + count) over all pairs, without a Python loop."""
    total = int(counts.sum())
    shift = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return shift + np.arange(total, dtype=np.int64)


def positions_in_group(group: IntArray, num_groups: int) -> IntArray:
    """Rank of every element within its group, in the given order."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=num_groups)
    position = np.empty_like(order)
    position[order] = ranges(np.zeros_like(counts), counts)
    return position


def node_levels(edge_index: IntArray, num_nodes: int) -> IntArray:
    """Length of the longest path that ends in each node; -1 on cycles and after them.

    Peels the graph: each round removes all nodes without remaining incoming edges, so the Python
    loop runs over the depth only and every edge is visited once.

    Args:
        edge_index: Edges, (2, E), row 0 = src.
        num_nodes: Number of nodes N.

    Returns:
        Levels, (N,).
    """
    src, dst = edge_index
    order = np.argsort(src, kind="stable")
    out_count = np.bincount(src, minlength=num_nodes)
    out_start = np.cumsum(out_count) - out_count
    dst_sorted, remaining = dst[order], np.bincount(dst, minlength=num_nodes)
    level = np.full(num_nodes, -1, dtype=np.int64)
    frontier, depth = np.flatnonzero(remaining == 0), 0
    while frontier.size:
        level[frontier] = depth
        reached = dst_sorted[ranges(out_start[frontier], out_count[frontier])]
        np.subtract.at(remaining, reached, 1)
        frontier, depth = np.unique(reached[remaining[reached] == 0]), depth + 1
    return level


def find_cycle(edge_index: IntArray, num_nodes: int) -> list[int]:
    """Nodes of one directed cycle in order, smallest first; empty for an acyclic graph."""
    left = node_levels(edge_index, num_nodes) < 0
    if not left.any():
        return []
    src, dst = edge_index
    inside = left[src] & left[dst]
    predecessor = np.full(num_nodes, -1, dtype=np.int64)
    predecessor[dst[inside]] = src[inside]  # every remaining node has a remaining predecessor
    seen: dict[int, int] = {}
    node = int(np.flatnonzero(left)[0])
    while node not in seen:
        seen[node] = len(seen)
        node = int(predecessor[node])
    cycle = list(seen)[seen[node] :][::-1]
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]


def consecutive_edges(edge_index: IntArray, num_nodes: int) -> IntArray:
    """All pairs (incoming edge, outgoing edge) that meet in a node, (2, A)."""
    src, dst = edge_index
    order = np.argsort(src, kind="stable")
    out_count = np.bincount(src, minlength=num_nodes)
    out_start = np.cumsum(out_count) - out_count
    incoming = np.repeat(np.arange(src.size, dtype=np.int64), out_count[dst])
    return np.stack([incoming, order[ranges(out_start[dst], out_count[dst])]])
