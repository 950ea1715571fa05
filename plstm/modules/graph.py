"""Input and output parts shared by all graph models."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from plstm.checks import check_choice
from plstm.graph.prepared import count_nodes
from plstm.modules.init import small_init_
from plstm.modules.norm import BatchNorm

_MAX_PERIOD = 1000.0


def degree_code(degree: Tensor, dim: int) -> Tensor:
    """Sines and cosines of node degrees (N,) with periods from 2 pi to 2000 pi, (N, dim)."""
    half = (dim + 1) // 2
    steps = torch.arange(half, device=degree.device, dtype=torch.float32) / half
    angle = degree[:, None].float() * torch.exp(-math.log(_MAX_PERIOD) * steps)
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :dim]


def node_features(data: Any, in_dim: int) -> Tensor:
    """data.x in floating point, or ones (N, in_dim) for graphs without node features.

    Raises:
        ValueError: data.x is not (N, in_dim).
    """
    x = getattr(data, "x", None)
    if x is None:
        return torch.ones(count_nodes(data), in_dim, device=data.edge_index.device)
    if x.ndim != 2 or x.shape[1] != in_dim:
        raise ValueError(
            f"node_features: data.x must have shape (N, {in_dim}), got {tuple(x.shape)}; "
            "in_dim is the number of node features of the data set"
        )
    return x if x.is_floating_point() else x.float()


class CategoryEmbedding(nn.EmbeddingBag):
    """Sum of embeddings of the categorical features of a node or edge.

    Weights start with standard deviation 1 / sqrt(columns), so that sums have standard deviation 1.

    Args:
        categories: Number of categories of all columns together.
        dim: Width.
        columns: Categorical features per node, with disjoint index ranges.
    """

    def __init__(self, categories: int, dim: int, columns: int) -> None:
        self.columns = columns  # the base constructor calls reset_parameters, which reads it
        super().__init__(categories, dim, mode="sum")

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        nn.init.normal_(self.weight, std=self.columns**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map category indices (N, columns) to (N, dim).

        Raises:
            ValueError: wrong number of columns, or not integers.
        """
        if x.ndim != 2 or x.shape[1] != self.columns or x.is_floating_point():
            raise ValueError(
                f"CategoryEmbedding: x must be integers (N, {self.columns}), got {x.dtype} "
                f"{tuple(x.shape)}; they are category indices, one column per feature"
            )
        return super().forward(x)


class GraphEncoder(nn.Module):
    """Linear maps of node features, degree and position encodings, and edge features.

    Feature weights start with standard deviation 1, like embeddings, because most features are
    one-hot. Features given as category indices are embedded.

    Args:
        in_dim: Width of the node features, or number of node categories.
        dim: Model width.
        edge_dim: Width of the edge features, or number of edge categories; 0 for none.
        code_dim: Width of the position encodings, 0 for none.
        node_columns: Categorical features per node; 0 if node features are real numbers.
        edge_columns: Categorical features per edge; 0 if edge features are real numbers.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        edge_dim: int = 0,
        code_dim: int = 0,
        node_columns: int = 0,
        edge_columns: int = 0,
    ) -> None:
        super().__init__()
        self.in_dim, self.dim, self.edge_dim = in_dim, dim, edge_dim
        self.node, self.degree = _features(in_dim, dim, node_columns), nn.Linear(dim, dim)
        self.code = nn.Linear(code_dim, dim, bias=False) if code_dim else None
        self.edge = _features(edge_dim, dim, edge_columns) if edge_dim else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        small_init_(self.degree)
        for part in (self.node, self.edge):
            if isinstance(part, CategoryEmbedding):
                part.reset_parameters()
            elif part is not None:
                nn.init.normal_(part.weight)
                nn.init.zeros_(part.bias)
        if self.code is not None:
            nn.init.normal_(self.code.weight)

    def forward(self, data: Any) -> Tensor:
        """Encode the nodes, (N, dim); edge_index has both directions of every edge.

        Raises:
            ValueError: x is not as wide as in_dim, or position_code not as wide as code_dim.
        """
        x = self._nodes(data)
        degree = count(data.edge_index[1], x.shape[0])
        x = x + self.degree(degree_code(degree, self.dim).to(x.dtype))
        return x if self.code is None else x + self.code(self._position_code(data).to(x.dtype))

    def _nodes(self, data: Any) -> Tensor:
        if isinstance(self.node, CategoryEmbedding):
            return self.node(data.x)
        return self.node(node_features(data, self.in_dim).to(self.node.weight.dtype))

    def _position_code(self, data: Any) -> Tensor:
        code, width = getattr(data, "position_code", None), self.code.in_features
        if code is None or code.shape[-1] != width:
            got = None if code is None else tuple(code.shape)
            raise ValueError(
                f"GraphEncoder: data.position_code must have shape (N, {width}) with "
                f"code_dim={width}, got {got}; plstm.graph.position_codes.AddPositionCodes makes it"
            )
        return code

    def edges(self, edge_attr: Tensor | None) -> Tensor | None:
        """Encode the edges, (E, dim); None without edge_dim.

        Raises:
            ValueError: edge_dim is set and the data have no edge features.
        """
        if self.edge is None:
            return None
        if edge_attr is None:
            raise ValueError(
                "GraphEncoder: edge features must be given with edge_dim="
                f"{self.edge_dim}, got None; build the model with edge_dim=0"
            )
        if isinstance(self.edge, CategoryEmbedding):
            return self.edge(edge_attr)
        return self.edge(edge_attr.to(self.edge.weight.dtype))


def _features(width: int, dim: int, columns: int) -> nn.Module:
    return CategoryEmbedding(width, dim, columns) if columns else nn.Linear(width, dim)


POOLINGS = ("mean", "sum", "both")


class GraphReadout(nn.Module):
    """Pool the nodes of every graph; then batch norm, linear, GELU, dropout, linear.

    Pooled features of different graphs are similar; without the batch norm training is slow.

    Args:
        dim: Model width.
        out_dim: Number of outputs.
        pooling: "mean", "sum" or "both", concatenated.
        dropout: Dropout between the two linear maps.
        per_node: Do not pool.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        pooling: str = "mean",
        dropout: float = 0.0,
        per_node: bool = False,
    ) -> None:
        super().__init__()
        check_choice("GraphReadout", "pooling", pooling, POOLINGS)
        self.pooling, self.per_node = pooling, per_node
        width = 2 * dim if pooling == "both" and not per_node else dim
        self.norm = BatchNorm(width)
        self.hidden, self.out = nn.Linear(width, dim), nn.Linear(dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, batch: Tensor | None, num_graphs: int) -> Tensor:
        """Map nodes x (N, dim) with graph indices batch (N,) to (num_graphs or N, out_dim)."""
        if not self.per_node:
            x = self._pooled(x, batch, num_graphs)
        return self.out(self.dropout(nn.functional.gelu(self.hidden(self.norm(x)))))

    def _pooled(self, x: Tensor, batch: Tensor | None, num_graphs: int) -> Tensor:
        if batch is None:
            batch = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        total = x.new_zeros(num_graphs, x.shape[1]).index_add(0, batch, x)
        if self.pooling == "sum":
            return total
        sizes = count(batch, num_graphs).clamp(min=1)
        mean = total / sizes[:, None].to(total.dtype)
        return mean if self.pooling == "mean" else torch.cat([mean, total], -1)


def count(index: Tensor, size: int) -> Tensor:
    """Like bincount with integers below `size`, (size,), but torch.compile can trace it."""
    return index.new_zeros(size).index_add(0, index, torch.ones_like(index))
