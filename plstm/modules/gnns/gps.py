"""Graph transformer with a message-passing part (GPS)."""

from torch import Tensor, nn
from torch_geometric.nn import GINConv, GINEConv, GPSConv


class GPS(nn.Module):
    """GPSConv layers of PyTorch Geometric: message passing plus softmax attention over the graph.

    x <- MLP(local(x) + attention(x)), each part with its residual and norm

    The local part is GINEConv with edge features and GINConv without. Position encodings are those
    of the encoder (the degree, and those in the data). The cost of attention is quadratic in the
    largest graph of the batch.

    Args:
        in_channels: Width of the node features; equal to hidden_channels.
        hidden_channels: Width of every layer.
        num_layers: Number of layers.
        heads: Heads of the attention.
        dropout: Dropout on both parts and in the MLP.
        edge_dim: Width of the edge features, 0 for none.

    Raises:
        ValueError: the two widths differ or do not divide into heads.

    Source: arXiv 2205.12454.
    """

    supports_edge_attr = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        heads: int = 4,
        dropout: float = 0.0,
        edge_dim: int = 0,
    ) -> None:
        super().__init__()
        if in_channels != hidden_channels or hidden_channels % heads:
            raise ValueError(
                "GPS: in_channels must equal hidden_channels, a multiple of heads, got "
                f"{in_channels}, {hidden_channels} and {heads} heads"
            )
        self.layers = nn.ModuleList(
            GPSConv(
                hidden_channels,
                _local(hidden_channels, edge_dim),
                heads,
                dropout,
                norm_kwargs={"allow_single_element": True},  # a single node has no statistics
            )
            for _ in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for layer in self.layers:
            layer.attn.out_proj.reset_parameters()  # which layer.reset_parameters() skips
            layer.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Map x (N, hidden_channels) of the graphs batch (N,) to the same shape."""
        edges = {} if edge_attr is None else {"edge_attr": edge_attr}
        for layer in self.layers:
            x = layer(x, edge_index, batch, **edges)
        return x


def _local(dim: int, edge_dim: int) -> nn.Module:
    mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
    return GINEConv(mlp, edge_dim=edge_dim) if edge_dim else GINConv(mlp)
