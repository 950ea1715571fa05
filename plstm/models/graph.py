"""Graph classification and regression with blocks along a DAG and its reverse."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from plstm.checks import check_positive
from plstm.graph.prepared import line_graph
from plstm.models.pretrained import Pretrained
from plstm.modules.block import MixerFactory, build_blocks
from plstm.modules.graph import GraphEncoder, GraphReadout
from plstm.modules.init import reset_children
from plstm.modules.norm import RMSNorm


class GraphModel(Pretrained, nn.Module):
    """Encode nodes and edges, mix along the DAG in alternating directions, read out.

    The direction flips after each pass through the list of mixers: with mixers [P, D] and depth 4
    the blocks are P, D along the DAG and P, D along its reverse; with [P] every other block is
    reversed. Bidirectional mixers run in both directions in every block.

    Args:
        in_dim: Width of the node features.
        out_dim: Number of outputs per graph or node.
        dim: Model width.
        depth: Number of blocks.
        mixers: Factories of graph mixers, cycled over the depth; called with dim, and with
            edge_dim=dim if the model has edge features.
        edge_dim: Width of the edge features, 0 for none.
        code_dim: Width of the position encodings, 0 for none.
        node_columns: Categorical features per node, with in_dim categories in total; 0 if node
            features are real numbers.
        edge_columns: Categorical features per edge, with edge_dim categories in total; 0 if edge
            features are real numbers.
        per_node: Read out every node instead of every graph; `pooling` is ignored.
        feed_forward_ratio: Hidden width of the feed-forward parts relative to dim; 0 for none.
        dropout: Dropout on the branches of the blocks and in the head.
        pooling: "mean" or "sum" over the nodes of a graph, or "both", concatenated.

    Raises:
        ValueError: no mixers, depth < 1, unknown pooling.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int,
        depth: int,
        mixers: list[MixerFactory],
        edge_dim: int = 0,
        code_dim: int = 0,
        node_columns: int = 0,
        edge_columns: int = 0,
        per_node: bool = False,
        feed_forward_ratio: float = 4.0,
        dropout: float = 0.0,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        check_positive("GraphModel", in_dim=in_dim, out_dim=out_dim, dim=dim)
        self.encoder = GraphEncoder(in_dim, dim, edge_dim, code_dim, node_columns, edge_columns)
        self.blocks = build_blocks(
            dim,
            depth,
            _with_edges(mixers, dim) if edge_dim else mixers,
            feed_forward_ratio=feed_forward_ratio,
            dropout=dropout,
        )
        self.period = len(mixers)  # blocks between flips of the direction
        self.norm = RMSNorm(dim, eps=1e-5)
        self.readout = GraphReadout(dim, out_dim, pooling, dropout, per_node)

    def reset_parameters(self) -> None:
        """Initialize all parameters."""
        reset_children(self)

    def forward(self, data: Any) -> Tensor:
        """Map a DagData, or a batch of G of them with N nodes, to (G, out_dim) or (N, out_dim).

        Args:
            data: Object with the fields of plstm.graph.DagData and, for a batch, `batch` and
                `num_graphs`; x and dag_edge_attr may be missing, position_code without code_dim.
        """
        graph = line_graph(data)
        x = self.encoder(data)
        edge_attr = self.encoder.edges(getattr(data, "dag_edge_attr", None))
        for i, block in enumerate(self.blocks):
            x = block(x, graph.reverse() if i // self.period % 2 else graph, edge_attr)
        return self.readout(self.norm(x), graph.batch, graph.num_graphs)


def _with_edges(mixers: Sequence[MixerFactory], dim: int) -> list[MixerFactory]:
    return [partial(mixer, edge_dim=dim) for mixer in mixers]
