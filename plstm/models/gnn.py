"""Message-passing baselines of PyTorch Geometric between our encoder and our head."""

from typing import Any

from torch import Tensor, nn

from plstm.modules.graph import GraphEncoder, GraphReadout
from plstm.ops.checks import check_choice

GNNS = ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")


class GNNModel(nn.Module):
    """Encoder and readout of GraphModel around a BasicGNN of torch_geometric with batch norm.

    Args:
        in_dim: Width of the node features.
        out_dim: Number of outputs per graph.
        dim: Model width.
        depth: Number of convolutions.
        gnn: Class in torch_geometric.nn.models: GCN, GraphSAGE, GIN, GAT or EdgeCNN.
        edge_dim: Width of the edge features; only GAT takes them, the others go without.
        dropout: Dropout in the convolutions and in the head.
        pooling: "mean" or "sum" over the nodes of a graph.
        gnn_args: Further arguments of the class, for example {"heads": 4} for GAT.

    Raises:
        ValueError: unknown gnn or pooling.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int,
        depth: int,
        gnn: str = "GIN",
        edge_dim: int = 0,
        dropout: float = 0.0,
        pooling: str = "mean",
        gnn_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("GNNModel", "gnn", gnn, GNNS)
        from torch_geometric.nn import models  # slow to import, and only needed here

        net = getattr(models, gnn)
        uses_edges = edge_dim > 0 and net.supports_edge_attr
        args = {"norm": "batch_norm", "dropout": dropout, **(gnn_args or {})}
        if uses_edges:
            args["edge_dim"] = dim
        self.encoder = GraphEncoder(in_dim, dim, edge_dim if uses_edges else 0)
        self.gnn = net(dim, dim, num_layers=depth, **args)
        self.readout = GraphReadout(dim, out_dim, pooling, dropout)

    def forward(self, data: Any) -> Tensor:
        """Map a PyG Data, or a batch of G of them, to (G, out_dim)."""
        edge_attr = self.encoder.edges(getattr(data, "edge_attr", None))
        kwargs = {} if edge_attr is None else {"edge_attr": edge_attr}
        x = self.gnn(self.encoder(data), data.edge_index, **kwargs)
        batch = getattr(data, "batch", None)
        return self.readout(x, batch, 1 if batch is None else data.num_graphs)
