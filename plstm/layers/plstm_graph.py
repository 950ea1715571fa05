"""pLSTM layer for graphs."""

from functools import partial

from torch import Tensor, nn

from plstm.checks import check_choice, check_shapes
from plstm.graph.line_graph import LineGraph
from plstm.modules.graph_gates import GraphGates
from plstm.modules.init import small_init_
from plstm.modules.norm import BatchNorm, HeadRMSNorm
from plstm.modules.widths import head_widths
from plstm.ops.plstm_dag import plstm_dag

NORMS = ("head", "batch")


class PLSTMGraph(nn.Module):
    """Multi-head pLSTM over a DAG, or a packed batch of DAGs.

    q, k, v come from the nodes; `GraphGates` computes the gates from nodes and edges:

        P: T = t / (1/2 + sum |t|), the sum over all outgoing edges b of the incoming edge a
        D: T = tanh(t), on the multitree of the graph

    In mode P, a state that arrives at a node is split and never amplified; in mode D, at most one
    path joins two edges and every factor is below 1. Gate weights start at zero, so a new layer has
    the gates of its biases.

    The output is y = W_out norm(plstm_dag(...)), or with an output gate
    y = W_out (norm(plstm_dag(...)) * silu(W_z x)). A bidirectional layer adds plstm_dag on the
    reverse graph before the norm, with the same q, k, v and separate gates.

    Args:
        dim: Model width.
        num_heads: Number of heads H.
        mode: "P" (propagation, directed) or "D" (diffusion).
        edge_dim: Width of the edge features; 0 uses the mean of the two end nodes instead.
        qk_dim: Key width per head, dim // num_heads if None.
        v_dim: Value width per head, dim // num_heads if None.
        source_bias: Initial logit of the source gate.
        mark_bias: Initial logit of the mark gate.
        direct_bias: Initial logit of the direct gate.
        transition_bias: Mean of the initial transition logit t over the heads.
        transition_std: Its standard deviation over the heads; with small values a new layer reads
            mostly neighbors, and learns to look farther.
        bidirectional: Propagate along the edges and against them in one layer.
        norm: "head" normalizes every head of every node, "batch" every channel over all nodes,
            which keeps the relative size of what arrives at different nodes.
        output_gate: Multiply the normalized output of plstm_dag by silu(W_z x).
        backend: Backend of plstm_dag.

    Raises:
        ValueError: mode or norm is unknown; widths do not divide.

    Source:
        arXiv 2506.11997. The published biases of source and mark are -4; with them a new layer
        hardly mixes nodes and learns more slowly. Output gate, batch norm and the sum of both
        directions are ours. NCI1, 6 epochs of 1536 graphs in the order "bfs", both directions,
        transition_std 0.1, one seed: training loss 0.37 and validation accuracy 0.784 with norm
        "batch", 0.46 and 0.745 with "head"; transition_std 10 costs about as much again.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mode: str = "P",
        *,
        edge_dim: int = 0,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        source_bias: float = 0.0,
        mark_bias: float = 0.0,
        direct_bias: float = -5.0,
        transition_bias: float = 0.0,
        transition_std: float = 10.0,
        bidirectional: bool = False,
        norm: str = "head",
        output_gate: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("PLSTMGraph", "mode", mode, ("P", "D"))
        check_choice("PLSTMGraph", "norm", norm, NORMS)
        self.dim, self.num_heads, self.mode, self.edge_dim = dim, num_heads, mode, edge_dim
        self.qk_dim, self.v_dim = head_widths("PLSTMGraph", dim, num_heads, qk_dim, v_dim)
        self.backend = backend
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim)
        gates = partial(
            GraphGates,
            dim,
            num_heads,
            mode,
            edge_dim=edge_dim,
            source_bias=source_bias,
            mark_bias=mark_bias,
            direct_bias=direct_bias,
            transition_bias=transition_bias,
            transition_std=transition_std,
        )
        self.gates = gates()
        self.reverse_gates = gates() if bidirectional else None
        values = num_heads * self.v_dim
        self.norm = HeadRMSNorm(num_heads, self.v_dim) if norm == "head" else BatchNorm(values)
        self.output_gate_proj = nn.Linear(dim, values, bias=False) if output_gate else None
        self.out_proj = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            small_init_(linear)
        if self.output_gate_proj is not None:
            small_init_(self.output_gate_proj)
        for part in (self.gates, self.reverse_gates, self.norm):
            if part is not None:
                part.reset_parameters()

    def forward(self, x: Tensor, graph: LineGraph, edge_attr: Tensor | None = None) -> Tensor:
        """Mix the nodes of every graph.

        Args:
            x: Node features, (N, dim).
            graph: The DAG; `graph.reverse()` propagates in the other direction, with the same
                edge_attr.
            edge_attr: Edge features in the order of graph.edge_index, (E, edge_dim).

        Returns:
            y, (N, dim).

        Raises:
            ValueError: edge_attr missing, unexpected or of the wrong shape.
        """
        check_shapes("PLSTMGraph", x=(x, f"N {self.dim}"))
        self._check_edges(graph, edge_attr)
        graph = self.paths(graph)
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # N H width
        gates = self.gates(x, graph, edge_attr)
        out = plstm_dag(q, k, v, *gates, graph, backend=self.backend)
        if self.reverse_gates is not None:
            graph = graph.reverse()
            gates = self.reverse_gates(x, graph, edge_attr)
            out = out + plstm_dag(q, k, v, *gates, graph, backend=self.backend)
        y = self.norm(out.flatten(-2) if isinstance(self.norm, BatchNorm) else out)
        if self.output_gate_proj is not None:
            y = y * nn.functional.silu(self.output_gate_proj(x))
        return self.out_proj(y)

    def paths(self, graph: LineGraph) -> LineGraph:
        """The graph on which states propagate, for `gates`: in mode D the multitree."""
        return graph.multitree() if self.mode == "D" else graph

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_heads={self.num_heads}, mode={self.mode!r}, edge_dim={self.edge_dim}"
        )

    def _check_edges(self, graph: LineGraph, edge_attr: Tensor | None) -> None:
        want = (graph.num_edges, self.edge_dim) if self.edge_dim else None
        got = None if edge_attr is None else tuple(edge_attr.shape)
        if want != got:
            hint = "pass one row per edge" if want else "set edge_dim to use edge features"
            raise ValueError(
                f"PLSTMGraph: edge_attr must be {want or 'None'} with edge_dim={self.edge_dim}, "
                f"got {got}; {hint}"
            )
