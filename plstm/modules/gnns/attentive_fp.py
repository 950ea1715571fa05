"""AttentiveFP of PyTorch Geometric with the arguments of the other GNNs."""

from torch import Tensor
from torch_geometric.nn import models


class AttentiveFP(models.AttentiveFP):
    """Attention over neighbors that updates a GRU per node, then a GRU per graph.

    It has its own readout, so it returns graphs (G, hidden_channels), not nodes.

    Args:
        in_channels: Width of the node features.
        hidden_channels: Width of every layer and of the result.
        num_layers: Rounds of message passing.
        num_timesteps: Rounds of the readout.
        dropout: Dropout on the messages.
        edge_dim: Width of the edge features, used in the first round; 0 for none.

    Source: Xiong et al., doi 10.1021/acs.jmedchem.9b00959.
    """

    supports_edge_attr = True
    reads_out = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        num_timesteps: int = 2,
        dropout: float = 0.0,
        edge_dim: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            hidden_channels,
            edge_dim,
            num_layers,
            num_timesteps,
            dropout,
        )

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Map nodes x (N, in_channels) of the graphs batch (N,) to (G, hidden_channels)."""
        if edge_attr is None:
            edge_attr = x.new_zeros(edge_index.shape[1], 0)
        if batch is None:
            batch = edge_index.new_zeros(x.shape[0])
        return super().forward(x, edge_index, edge_attr, batch)
