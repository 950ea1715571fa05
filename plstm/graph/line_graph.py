"""The graph a pLSTM runs on: DAG edges, their consecutive pairs, and what follows from them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from plstm.compiler import disable
from plstm.graph.checks import (
    check_batch,
    check_index,
    check_level,
    check_num_graphs,
    check_pairs,
    checked_levels,
)
from plstm.graph.grid import grid_index
from plstm.graph.multitree import prune_to_multitree
from plstm.graph.plans import (
    ReachPlan,
    apply_to_plan,
    largest_number_of_products,
    make_reach_plan,
)
from plstm.graph.topology import consecutive_edges

T = TypeVar("T")
_NO_PLANNING = -1  # limit of a plan


class LineGraph:
    """A DAG, or a packed batch of DAGs, with the pairs of edges along which states move on.

    Args:
        edge_index: Edges, (2, E) int64, row 0 = src, row 1 = dst.
        line_index: Pairs [incoming edge, outgoing edge], (2, A) int64, dst of the one = src of the
            other.
        num_nodes: Number of nodes N.
        batch: Graph of every node, (N,) int64, ascending; None for a single graph.
        edge_level: Topological level of every edge, (E,) int64, rising along every pair; computed
            when missing as the length of the longest path to src.
        num_graphs: Number of graphs; up to the last one with a node if None.

    Raises:
        ValueError: wrong dtype or shape, index out of range, a pair that does not meet in a node,
            an edge between two graphs, a batch that is not ascending or has more graphs than
            num_graphs, or a directed cycle (its nodes are named).
    """

    def __init__(
        self,
        edge_index: Tensor,
        line_index: Tensor,
        num_nodes: int,
        batch: Tensor | None = None,
        *,
        edge_level: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> None:
        check_index("edge_index", edge_index, num_nodes, "nodes")
        check_index("line_index", line_index, edge_index.shape[1], "edges")
        check_batch(edge_index, num_nodes, batch)
        check_num_graphs(batch, num_graphs)
        check_pairs(edge_index, line_index)
        level = checked_levels(edge_index, num_nodes)  # finds a cycle, which pairs may leave out
        if edge_level is not None:
            check_level(edge_index, line_index, edge_level)
            level = edge_level
        self._fill(edge_index, line_index, num_nodes, batch, level, num_graphs)

    @classmethod
    def from_edges(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        batch: Tensor | None = None,
        *,
        num_graphs: int | None = None,
    ) -> "LineGraph":
        """The full line graph of a DAG: all pairs of consecutive edges."""
        check_index("edge_index", edge_index, num_nodes, "nodes")
        pairs = torch.from_numpy(consecutive_edges(edge_index.cpu().numpy(), num_nodes))
        pairs = pairs.to(edge_index.device)
        return cls(edge_index, pairs, num_nodes, batch, num_graphs=num_graphs)

    @classmethod
    def grid(
        cls, shape: Sequence[int], signs: Sequence[int] | None = None, *, num_graphs: int = 1
    ) -> "LineGraph":
        """Regular grids with an edge along every axis, away from one corner, and all pairs.

        Nodes are numbered row-major, grid after grid. Edges are ordered by src, then by direction,
        the last axis first; pairs by the node in the middle, then by the direction of the outgoing
        edge, then by that of the incoming one. `plstm.graph.grid.grid_gates` brings gates of
        (nodes, N) and (nodes, N, N) into this order.

        The multitree of a grid has the paths that go along the first axis, then along the second,
        and so on, one between any two nodes; with two axes that of PLSTM2d with chirality "L".

        Args:
            shape: Nodes along each of N axes, for example (Y, X) or (T, Y, X).
            signs: Of every axis 1 if its edges point along it, -1 against it; all 1 if None.
            num_graphs: Number of such grids.

        Raises:
            ValueError: an empty grid; signs that do not fit.
        """
        index = grid_index(shape, signs, num_graphs)
        nodes = math.prod(shape)
        batch = torch.arange(num_graphs).repeat_interleave(nodes)
        graph, tree = (
            cls.prepared(
                index.edge_index,
                pairs,
                num_graphs * nodes,
                batch,
                edge_level=index.edge_level,
                num_graphs=num_graphs,
            )
            for pairs in (index.line_index, index.line_index[:, index.in_tree])
        )
        graph.take_multitree(tree)
        return graph

    @classmethod
    def prepared(
        cls,
        edge_index: Tensor,
        line_index: Tensor,
        num_nodes: int,
        batch: Tensor | None = None,
        *,
        edge_level: Tensor,
        num_graphs: int | None = None,
    ) -> "LineGraph":
        """Build from arrays known to be right: no checks, no computation.

        Arguments as for the constructor.
        """
        graph = cls.__new__(cls)
        graph._fill(edge_index, line_index, num_nodes, batch, edge_level, num_graphs)
        return graph

    def _fill(
        self,
        edge_index: Tensor,
        line_index: Tensor,
        num_nodes: int,
        batch: Tensor | None,
        edge_level: Tensor,
        num_graphs: int | None,
    ) -> None:
        if num_graphs is None:
            num_graphs = 1 if batch is None else int(batch[-1]) + 1 if batch.numel() else 0
        self.edge_index, self.line_index, self.edge_level = edge_index, line_index, edge_level
        self.num_nodes, self.batch, self.num_graphs = num_nodes, batch, num_graphs
        self.flipped = False
        self._reverse: LineGraph | None = None
        self._is_multitree = False
        self._plans: dict[str, Any] = {}  # of the forward direction

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def num_pairs(self) -> int:
        return self.line_index.shape[1]

    @property
    def device(self) -> torch.device:
        return self.edge_index.device

    @property
    def node_graph(self) -> Tensor:
        """Graph of every node, (N,), zeros for a single graph."""
        if self.batch is not None:
            return self.batch
        return self.edge_index.new_zeros(self.num_nodes)

    @property
    def forward(self) -> "LineGraph":
        """The graph itself, or what it is the reverse of."""
        return self._reverse if self.flipped else self

    def cached(self, key: str, build: Callable[["LineGraph"], T]) -> T:
        """build(self.forward), kept under `key` for both directions as long as the graph lives."""
        plans = self.forward._plans
        if key not in plans:
            plans[key] = build(self.forward)
        return plans[key]

    def reach_plan(self, limit: int | None = None) -> ReachPlan | None:
        """The plan of the sparse parallel form for both directions; made once and kept.

        Args:
            limit: Make it if it has at most this many products.

        Returns:
            None if there is no plan and it is too large for the limit.
        """
        plans = self.forward._plans
        if "reach" not in plans and (
            limit is None or limit > plans.get("reach limit", _NO_PLANNING)
        ):
            plan = _plan(self.forward, limit)
            if plan is None:
                plans["reach limit"] = limit
            else:
                plans["reach"] = plan
        return plans.get("reach")

    def paying_reach_plan(self, qk_dim: int, v_dim: int, planning: bool = True) -> ReachPlan | None:
        """The plan of the sparse parallel form if that form is no slower than the recurrent one.

        Args:
            qk_dim: Width of queries and keys per head.
            v_dim: Width of values per head.
            planning: Make the plan if there is none; else take what is there.
        """
        moves = self.num_edges + self.num_pairs
        limit = largest_number_of_products(moves, qk_dim, v_dim) if planning else _NO_PLANNING
        plan = self.reach_plan(limit)
        return plan if plan is not None and plan.pays(moves, qk_dim, v_dim) else None

    def take_reach_plan(self, plan: ReachPlan | None, qk_dim: int, v_dim: int) -> None:
        """Keep a plan that came with a batch; None if it does not pay at these widths."""
        if plan is None:
            moves = self.num_edges + self.num_pairs
            self._plans["reach limit"] = largest_number_of_products(moves, qk_dim, v_dim)
        else:
            self._plans["reach"] = plan

    def take_multitree(self, tree: "LineGraph") -> None:
        """Keep a multitree that came with a batch."""
        self._plans["multitree"], tree._is_multitree = tree, True

    def reverse(self) -> "LineGraph":
        """The same graph with all edges and pairs flipped; edges and pairs keep their numbers.

        Its levels are the negative ones of this graph.
        """
        if self._reverse is None:
            back = LineGraph.prepared(
                self.edge_index.flip(0),
                self.line_index.flip(0),
                self.num_nodes,
                self.batch,
                edge_level=-self.edge_level,
                num_graphs=self.num_graphs,
            )
            back.flipped, back._reverse, back._is_multitree = True, self, self._is_multitree
            self._reverse = back
        return self._reverse

    def multitree(self) -> "LineGraph":
        """The same edges with pairs left out until any two edges are joined by at most one path.

        The multitree of the reverse is the reverse of the multitree. Memory grows as the square of
        the edges of the largest graph; see `plstm.graph.multitree`.

        Raises:
            ValueError: a graph is too large.
        """
        if self._is_multitree:
            return self
        tree = self.cached("multitree", _pruned)
        return tree.reverse() if self.flipped else tree

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LineGraph":
        """Copy to another device with all plans, self if it is there already."""
        if torch.device(device) == self.device:
            return self
        return self.apply(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "LineGraph":
        """Copy in pinned memory, from where `to` need not block."""
        return self.apply(Tensor.pin_memory)

    def apply(self, function: Callable[[Tensor], Tensor]) -> "LineGraph":
        """Copy with a function applied to every tensor, those of plans included."""
        if self.flipped:
            return self.forward.apply(function).reverse()
        graph = LineGraph.prepared(
            function(self.edge_index),
            function(self.line_index),
            self.num_nodes,
            None if self.batch is None else function(self.batch),
            edge_level=function(self.edge_level),
            num_graphs=self.num_graphs,
        )
        graph._is_multitree = self._is_multitree
        graph._plans = {key: _applied(plan, function) for key, plan in self._plans.items()}
        return graph

    def __repr__(self) -> str:
        return (
            f"LineGraph(num_graphs={self.num_graphs}, num_nodes={self.num_nodes}, "
            f"num_edges={self.num_edges}, num_pairs={self.num_pairs})"
        )


@disable  # numpy, whose sizes depend on the edges
def _plan(graph: LineGraph, limit: int | None) -> ReachPlan | None:
    edge_graph = graph.node_graph.index_select(0, graph.edge_index[0])
    tensors = graph.edge_index, graph.line_index, graph.edge_level, edge_graph
    plan = make_reach_plan(*(x.cpu().numpy() for x in tensors), graph.num_nodes, limit)
    return plan and apply_to_plan(plan, lambda x: x.to(graph.device))


@disable
def _pruned(graph: LineGraph) -> LineGraph:
    edge_graph = graph.node_graph[graph.edge_index[0]]
    arrays = (graph.line_index, graph.edge_level, graph.edge_index[0], edge_graph)
    keep = prune_to_multitree(*(x.cpu().numpy() for x in arrays))
    tree = LineGraph.prepared(
        graph.edge_index,
        graph.line_index[:, torch.from_numpy(keep).to(graph.device)],
        graph.num_nodes,
        graph.batch,
        edge_level=graph.edge_level,
        num_graphs=graph.num_graphs,
    )
    tree._is_multitree = True
    return tree


def _applied(plan: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """What `LineGraph._plans` holds, moved."""
    if isinstance(plan, LineGraph):
        return plan.apply(function)
    return apply_to_plan(plan, function) if isinstance(plan, tuple) else plan
