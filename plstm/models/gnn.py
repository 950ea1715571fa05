"""Message-passing baselines of PyTorch Geometric with our encoder and head."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from plstm.checks import check_choice, check_positive
from plstm.extras import extra
from plstm.models.pretrained import Pretrained
from plstm.modules.graph import GraphEncoder, GraphReadout
from plstm.modules.init import reset_children

OWN = {  # class to file in plstm.modules.gnns
    "AttentiveFP": "attentive_fp",
    "DMPNN": "dmpnn",
    "GPS": "gps",
    "LSTMGNN": "lstm_gnn",
    "MPNN": "mpnn",
    "PNA": "pna",
}
SINGLE_NODE = {"allow_single_element": True}  # a single node has no statistics
GNNS = ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN", *OWN)


class GNNModel(Pretrained, nn.Module):
    """Message-passing network with the encoder and readout of GraphModel.

    GCN, GraphSAGE, GIN, GAT, EdgeCNN, PNA and MPNN are BasicGNNs of torch_geometric and get batch
    norm; GPS and AttentiveFP use its layers; DMPNN and LSTMGNN are our own. AttentiveFP has its own
    readout instead of pooling.

    Args:
        in_dim: Width of the node features.
        out_dim: Number of outputs per graph or node.
        dim: Model width.
        depth: Number of layers, or of steps.
        gnn: Class in torch_geometric.nn.models (GCN, GraphSAGE, GIN, GAT, EdgeCNN) or in
            plstm.modules.gnns (AttentiveFP, DMPNN, GPS, LSTMGNN, MPNN, PNA).
        edge_dim: Width of the edge features; GAT, PNA, GPS, DMPNN and AttentiveFP use them, the
            others do not.
        code_dim: Width of the position encodings, 0 for none.
        node_columns: Categorical features per node, with in_dim categories in total; 0 if node
            features are real numbers.
        edge_columns: Categorical features per edge, with edge_dim categories in total; 0 if edge
            features are real numbers.
        per_node: Read out every node instead of every graph; not for AttentiveFP. `pooling` is
            ignored.
        dropout: Dropout in message passing and in the head.
        pooling: "mean" or "sum" over the nodes of a graph, or "both", concatenated.
        gnn_args: Other arguments of the class, for example {"heads": 4, "v2": True} for GAT.

    Raises:
        ValueError: unknown gnn or pooling; per_node with AttentiveFP.
        MissingExtra: torch_geometric is not installed.
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
        code_dim: int = 0,
        node_columns: int = 0,
        edge_columns: int = 0,
        per_node: bool = False,
        dropout: float = 0.0,
        pooling: str = "mean",
        gnn_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("GNNModel", "gnn", gnn, GNNS)
        check_positive("GNNModel", in_dim=in_dim, out_dim=out_dim, dim=dim, depth=depth)
        net = _gnn_class(gnn)
        uses_edges = edge_dim > 0 and net.supports_edge_attr
        args = {"dropout": dropout, **(gnn_args or {})}
        if hasattr(net, "init_conv") and "norm" not in args:  # a BasicGNN
            args |= {"norm": "batch_norm", "norm_kwargs": SINGLE_NODE}
        if uses_edges:
            args["edge_dim"] = dim
        self.encoder = GraphEncoder(
            in_dim, dim, edge_dim if uses_edges else 0, code_dim, node_columns, edge_columns
        )
        self.gnn = net(dim, dim, num_layers=depth, **args)
        self.reads_out = getattr(net, "reads_out", False)
        if self.reads_out and per_node:
            raise ValueError(f"GNNModel: {gnn} reads out graphs, not nodes; choose another gnn")
        self.readout = GraphReadout(dim, out_dim, pooling, dropout, per_node)

    def reset_parameters(self) -> None:
        """Initialize all parameters."""
        reset_children(self)

    def forward(self, data: Any) -> Tensor:
        """Map a PyG Data, or a batch of G of them with N nodes, to (G, out_dim) or (N, out_dim)."""
        x, batch = self.encoder(data), getattr(data, "batch", None)
        edge_attr = self.encoder.edges(getattr(data, "edge_attr", None))
        num_graphs = 1 if batch is None else data.num_graphs
        x = self.gnn(x, data.edge_index, edge_attr=edge_attr, batch=batch)
        if self.reads_out:  # one row per graph
            batch = torch.arange(num_graphs, device=x.device)
        return self.readout(x, batch, num_graphs)


def _gnn_class(name: str) -> type[nn.Module]:
    """Import the class here, because torch_geometric is slow to import and optional."""
    module = f"plstm.modules.gnns.{OWN[name]}" if name in OWN else "torch_geometric.nn.models"
    with extra("graphs", f"GNNModel with gnn={name!r}"):
        return getattr(importlib.import_module(module), name)
