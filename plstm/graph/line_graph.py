"""The graph a pLSTM runs on: DAG edges, their consecutive pairs, and what follows from them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from plstm.graph.multitree import prune_to_multitree
from plstm.graph.topology import consecutive_edges, find_cycle, node_levels

T = TypeVar("T")
_LISTED = 8  # nodes or pairs named in a message


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
        _check_index("edge_index", edge_index, num_nodes, "nodes")
        _check_index("line_index", line_index, edge_index.shape[1], "edges")
        _check_batch(edge_index, num_nodes, batch)
        _check_num_graphs(batch, num_graphs)
        _check_pairs(edge_index, line_index)
        level = _levels(edge_index, num_nodes)  # also finds a cycle, which pairs may leave out
        if edge_level is not None:
            _check_level(edge_index, line_index, edge_level)
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
        _check_index("edge_index", edge_index, num_nodes, "nodes")
        pairs = torch.from_numpy(consecutive_edges(edge_index.cpu().numpy(), num_nodes))
        pairs = pairs.to(edge_index.device)
        return cls(edge_index, pairs, num_nodes, batch, num_graphs=num_graphs)

    @classmethod
    def prepared(
        cls,
        edge_index: Tensor,
        line_index: Tensor,
        num_nodes: int,
        batch: Tensor | None = None,
        *,
        edge_level: Tensor,
        reverse_edge_level: Tensor | None = None,
        tree_index: Tensor | None = None,
        num_graphs: int | None = None,
    ) -> "LineGraph":
        """Build from arrays known to be right (data prepared by ToDag): no checks, no computation.

        Args:
            edge_index: As in the constructor.
            line_index: As in the constructor.
            num_nodes: As in the constructor.
            batch: As in the constructor.
            edge_level: As in the constructor.
            reverse_edge_level: Levels of the same edges with all directions flipped, (E,).
            tree_index: Pairs that stay in the multitree, (2, A').
            num_graphs: Number of graphs in the batch.
        """
        graph = cls.__new__(cls)
        graph._fill(edge_index, line_index, num_nodes, batch, edge_level, num_graphs)
        graph._reverse_level, graph._both["tree_index"] = reverse_edge_level, tree_index
        return graph

    def _fill(
        self,
        edge_index: Tensor,
        line_index: Tensor,
        num_nodes: int,
        batch: Tensor | None,
        edge_level: Tensor,
        num_graphs: int | None = None,
    ) -> None:
        self.edge_index, self.line_index = edge_index, line_index
        self.num_nodes, self.num_edges = int(num_nodes), edge_index.shape[1]
        if num_graphs is None:
            num_graphs = 1 if batch is None else int(batch[-1]) + 1 if batch.numel() else 0
        self.batch, self.num_graphs, self.edge_level = batch, num_graphs, edge_level
        self._reverse_level: Tensor | None = None
        self._reverse: LineGraph | None = None
        self._is_multitree = False
        self.flipped = False
        self.forward_arrays = (edge_index, line_index, edge_level)
        self._cache: dict[str, object] = {}  # of this direction
        self._both: dict[str, Any] = {"tree_index": None}  # of both, in the forward direction

    @property
    def device(self) -> torch.device:
        return self.edge_index.device

    @property
    def node_graph(self) -> Tensor:
        """Graph of every node, (N,), zeros for a single graph."""
        if self.batch is not None:
            return self.batch
        return self.edge_index.new_zeros(self.num_nodes)

    def cached(self, key: str, build: Callable[["LineGraph"], T], *, both_ways: bool = False) -> T:
        """build(self), kept under `key` as long as this object lives.

        Args:
            key: Name of the result.
            build: Called when there is none.
            both_ways: Share the result with the reverse: build looks at `forward_arrays` only.
        """
        cache = self._both if both_ways else self._cache
        if key not in cache:
            cache[key] = build(self)
        return cache[key]

    def reverse(self) -> "LineGraph":
        """The same graph with all edges and pairs flipped; edges and pairs keep their numbers."""
        if self._reverse is None:
            if self._reverse_level is None:
                self._reverse_level = _levels(self.edge_index.flip(0), self.num_nodes)
            self._reverse = LineGraph.prepared(
                self.edge_index.flip(0),
                self.line_index.flip(0),
                self.num_nodes,
                self.batch,
                edge_level=self._reverse_level,
                reverse_edge_level=self.edge_level,
                num_graphs=self.num_graphs,
            )
            self._reverse._both, self._reverse.forward_arrays = self._both, self.forward_arrays
            self._reverse.flipped = not self.flipped
            self._reverse._is_multitree = self._is_multitree
        return self._reverse

    def multitree(self) -> "LineGraph":
        """The same edges with pairs left out until any two edges are joined by at most one path.

        The multitree of the reverse is the reverse of the multitree.
        """
        if self._is_multitree:
            return self
        tree = self.cached("multitree", LineGraph._forward_multitree, both_ways=True)
        return tree.reverse() if self.flipped else tree

    def to(self, device: torch.device | str) -> "LineGraph":
        """Copy to another device, self if it is there already.

        Levels and multitree come along; plans of ops are made there when they are asked for.
        """
        if torch.device(device) == self.device:
            return self

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        graph = LineGraph.prepared(
            move(self.edge_index),
            move(self.line_index),
            self.num_nodes,
            move(self.batch),
            edge_level=move(self.edge_level),
            reverse_edge_level=move(self._reverse_level),
            num_graphs=self.num_graphs,
        )
        graph.flipped, graph._is_multitree = self.flipped, self._is_multitree
        tree = self._both.get("multitree")
        tree_index = self._both["tree_index"] if tree is None else tree.line_index
        graph._both = {"tree_index": move(tree_index)}
        graph.forward_arrays = tuple(move(x) for x in self.forward_arrays)
        return graph

    def __repr__(self) -> str:
        return (
            f"LineGraph(num_graphs={self.num_graphs}, num_nodes={self.num_nodes}, "
            f"num_edges={self.num_edges}, num_pairs={self.line_index.shape[1]})"
        )

    def _forward_multitree(self) -> "LineGraph":
        edge_index, line_index, edge_level = self.forward_arrays
        tree_index = self._both["tree_index"]
        if tree_index is None:
            edge_graph = self.node_graph[edge_index[0]]
            arrays = (line_index, edge_level, edge_index[0], edge_graph)
            keep = prune_to_multitree(*(x.cpu().numpy() for x in arrays))
            tree_index = line_index[:, torch.from_numpy(keep).to(line_index.device)]
        tree = LineGraph.prepared(
            edge_index,
            tree_index,
            self.num_nodes,
            self.batch,
            edge_level=edge_level,
            reverse_edge_level=self.edge_level if self.flipped else self._reverse_level,
            num_graphs=self.num_graphs,
        )
        tree._is_multitree = True
        return tree


def line_graph(data: Any) -> LineGraph:
    """The LineGraph of a DagData or of a PyG batch of them, without computing anything.

    Args:
        data: Object with the fields of DagData; `batch` and `num_graphs` too if it is a batch.

    Raises:
        ValueError: the data have not been prepared.
    """
    if getattr(data, "dag_edge_index", None) is None:
        raise ValueError(
            f"line_graph: data must be a DagData or a batch of them, got "
            f"{type(data).__name__} without dag_edge_index; apply plstm.graph.ToDag first"
        )
    batch = getattr(data, "batch", None)
    return LineGraph.prepared(
        data.dag_edge_index,
        data.line_index,
        data.num_nodes,
        batch,
        edge_level=data.edge_level,
        reverse_edge_level=data.reverse_edge_level,
        tree_index=data.tree_index,
        num_graphs=1 if batch is None else getattr(data, "num_graphs", None),
    )


def _levels(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Longest path to the src of every edge, (E,); a ValueError names the nodes of a cycle."""
    edges = edge_index.cpu().numpy()
    level = node_levels(edges, num_nodes)
    if (level < 0).any():
        cycle = find_cycle(edges, num_nodes)
        shown = " -> ".join(map(str, cycle[:_LISTED])) + (" ..." if len(cycle) > _LISTED else "")
        raise ValueError(
            f"LineGraph: edge_index must have no directed cycle, got one through nodes {shown}; "
            "orient the edges by a node order, as plstm.graph.ToDag does"
        )
    return torch.from_numpy(level[edges[0]]).to(edge_index.device)


def _check_index(name: str, index: Tensor, size: int, what: str) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"LineGraph: {name} must be an int64 tensor, got {got}; use .long()")
    if index.ndim != 2 or index.shape[0] != 2:
        raise ValueError(
            f"LineGraph: {name} must have shape (2, count), got {tuple(index.shape)}; "
            "row 0 is where a pair starts, row 1 where it ends"
        )
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
        raise ValueError(
            f"LineGraph: {name} must lie in 0..{size - 1} ({size} {what}), got values from "
            f"{int(index.min())} to {int(index.max())}; check the offsets of a packed batch"
        )


