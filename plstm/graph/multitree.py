"""Prune a line graph to a multitree: at most one directed path between any two edges."""

import numpy as np

from plstm.graph.topology import IntArray, positions_in_group

_WORD = 64  # bits per word of an ancestor set
MAX_BYTES = 2**32  # of all ancestor sets


def prune_to_multitree(
    line_index: IntArray,
    edge_level: IntArray,
    edge_src: IntArray,
    edge_graph: IntArray | None = None,
) -> np.ndarray:
    """Choose the line-graph pairs that stay in the multitree of mode D.

    Edges are visited by level, all edges of one level at once. Every edge takes incoming edges one
    by one, as long as their ancestor sets (themselves included) are disjoint from all sets it has
    taken: then two kept paths never meet twice. Edges with many ancestors are tried first. The list
    is rotated by the position of the edge among the outgoing edges of its source node, so that
    sibling edges prefer different incoming edges and together continue more of them.

    An ancestor set has one bit per edge of its graph: E^2 / 8 bytes for a graph of E edges, at most
    MAX_BYTES.

    Args:
        line_index: Pairs [incoming edge, outgoing edge], (2, A).
        edge_level: Topological level of every edge, (E,); increases along every pair.
        edge_src: Source node of every edge, (E,).
        edge_graph: Graph index of every edge in a packed batch, (E,).

    Returns:
        Mask of the pairs to keep, (A,) bool.

    Raises:
        ValueError: the ancestor sets need more memory than MAX_BYTES.
    """
    num_edges, num_pairs = edge_level.size, line_index.shape[1]
    keep = np.zeros(num_pairs, dtype=bool)
    if num_pairs == 0:
        return keep
    ancestors, size = _singletons(num_edges, edge_graph), np.ones(num_edges, dtype=np.int64)
    sibling = positions_in_group(edge_src, int(edge_src.max()) + 1)
    by_level = np.argsort(edge_level[line_index[1]], kind="stable")
    level_of_pair = edge_level[line_index[1]][by_level]
    bounds = np.flatnonzero(np.diff(level_of_pair)) + 1
    for pairs in np.split(by_level, bounds):
        _choose_level(pairs, line_index, ancestors, size, sibling, keep)
    return keep


def _choose_level(
    pairs: IntArray,
    line_index: IntArray,
    ancestors: np.ndarray,
    size: IntArray,
    sibling: IntArray,
    keep: np.ndarray,
) -> None:
    """Choose pairs into the edges of one level; updates ancestors, size and keep."""
    incoming, outgoing = line_index[:, pairs]
    order = np.lexsort((incoming, -size[incoming], outgoing))
    pairs, incoming, outgoing = pairs[order], incoming[order], outgoing[order]
    edges, start, count = np.unique(outgoing, return_index=True, return_counts=True)
    taken = ancestors[edges]
    for turn in range(int(count.max())):
        active = np.flatnonzero(count > turn)
        at = start[active] + (turn + sibling[edges[active]]) % count[active]
        candidate = ancestors[incoming[at]]
        free = ~(candidate & taken[active]).any(1)
        taken[active[free]] |= candidate[free]
        size[edges[active[free]]] += size[incoming[at[free]]]  # disjoint sets
        keep[pairs[at[free]]] = True
    ancestors[edges] = taken


def _singletons(num_edges: int, edge_graph: IntArray | None) -> np.ndarray:
    """Ancestor sets {e} as bit rows over the edges of the same graph, (E, words) uint64."""
    if edge_graph is None:
        bit = np.arange(num_edges, dtype=np.int64)
    else:
        bit = positions_in_group(edge_graph, int(edge_graph.max()) + 1)
    words = int(bit.max()) // _WORD + 1
    if num_edges * words * 8 > MAX_BYTES:
        raise ValueError(
            f"prune_to_multitree: ancestor sets must fit into {MAX_BYTES:,} bytes, got "
            f"{num_edges * words * 8:,} bytes for {num_edges:,} edges, {int(bit.max()) + 1:,} of "
            'them in one graph; use mode "P", which needs no multitree, or smaller graphs'
        )
    sets = np.zeros((num_edges, words), dtype=np.uint64)
    sets[np.arange(num_edges), bit // _WORD] = np.uint64(1) << (bit % _WORD).astype(np.uint64)
    return sets
