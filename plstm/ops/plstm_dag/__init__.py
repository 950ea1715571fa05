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
from plstm.ops.gates import Gates
from plstm.ops.plstm_dag.levels import plstm_dag_levels
from plstm.ops.plstm_dag.naive import plstm_dag_naive
from plstm.ops.plstm_dag.reach import plstm_dag_reach

FORMS = {"naive": plstm_dag_naive, "levels": plstm_dag_levels, "reach": plstm_dag_reach}


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
    """Linear recurrence over the edges of a DAG, or of a packed batch of DAGs.

    Every edge e carries a state C_e per head. A node reads its incoming edges, and its own input
    through direct:

        C_e = sum_{e' into src(e)} T[e,e'] C_e' + S[e] k_src(e) v_src(e)^T
        y_n = scale * ( sum_{e into n} M[e] C_e^T q_n + D[n] (q_n . k_n) v_n )

    with S = source, T = transition, M = mark, D = direct. Gates are values after any activation, of
    any sign.

    Args:
        q: Queries, (N, H, K).
        k: Keys, (N, H, K).
        v: Values, (N, H, V).
        source: Factor from a node to each outgoing edge, (E, H).
        transition: Factor from the incoming to the outgoing edge of every pair, (A, H).
        mark: Factor from each incoming edge to the output of its node, (E, H).
        direct: Factor from the input to the output of the same node, (N, H).
        graph: The DAG, with N nodes, E edges and A pairs of consecutive edges.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (loop over edges, the definition), "levels" (recurrent form, memory linear
            in N), "reach" (parallel form on the pairs of nodes joined by a path) or "auto" (by
            size; under torch.compile and torch.export "levels", unless the graph carries its plan,
            as batches of `plstm.graph.batching` do).

    Returns:
        Outputs, (N, H, V), in v's dtype; computed in float32 or wider.

    Raises:
        ValueError: shapes disagree with each other or with the graph, devices differ, or the
            backend is unknown.
        NotImplementedError: gradients are differentiated again, except with "naive", or torch.func
            and "auto"; or "reach" under torch.func.

    Source:
        arXiv 2506.11997; the linear system over the line graph and its batching are our
        derivation.
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
    check_choice("plstm_dag", "backend", backend, ("auto", *FORMS))
    gates = Gates(source, transition, mark, direct)
    dtype, scale = accumulation_dtype(q, k, v, *gates), output_scale(scale, sizes["K"])
    if backend == "auto":
        backend = choose_backend(graph, sizes["K"], sizes["V"])
    if backend == "reach":
        check_not_transformed("plstm_dag", backend)
    with without_autocast(q.device):
        q, k, v_, *gates = (x.to(dtype) for x in (q, k, v, *gates))
        out = FORMS[backend](q, k, v_, Gates(*gates), graph, scale)
    return out.to(v.dtype)


def choose_backend(graph: LineGraph, qk_dim: int, v_dim: int) -> str:
    """Choose "reach" if it is faster, else "levels", which supports all derivatives."""
    if transformed():
        return "levels"
    planning = not torch.compiler.is_compiling() and graph.device.type != "meta"
    return "levels" if graph.paying_reach_plan(qk_dim, v_dim, planning) is None else "reach"


def _check_graph(sizes: dict[str, int], graph: LineGraph, device: torch.device) -> None:
    if not isinstance(graph, LineGraph):
        raise ValueError(
            f"plstm_dag: graph must be a LineGraph, got {type(graph).__name__}; "
            "see plstm.graph.LineGraph.from_edges"
        )
    have = {"N": graph.num_nodes, "E": graph.num_edges, "A": graph.num_pairs}
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