def _check_batch(edge_index: Tensor, num_nodes: int, batch: Tensor | None) -> None:
    if batch is None:
        return
    if batch.dtype != torch.int64 or batch.shape != (num_nodes,):
        raise ValueError(
            f"LineGraph: batch must be int64 of shape ({num_nodes},), got {batch.dtype} of shape "
            f"{tuple(batch.shape)}; it names the graph of every node"
        )
    if num_nodes and (int(batch[0]) < 0 or bool((batch[1:] < batch[:-1]).any())):
        raise ValueError(
            f"LineGraph: batch must be ascending from 0 or more, got "
            f"{batch.tolist()[:_LISTED]}...; put the nodes of one graph side by side"
        )
    crossing = batch[edge_index[0]] != batch[edge_index[1]]
    if bool(crossing.any()):
        shown = edge_index[:, crossing][:, :_LISTED].T.tolist()
        raise ValueError(
            f"LineGraph: every edge must stay inside one graph of batch, got edges {shown} between "
            "two; check the node offsets of edge_index"
        )


def _check_num_graphs(batch: Tensor | None, num_graphs: int | None) -> None:
    seen = 1 if batch is None else int(batch[-1]) + 1 if batch.numel() else 0
    if num_graphs is not None and (num_graphs < seen or (batch is None and num_graphs != 1)):
        raise ValueError(
            f"LineGraph: num_graphs must be at least the {seen} graphs of batch, and 1 without "
            f"one, got {num_graphs}; count graphs without nodes too"
        )


