"""The definition: a loop over edges in topological order."""

import torch
from torch import Tensor

from plstm.graph.line_graph import LineGraph
from plstm.ops.gates import Gates


def plstm_dag_naive(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, graph: LineGraph, scale: float
) -> Tensor:
    """Equations (1) and (2) as written; arguments as in plstm_dag."""
    source, transition, mark, direct = gates
    src, dst = graph.edge_index.tolist()
    incoming: list[list[tuple[int, int]]] = [[] for _ in src]  # edge -> (pair, incoming edge)
    for pair, (before, after) in enumerate(graph.line_index.T.tolist()):
        incoming[after].append((pair, before))
    states: dict[int, Tensor] = {}
    for edge in torch.argsort(graph.edge_level, stable=True).tolist():
        n = src[edge]
        state = source[edge, :, None, None] * k[n, :, :, None] * v[n, :, None, :]  # H K V
        for pair, before in incoming[edge]:
            state = state + transition[pair, :, None, None] * states[before]
        states[edge] = state
    out = list(direct[..., None] * (q * k).sum(-1, keepdim=True) * v)  # N times H V
    for edge, state in states.items():
        n = dst[edge]
        out[n] = out[n] + mark[edge, :, None] * torch.einsum("hkv,hk->hv", state, q[n])
    return scale * torch.stack(out) if out else v
