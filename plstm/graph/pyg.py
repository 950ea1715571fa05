"""PyTorch Geometric: a Data class that batches line graphs, and its transform."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plstm.checks import check_choice
from plstm.extras import extra
from plstm.graph.multitree import prune_to_multitree
from plstm.graph.orientation import ORDERS, node_rank, orient
from plstm.graph.prepared import HOST_KEYS, line_graph
from plstm.graph.topology import consecutive_edges, node_levels

with extra("graphs", "plstm.graph.pyg"):
    from torch_geometric.data import Data
    from torch_geometric.transforms import BaseTransform

__all__ = ["DAG_KEYS", "PAIR_KEYS", "VERSION", "DagData", "ToDag", "line_graph"]

VERSION = 2  # increment when ToDag or AddPositionCodes change, to renew caches
PAIR_KEYS = ("line_index", "tree_index")  # index edges of dag_edge_index, not nodes
DAG_KEYS = (*PAIR_KEYS, "dag_edge_index", "dag_edge_attr", "edge_level")


class DagData(Data):
    """Data plus an oriented copy of its edges and their line graph; the PyG DataLoader batches it.

    dag_edge_index (2, E), dag_edge_attr (E, F), line_index (2, A), tree_index (2, A'), edge_level
    (E,); edge_index and edge_attr are those of the undirected graph, for message passing. A batch
    may also have plans, see `plstm.graph.prepared.add_plans`.
    """

    def apply(self, function: Callable, *args: str) -> "DagData":
        """Apply a function to the given attributes, or to all that do not stay on the CPU."""
        return super().apply(function, *(args or [k for k in self.keys() if k not in HOST_KEYS]))

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key in PAIR_KEYS:
            return self.dag_edge_index.size(1)
        return super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return -1 if key in PAIR_KEYS else super().__cat_dim__(key, value, *args, **kwargs)


torch.serialization.add_safe_globals([DagData])  # cached data sets load with weights_only=True


class ToDag(BaseTransform):
    """Orients a graph by a node order and prepares its line graph.

    Works as pre_transform (once, cached) and as transform (at every access, for random orders).

    Args:
        order: "bfs" (canonical), "given" (node order) or "random" for undirected graphs;
            "directed" for DAGs, which keep their directions: edge_index and edge_attr then get the
            reverse of every edge, with the same attributes, after the edges.
        seed: For "random": the order is a fixed function of seed and graph; None draws a new one at
            every call, which is augmentation when used as `transform`.

    Raises:
        ValueError: order is unknown; directed edges have a cycle.
    """

    def __init__(self, order: str = "bfs", seed: int | None = None) -> None:
        check_choice("ToDag", "order", order, ORDERS)
        self.order, self.seed = order, seed

    def forward(self, data: Data) -> DagData:
        """Return a DagData with all fields of data (x, edge_index, edge_attr, y ... unchanged).

        A packed batch (with `batch`) is prepared as one graph. Each of its graphs then has an order
        of the requested kind, but not the same as alone, if it is random or has ties.
        """
        edges = _edges(data)
        out = prepare(data, node_rank(edges, data.num_nodes or 0, self.order, self.seed))
        return both_ways(out) if self.order == "directed" else out

    def __repr__(self) -> str:
        return f"ToDag(order={self.order!r}, seed={self.seed!r})"


def prepare(data: Data, rank: np.ndarray) -> DagData:
    """Orient a graph, or a packed batch, by the ranks (N,) of its nodes; see ToDag."""
    out = DagData.from_dict(data.to_dict())
    num_nodes = data.num_nodes or 0
    edges, column = orient(_edges(data), rank)
    pairs = consecutive_edges(edges, num_nodes)
    level = node_levels(edges, num_nodes)[edges[0]]
    batch = None if data.get("batch") is None else data.batch.cpu().numpy()[edges[0]]
    tree = pairs[:, prune_to_multitree(pairs, level, edges[0], batch)]
    out.dag_edge_index, out.line_index = _tensor(edges), _tensor(pairs)
    out.tree_index = _tensor(tree)
    out.edge_level = _tensor(level)
    if data.edge_attr is not None:
        out.dag_edge_attr = data.edge_attr[_tensor(column)]
    return out


def both_ways(data: DagData) -> DagData:
    """Add the reverse of every edge."""
    data.edge_index = torch.cat([data.edge_index, data.edge_index.flip(0)], 1)
    if data.edge_attr is not None:
        data.edge_attr = torch.cat([data.edge_attr, data.edge_attr])
    return data


def _edges(data: Data) -> np.ndarray:
    if data.edge_index is None:
        return np.zeros((2, 0), dtype=np.int64)
    return data.edge_index.cpu().numpy()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
