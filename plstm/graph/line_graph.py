"""The graph of a pLSTM: DAG edges, pairs of consecutive edges, and derived quantities."""

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
    """A DAG, or a packed batch of DAGs, with the pairs of edges along which states move.

    Args:
        edge_index: Edges, (2, E) int64, row 0 = src, row 1 = dst.
        line_index: Pairs [incoming edge, outgoing edge], (2, A) int64; dst of the first is src of
            the second.
        num_nodes: Number of nodes N.
        batch: Graph index of every node, (N,) int64, ascending; None for a single graph.
        edge_level: Topological level of every edge, (E,) int64, increasing along every pair; by
            default the length of the longest path to src.
        num_graphs: Number of graphs; if None, up to the last graph with a node.

    Raises:
        ValueError: wrong dtype or shape, index out of range, a pair whose edges do not meet, an
            edge between two graphs, a batch that is not ascending or has more graphs than
            num_graphs, or a directed cycle (the message lists its nodes).
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
        level = checked_levels(edge_index, num_nodes)  # finds cycles that have no pairs
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
        """Regular grids with an edge along every axis, away from a corner, and all pairs.

        Nodes are in row-major order, grid by grid. Edges are sorted by src, then by direction, the
        last axis first; pairs by the node in the middle, then by the direction of the outgoing
        edge, then by that of the incoming one. `plstm.graph.grid.grid_gates` converts gates of
        (nodes, N) and (nodes, N, N) to this order.

        The multitree of a grid has the paths that follow the first axis, then the second, and so
        on, one between any two nodes; with two axes it is that of PLSTM2d with chirality "L".

        Args:
            shape: Number of nodes along each of N axes, for example (Y, X) or (T, Y, X).
            signs: For every axis 1 if its edges point along it, -1 against it; all 1 if None.
            num_graphs: Number of grids.

        Raises:
            ValueError: an empty grid; invalid signs.
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
        """Build from valid arrays, without checks or computation.

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
        """Graph index of every node, (N,), zeros for a single graph."""
        if self.batch is not None:
            return self.batch
        return self.edge_index.new_zeros(self.num_nodes)

    @property
    def forward(self) -> "LineGraph":
        """The graph itself, or the graph of which it is the reverse."""
        return self._reverse if self.flipped else self

    def cached(self, key: str, build: Callable[["LineGraph"], T]) -> T:
        """build(self.forward), cached under `key` for both directions."""
        plans = self.forward._plans
        if key not in plans:
            plans[key] = build(self.forward)
        return plans[key]

    def reach_plan(self, limit: int | None = None) -> ReachPlan | None:
        """The plan of the sparse parallel form for both directions, cached.

        Args:
            limit: Largest number of products of a new plan.

        Returns:
            The plan; None if it does not exist and exceeds the limit.
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
        """The plan of the sparse parallel form if it is at least as fast as the recurrent form.

        Args:
            qk_dim: Key width per head.
            v_dim: Value width per head.
            planning: Make the plan if it does not exist.
        """
        moves = self.num_edges + self.num_pairs
        limit = largest_number_of_products(moves, qk_dim, v_dim) if planning else _NO_PLANNING
        plan = self.reach_plan(limit)
        return plan if plan is not None and plan.pays(moves, qk_dim, v_dim) else None

    def take_reach_plan(self, plan: ReachPlan | None, qk_dim: int, v_dim: int) -> None:
        """Set a plan that comes with a batch; None means that it does not pay at these widths."""
        if plan is None:
            moves = self.num_edges + self.num_pairs
            self._plans["reach limit"] = largest_number_of_products(moves, qk_dim, v_dim)
        else:
            self._plans["reach"] = plan

    def take_multitree(self, tree: "LineGraph") -> None:
        """Set a multitree that comes with a batch."""
        self._plans["multitree"], tree._is_multitree = tree, True

    def reverse(self) -> "LineGraph":
        """The same graph with all edges and pairs reversed; edges and pairs keep their indices.

        Its levels are the negative levels of this graph.
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
        """The same edges without some pairs, so that at most one path joins any two edges.

        The multitree of the reverse is the reverse of the multitree. Memory grows with the square
        of the edges of the largest graph; see `plstm.graph.multitree`.

        Raises:
            ValueError: a graph is too large.
        """
        if self._is_multitree:
            return self
        tree = self.cached("multitree", _pruned)
        return tree.reverse() if self.flipped else tree

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LineGraph":
        """Copy to another device with all plans; self if it is already there."""
        if torch.device(device) == self.device:
            return self
        return self.apply(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "LineGraph":
        """Copy to pinned memory, so that `to` can be asynchronous."""
        return self.apply(Tensor.pin_memory)

    def apply(self, function: Callable[[Tensor], Tensor]) -> "LineGraph":
        """Copy with a function applied to every tensor, including plans."""
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


@disable  # numpy, with sizes that depend on the edges
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
    """Apply a function to a value of `LineGraph._plans`."""
    if isinstance(plan, LineGraph):
        return plan.apply(function)
    return apply_to_plan(plan, function) if isinstance(plan, tuple) else plan
