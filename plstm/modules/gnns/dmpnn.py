"""Message passing between directed edges (D-MPNN)."""

import torch
from torch import Tensor, nn


class DMPNN(nn.Module):
    """Message passing where every directed edge has a state and reads the edges into its source.

    h_ij = relu(W_in [x_i, e_ij])   initially
    h_ij <- relu(W_in [x_i, e_ij] + W sum_{k in N(i), k != j} h_ki)   num_layers - 1 times
    y_i = relu(W_out [x_i, sum_{j in N(i)} h_ji])

    All rounds share W. An edge does not read its own reverse.

    Args:
        in_channels: Width of the node features.
        hidden_channels: Width of the states and of the result.
        num_layers: Number of rounds plus 1, the distance in edges that a node sees.
        dropout: Dropout on states after every round.
        edge_dim: Width of the edge features, 0 for none.

    Source: arXiv 1904.01561.
    """

    supports_edge_attr = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        dropout: float = 0.0,
        edge_dim: int = 0,
    ) -> None:
        super().__init__()
        self.rounds = num_layers - 1
        self.edge_in = nn.Linear(in_channels + edge_dim, hidden_channels)
        self.message = nn.Linear(hidden_channels, hidden_channels, bias=False)
        self.node_out = nn.Linear(in_channels + hidden_channels, hidden_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Map x (N, in_channels) along edge_index (2, E) to (N, hidden_channels)."""
        src, dst = edge_index
        reverse, has_reverse = reverse_edges(edge_index, len(x))
        first = x[src] if edge_attr is None else torch.cat([x[src], edge_attr], -1)
        first = self.edge_in(first)
        state = first.relu()
        for _ in range(self.rounds):
            arrived = state.new_zeros(len(x), state.shape[1]).index_add(0, dst, state)
            others = arrived[src] - state[reverse] * has_reverse[:, None]
            state = self.dropout((first + self.message(others)).relu())
        arrived = state.new_zeros(len(x), state.shape[1]).index_add(0, dst, state)
        return self.node_out(torch.cat([x, arrived], -1)).relu()


def reverse_edges(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Index of the reverse of every edge (E,), and whether it exists (E,)."""
    src, dst = edge_index
    forward, backward = src * num_nodes + dst, dst * num_nodes + src
    ordered, order = forward.sort()
    place = torch.searchsorted(ordered, backward).clamp(max=max(0, len(src) - 1))
    reverse = order[place]
    return reverse, forward[reverse] == backward
