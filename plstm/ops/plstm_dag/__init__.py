"""pLSTM on directed acyclic graphs."""

import torch
from torch import Tensor

from plstm.checks import (
    accumulation_dtype,
    check_choice,
    check_shapes,
    output_scale,
    without_autocast,
)
from plstm.graph.line_graph import LineGraph
from plstm.ops.derivatives import check_not_transformed, transformed
from plstm.ops.plstm_dag.levels import plstm_dag_levels
from plstm.ops.plstm_dag.naive import plstm_dag_naive
from plstm.ops.plstm_dag.reach import plstm_dag_reach, reach_plan
from plstm.ops.plstm_dag.solve import plstm_dag_solve, solve_cost

BACKENDS = {
    "naive": plstm_dag_naive,
    "levels": plstm_dag_levels,
    "solve": plstm_dag_solve,
    "reach": plstm_dag_reach,
}
KERNELS = ("levels", "reach")  # custom autograd functions
# Switch points, measured on two CPU cores, forward and backward, 4 heads of width 24.
# Numbers moved by "levels" in the time of one product of "reach", the share of its plan and of the
# read-out included. "reach" takes 2-6 ms against 20-50 ms of "levels" and 11-20 ms of "solve" on 64
# molecules (NCI1, HIV), 7-70 against 140-180 and 180-240 ms on 64 proteins (PROTEINS); both are
# about equal, plan included, at 720,000 products of a batch with a 620-node protein in bfs order,
# and "levels" is twice as fast on paths of 200 nodes.
_LEVELS_PER_PRODUCT = 20
# Multiply-adds of "solve" per number moved by "levels" where both take equally long; left to
# "solve" are small graphs with nearly all edges.
_SOLVE_PER_LEVELS = 24


def plstm_dag(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    graph: LineGraph,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run the pLSTM recurrence over a DAG, or over a packed batch of DAGs.

    Every edge e carries a state C_e per head; a node reads its incoming edges, and itself through
    direct:

        C_e = sum_{e' into src(e)} T[e,e'] C_e' + S[e] k_src(e) v_src(e)^T
        y_n = scale * ( sum_{e into n} M[e] C_e^T q_n + D[n] (q_n . k_n) v_n )

    with S = source, T = transition, M = mark, D = direct. All gates are activated numbers of any
    sign.

    Args:
        q: Queries, (N, H, K).
        k: Keys, (N, H, K).
        v: Values, (N, H, V).
        source: Factor from a node to each outgoing edge, (E, H).
        transition: Factor from the incoming to the outgoing edge of every pair, (A, H).
        mark: Factor from each incoming edge to the output of its node, (E, H).
        direct: Factor from the input to the output of the same node, (N, H).
        graph: Edges and pairs with N, E and A of the arrays above.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (loop over edges, the definition), "levels" (recurrent form, memory linear
            in N), "reach" (parallel form on the pairs of nodes that a path joins), "solve" (dense
            parallel form, one triangular solve for all graphs) or "auto" (by size).

    Returns:
        Outputs, (N, H, V), in v's dtype; computed in float32 or wider.

    Raises:
        ValueError: shapes disagree with each other or with the graph, different devices, unknown
            backend.
        NotImplementedError: gradients of "levels" or "reach" are differentiated again; torch.func
            can under "auto", and so can "naive".

    Source:
        arXiv 2506.11997; the linear system over the line graph and its batching are worked out
        here.
    """
    sizes = check_shapes(
        "plstm_dag",
        q=(q, "N H K"),
        k=(k, "N H K"),
        v=(v, "N H V"),
        source=(source, "E H"),
        transition=(transition, "A H"),
        mark=(mark, "E H"),
        direct=(direct, "N H"),
    )
    _check_graph(sizes, graph, q.device)
    check_choice("plstm_dag", "backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        backend = "solve" if transformed() else choose_backend(graph, sizes["K"], sizes["V"])
    if backend in KERNELS:
        check_not_transformed("plstm_dag", backend)
    inputs = (q, k, v, source, transition, mark, direct)
    dtype, scale = accumulation_dtype(*inputs), output_scale(scale, sizes["K"])
    with without_autocast(q.device):
        out = BACKENDS[backend](*(x.to(dtype) for x in inputs), graph, scale)
    return out.to(v.dtype)


def choose_backend(graph: LineGraph, qk_dim: int, v_dim: int) -> str:
    """Pick "reach" for few joined pairs, else "solve" for small graphs, else "levels"."""
    moved = (graph.num_edges + graph.line_index.shape[1]) * qk_dim * v_dim
    limit = moved // _LEVELS_PER_PRODUCT
    plan = graph.cached(f"reach_plan {limit}", lambda g: reach_plan(g, limit), both_ways=True)
    if plan is not None:
        graph.cached("reach_plan", lambda _: plan, both_ways=True)
        return "reach"
    cost = graph.cached(f"solve_cost {qk_dim} {v_dim}", lambda g: solve_cost(g, qk_dim, v_dim))
    return "solve" if cost <= _SOLVE_PER_LEVELS * moved else "levels"


def _check_graph(sizes: dict[str, int], graph: LineGraph, device: torch.device) -> None:
    if not isinstance(graph, LineGraph):
        raise ValueError(
            f"plstm_dag: graph must be a LineGraph, got {type(graph).__name__}; "
            "see plstm.graph.LineGraph.from_edges"
        )
    have = {"N": graph.num_nodes, "E": graph.num_edges, "A": graph.line_index.shape[1]}
    names = {"N": "q", "E": "source", "A": "transition"}
    for letter, size in have.items():
        if sizes[letter] != size:
            raise ValueError(
                f"plstm_dag: {names[letter]} must have {letter}={size} rows as {graph}, got "
                f"{sizes[letter]}; nodes, edges and pairs have one row each"
            )
    if graph.device != device:
        raise ValueError(
            f"plstm_dag: graph must be on the device of q ({device}), got {graph.device}; "
            "move it with graph.to(device)"
        )