def _check_pairs(edge_index: Tensor, line_index: Tensor) -> None:
    apart = edge_index[1][line_index[0]] != edge_index[0][line_index[1]]
    if bool(apart.any()):
        shown = line_index[:, apart][:, :_LISTED].T.tolist()
        raise ValueError(
            "LineGraph: dst of the incoming edge must be src of the outgoing edge, got pairs "
            f"{shown} that do not meet; row 0 of line_index is the incoming edge"
        )


def _check_level(edge_index: Tensor, line_index: Tensor, edge_level: Tensor) -> None:
    if edge_level.dtype != torch.int64 or edge_level.shape != edge_index.shape[1:]:
        raise ValueError(
            f"LineGraph: edge_level must be int64 of shape ({edge_index.shape[1]},), got "
            f"{edge_level.dtype} of shape {tuple(edge_level.shape)}; leave it out, "
            "and it is computed"
        )
    flat = edge_level[line_index[0]] >= edge_level[line_index[1]]
    if bool(flat.any()) or bool((edge_level < 0).any()):
        shown = line_index[:, flat][:, :_LISTED].T.tolist()
        raise ValueError(
            f"LineGraph: edge_level must be 0 or more and rise along every pair, got pairs {shown} "
            "where it does not; leave it out, and it is computed"
        )
