"""Plain message passing."""

from typing import Any, Final

from torch_geometric.nn import GraphConv
from torch_geometric.nn.models.basic_gnn import BasicGNN


class MPNN(BasicGNN):
    """The plain message-passing network of the pLSTM experiments.

    x_i <- relu(W_own x_i + W_neighbor sum_{j in N(i)} x_j + b)

    The paper gives no equations. We use GraphConv of PyTorch Geometric, with separate weights per
    layer and without edge features; norm, dropout and the missing activation after the last layer
    are those of every BasicGNN. Arguments as for BasicGNN.

    Source: arXiv 2506.11997, graph experiments; GraphConv: arXiv 1810.02244.
    """

    supports_edge_weight: Final[bool] = False
    supports_edge_attr: Final[bool] = False
    supports_norm_batch: Final[bool]

    def init_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> GraphConv:
        """One layer; BasicGNN calls this."""
        return GraphConv(in_channels, out_channels, aggr="add", **kwargs)
