"""Message passing into an LSTM cell."""

import torch
from torch import Tensor, nn


class LSTMGNN(nn.Module):
    """An LSTM cell per node that reads the sum of its neighbours' outputs at every step.

    m_i = sum_{j in N(i)} h_j
    h_i, c_i <- LSTMCell(m_i, (h_i, c_i))

    Our reading of "LSTM-GNN" in the pLSTM experiments, which give no formula: h starts as the node
    features and c as zero, all nodes and steps share one cell, messages have no linear map apart
    from the input map of the cell, and edge features are not used. Steps take the place of layers:
    their number does not change the number of parameters.

    Args:
        in_channels: Width of the node features; equal to hidden_channels.
        hidden_channels: Width of h and c.
        num_layers: Number of steps.
        dropout: Dropout on the messages.

    Raises:
        ValueError: the two widths differ.
    """

    supports_edge_attr = False

    def __init__(
        self, in_channels: int, hidden_channels: int, num_layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if in_channels != hidden_channels:
            raise ValueError(
                "LSTMGNN: in_channels must equal hidden_channels, since the output starts as the "
                f"input, got {in_channels} and {hidden_channels}; encode the nodes first"
            )
        self.num_layers = num_layers
        self.cell, self.dropout = nn.LSTMCell(hidden_channels, hidden_channels), nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Map x (N, hidden_channels) along edge_index (2, E) to the same shape."""
        src, dst = edge_index
        state = x, torch.zeros_like(x)
        for _ in range(self.num_layers):
            out = self.dropout(state[0])
            message = torch.zeros_like(out).index_add(0, dst, out.index_select(0, src))
            state = self.cell(message, state)
        return state[0]
