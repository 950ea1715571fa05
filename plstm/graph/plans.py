"""Precomputed plans of the fast forms of plstm_dag; they depend on the graph only."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from plstm.graph.topology import IntArray, positions_in_group, ranges

# Cost of a product, in elements that "levels" moves in the same time: 3 in the op, the rest for the
# plan. A pair of nodes costs (K + V) / 2, an edge and a pair of "levels" K V. Measured on a CPU,
# forward and backward with 4 heads, on molecules, proteins, paths, grids and complete DAGs.
_PRODUCT = 5
_ONES = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)
_SAMPLES = 64  # bits of a word


class LevelPlan(NamedTuple):
    """Order of the pairs for the recurrent form; reversed, that of the reverse graph."""

    order: Tensor  # (A,) pairs by the level of their outgoing edge
    sizes: Tensor  # (E,) pairs per level, then zeros; always on the CPU


class ReachPlan(NamedTuple):
    """Entries (early edge, late edge) joined by a path along the forward direction of a graph.

    An entry is the sum of products (previous entry) * (transition), level by level. The reverse
    graph has the same entries with the two edges exchanged.
    """

    entries: Tensor  # (3, R): early edge, late edge, index of the pair of nodes
    products: Tensor  # (3, Q): line-graph pair, input entry, output entry
    nodes: Tensor  # (2, P) pairs of nodes: src of early edges, dst of late ones
    sizes: Tensor  # (levels,) products per level; always on the CPU

    @property
    def num_products(self) -> int:
        return self.products.shape[1]

    def pays(self, moves: int, qk_dim: int, v_dim: int) -> bool:
        """Whether "reach" takes no longer than "levels" on a graph with E + A = moves."""
        cost = _PRODUCT * self.num_products + (qk_dim + v_dim) * self.nodes.shape[1] // 2
        return cost <= moves * qk_dim * v_dim


def largest_number_of_products(moves: int, qk_dim: int, v_dim: int) -> int:
    """Largest number of products of plans that may pay."""
    return moves * qk_dim * v_dim // _PRODUCT


Plan = TypeVar("Plan", LevelPlan, ReachPlan)


def apply_to_plan(plan: Plan, function: Callable[[Tensor], Tensor]) -> Plan:
    """Apply a function to all tensors of a plan except the sizes, which loops read."""
    changed = {name: function(x) for name, x in plan._asdict().items() if name != "sizes"}
    return plan._replace(**changed)


def make_reach_plan(
    edge_index: IntArray,
    line_index: IntArray,
    edge_level: IntArray,
    edge_graph: IntArray,
    num_nodes: int,
    limit: int | None = None,
) -> ReachPlan | None:
    """List the entries and the products that compute them.

    Args:
        edge_index: Edges, (2, E).
        line_index: Pairs [incoming edge, outgoing edge], (2, A).
        edge_level: Topological level of every edge, (E,); increases along every pair.
        edge_graph: Graph index of every edge, (E,).
        num_nodes: Number of nodes N.
        limit: Largest number of products.

    Returns:
        The plan, on the CPU; None beyond the limit, which an estimate checks first.
    """
    if limit is not None and estimated_products(line_index, edge_level, edge_graph, limit) > limit:
        return None
    early, late, products, sizes = _closure(line_index, edge_level)
    if limit is not None and products.shape[1] > limit:
        return None
    (src, dst), size = edge_index, max(num_nodes, 1)
    nodes, slot = np.unique(dst[late] * size + src[early], return_inverse=True)
    arrays = np.stack([early, late, slot]), products, np.stack([nodes % size, nodes // size])
    return ReachPlan(*map(torch.from_numpy, (*arrays, np.array(sizes, dtype=np.int64))))


def estimated_products(
    line_index: IntArray, edge_level: IntArray, edge_graph: IntArray, limit: int
) -> float:
    """Approximate number of products of a reach plan; counting stops beyond `limit`.

    There is a product for every pair and every edge from which the incoming edge can be reached. Up
    to 64 of these edges per graph are followed, spread over its levels, one bit each: the count is
    exact for graphs of up to 64 edges.
    """
    reached, weight = _samples(edge_level, edge_graph)
    total = 0.0
    for edges, starts, incoming in _incoming_by_level(line_index, edge_level):
        words = reached[incoming]
        total += float(_count_ones(words) @ weight[edge_graph[incoming]])
        if total > limit:
            break
        reached[edges] |= np.bitwise_or.reduceat(words, starts)
    return total


def _samples(edge_level: IntArray, edge_graph: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """A word per edge, with one bit set if it is followed, and edges per bit for each graph."""
    count = np.bincount(edge_graph)
    order = np.lexsort((edge_level, edge_graph))
    place = np.empty_like(order)
    place[order] = positions_in_group(edge_graph[order], count.size)
    count_here = count[edge_graph]
    bit = place * _SAMPLES // np.maximum(count_here, _SAMPLES)
    before = (place - 1) * _SAMPLES // np.maximum(count_here, _SAMPLES)
    words = np.where(bit > before, np.uint64(1) << bit.astype(np.uint64), np.uint64(0))
    return words, np.maximum(count / _SAMPLES, 1.0)


def _count_ones(words: np.ndarray) -> np.ndarray:
    return _ONES[words.view(np.uint16)].reshape(-1, 4).sum(1, dtype=np.int64)


def _incoming_by_level(
    line_index: IntArray, edge_level: IntArray
) -> list[tuple[IntArray, IntArray, IntArray]]:
    """Outgoing edges of a level, and their concatenated incoming edges, starting at `starts`."""
    incoming, outgoing = line_index
    order = np.lexsort((outgoing, edge_level[outgoing]))
    incoming, outgoing, level = incoming[order], outgoing[order], edge_level[outgoing[order]]
    starts = np.flatnonzero(np.diff(outgoing, prepend=-1))
    levels = np.flatnonzero(np.diff(level[starts], prepend=level[:1] - 1))[1:]
    bounds = starts[levels]
    groups = zip(
        np.split(outgoing[starts], levels),
        np.split(starts, levels),
        np.split(incoming, bounds),
        strict=True,
    )
    return [(edges, first - first[0], before) for edges, first, before in groups if edges.size]


def _closure(
    line_index: IntArray, edge_level: IntArray
) -> tuple[IntArray, IntArray, IntArray, list[int]]:
    """Early and late edge of every entry; products (pair, before, target) and their levels."""
    (incoming, outgoing), num_edges = line_index, edge_level.size
    start, count = np.zeros((2, num_edges), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    early, late, products = empty, [empty], [np.zeros((3, 0), dtype=np.int64)]
    for edges, pairs in _levels(edge_level, outgoing):
        repeat = count[incoming[pairs]]
        before = ranges(start[incoming[pairs]], repeat)
        pairs = np.repeat(pairs, repeat)
        keys = np.concatenate([edges, outgoing[pairs]]) * num_edges
        keys += np.concatenate([edges, early[before]])
        keys, place = np.unique(keys, return_inverse=True)  # by edge, then by early edge
        products.append(np.stack([pairs, before, early.size + place[edges.size :]]))
        late.append(keys // num_edges)
        bounds = np.searchsorted(late[-1], np.append(edges, num_edges))
        start[edges], count[edges] = early.size + bounds[:-1], np.diff(bounds)
        early = np.concatenate([early, keys % num_edges])
    sizes = [part.shape[1] for part in products]
    return early, np.concatenate(late), np.concatenate(products, axis=1), sizes


def _levels(edge_level: IntArray, outgoing: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Edges of every level, ascending, and the pairs that lead into them."""
    values, level = np.unique(edge_level, return_inverse=True)
    groups = []
    for group in (level, level[outgoing]):
        order = np.argsort(group, kind="stable")
        groups.append(np.split(order, np.searchsorted(group[order], np.arange(1, values.size))))
    return list(zip(*groups, strict=True))[: values.size]
