"""Gates of pLSTM on a DAG."""

import torch
from torch import Tensor, nn

from plstm.checks import accumulation_dtype
from plstm.graph.line_graph import LineGraph
from plstm.modules.init import constant_gate_


class GraphGates(nn.Module):
    """Gates from linear maps of nodes and edges.

    The source of e depends on (x_src, edge_e), the mark of e on (x_dst, edge_e), the direct gate of
    n on x_n, all with a sigmoid. The transition logit t of a pair (a, b) that meets in node m
    depends on (edge_a, edge_b, x_m):

        P: T = t / (1/2 + sum |t|), the sum over all outgoing edges b of the incoming edge a
        D: T = tanh(t)

    Weights start at zero, so initial gates depend only on the biases.

    Args:
        dim: Width of the nodes.
        num_heads: Number of heads H.
        mode: "P" (propagation, directed) or "D" (diffusion).
        edge_dim: Width of the edge features; 0 uses the mean of the two end nodes instead.
        source_bias: Initial logit of the source gate.
        mark_bias: Initial logit of the mark gate.
        direct_bias: Initial logit of the direct gate.
        transition_bias: Mean of the initial transition logit over the heads.
        transition_std: Its standard deviation over the heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mode: str,
        *,
        edge_dim: int,
        source_bias: float,
        mark_bias: float,
        direct_bias: float,
        transition_bias: float,
        transition_std: float,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.source_bias, self.mark_bias, self.direct_bias = source_bias, mark_bias, direct_bias
        self.transition_bias, self.transition_std = transition_bias, transition_std
        # The linear map of concatenated inputs is the sum of one map per input. Columns by gate:
        # of a node: source, mark, transition, direct; of an edge: source, mark, incoming, outgoing.
        self.node_proj = nn.Linear(dim, 4 * num_heads)
        self.edge_proj = nn.Linear(edge_dim or dim, 4 * num_heads, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        constant_gate_(self.node_proj)
        constant_gate_(self.edge_proj)
        with torch.no_grad():
            source, mark, transition, direct = self.node_proj.bias.chunk(4)
            source.fill_(self.source_bias)
            mark.fill_(self.mark_bias)
            transition.normal_(self.transition_bias, self.transition_std)
            direct.fill_(self.direct_bias)

    def forward(
        self, x: Tensor, graph: LineGraph, edge_attr: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Activated source (E, H), transition (A, H), mark (E, H) and direct (N, H).

        Args:
            x: Nodes, (N, dim).
            graph: The graph on which states propagate: in mode "D" a multitree.
            edge_attr: Edge features in the order of graph.edge_index, (E, edge_dim).
        """
        (src, dst), (incoming, outgoing) = graph.edge_index, graph.line_index
        node_source, node_mark, node_transition, direct = _wide(self.node_proj(x)).chunk(4, -1)
        if edge_attr is None:  # a linear map of the mean is the mean of the linear maps
            logits = _wide(self.edge_proj(x))
            logits = (logits.index_select(0, src) + logits.index_select(0, dst)) / 2
        else:
            logits = _wide(self.edge_proj(edge_attr))
        edge_source, edge_mark, edge_incoming, edge_outgoing = logits.chunk(4, -1)
        source = torch.sigmoid(node_source.index_select(0, src) + edge_source)
        mark = torch.sigmoid(node_mark.index_select(0, dst) + edge_mark)
        # the node in the middle is the src of the outgoing edge
        edge_outgoing = edge_outgoing + node_transition.index_select(0, src)
        transition = edge_incoming.index_select(0, incoming)
        transition = transition + edge_outgoing.index_select(0, outgoing)
        if self.mode == "D":
            return source, torch.tanh(transition), mark, torch.sigmoid(direct)
        return source, _split(transition, graph), mark, torch.sigmoid(direct)


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider, because bfloat16 rounds 0.999 to 1."""
    return logits.to(accumulation_dtype(logits))


def _split(logits: Tensor, graph: LineGraph) -> Tensor:
    """t / (1/2 + sum |t|) over the outgoing edges of every incoming edge, (A, H)."""
    incoming = graph.line_index[0]
    total = logits.new_full((graph.num_edges, logits.shape[1]), 0.5)
    total = total.index_add(0, incoming, logits.abs())
    return logits / total.index_select(0, incoming)
