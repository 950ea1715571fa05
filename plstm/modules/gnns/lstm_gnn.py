"""Message passing with an LSTM cell."""

import torch
from torch import Tensor, nn


class LSTMGNN(nn.Module):
    """An LSTM cell per node that reads the mean of the outputs of its neighbors at every step.

    h_i = 0,   c_i = x_i   initially
    m_i = mean_{j in N(i)} h_j,   h_i, c_i <- LSTMCell(m_i, (h_i, c_i))   at every step
    y_i = tanh(c_i)   at the end

    The mean over no neighbors is 0. All nodes and steps share one cell, so the number of steps does
    not change the number of parameters. Edge features are not used. The first step has no messages:
    after n steps a node sees a distance of n - 1 edges.

    Args:
        in_channels: Width of the node features; equal to hidden_channels.
        hidden_channels: Width of h and c.
        num_layers: Number of steps.
        dropout: Dropout on the messages.

    Raises:
        ValueError: the two widths differ.

    Source: the baseline "LSTM-GNN" of the experiments of arXiv 2506.11997.
    """

    supports_edge_attr = False

    def __init__(
        self, in_channels: int, hidden_channels: int, num_layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if in_channels != hidden_channels:
            raise ValueError(
                "LSTMGNN: in_channels must equal hidden_channels, since the cell state starts as "
                f"the input, got {in_channels} and {hidden_channels}; encode the nodes first"
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
        neighbors = x.new_zeros(len(x), 1).index_add(0, dst, x.new_ones(len(dst), 1))
        hidden, cell = torch.zeros_like(x), x
        for _ in range(self.num_layers):
            out = self.dropout(hidden)
            message = torch.zeros_like(out).index_add(0, dst, out.index_select(0, src))
            hidden, cell = self.cell(message / neighbors.clamp(min=1), (hidden, cell))
        return torch.tanh(cell)
