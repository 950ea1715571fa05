"""Checks of the arrays that make a LineGraph; every message begins with its name."""

import torch
from torch import Tensor

from plstm.compiler import disable
from plstm.graph.topology import find_cycle, node_levels

_LISTED = 8  # nodes or pairs named in a message


@disable
def checked_levels(edge_index: Tensor, num_nodes: int) -> Tensor:
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


def check_index(name: str, index: Tensor, size: int, what: str) -> None:
    """Raise a ValueError unless an index of pairs is int64, (2, count), and in 0..size - 1."""
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


def check_batch(edge_index: Tensor, num_nodes: int, batch: Tensor | None) -> None:
    """Raise a ValueError unless the graph of every node ascends and no edge joins two graphs."""
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


def check_num_graphs(batch: Tensor | None, num_graphs: int | None) -> None:
    """Raise a ValueError if there are more graphs with nodes than num_graphs."""
    seen = 1 if batch is None else int(batch[-1]) + 1 if batch.numel() else 0
    if num_graphs is not None and (num_graphs < seen or (batch is None and num_graphs != 1)):
        raise ValueError(
            f"LineGraph: num_graphs must be at least the {seen} graphs of batch, and 1 without "
            f"one, got {num_graphs}; count graphs without nodes too"
        )


def check_pairs(edge_index: Tensor, line_index: Tensor) -> None:
    """Raise a ValueError unless the edges of every pair meet in a node."""
    apart = edge_index[1][line_index[0]] != edge_index[0][line_index[1]]
    if bool(apart.any()):
        shown = line_index[:, apart][:, :_LISTED].T.tolist()
        raise ValueError(
            "LineGraph: dst of the incoming edge must be src of the outgoing edge, got pairs "
            f"{shown} that do not meet; row 0 of line_index is the incoming edge"
        )


def check_level(edge_index: Tensor, line_index: Tensor, edge_level: Tensor) -> None:
    """Raise a ValueError unless the levels of edges rise along every pair."""
    if edge_level.dtype != torch.int64 or edge_level.shape != edge_index.shape[1:]:
        raise ValueError(
            f"LineGraph: edge_level must be int64 of shape ({edge_index.shape[1]},), got "
            f"{edge_level.dtype} of shape {tuple(edge_level.shape)}; leave it out, "
            "and it is computed"
        )
    flat = edge_level[line_index[0]] >= edge_level[line_index[1]]
    if bool(flat.any()):
        shown = line_index[:, flat][:, :_LISTED].T.tolist()
        raise ValueError(
            f"LineGraph: edge_level must rise along every pair, got pairs {shown} "
            "where it does not; leave it out, and it is computed"
        )
