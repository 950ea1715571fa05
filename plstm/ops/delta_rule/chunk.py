"""Chunkwise delta rule: the corrections of a chunk by one triangular solve (WY form).

Letters: B batch, N chunks, C positions in a chunk, H heads, K V widths.

With the products of the decays of a chunk, P[t, s] = a_s ... a_{t-1}, and the state C_n that enters
chunk n, the corrections e_t that are written at k_t satisfy

    e_t + beta_t sum_{s<t} P[t+1, s+1] (k_t . k_s) e_s = beta_t (v_t - P[t+1, 0] C_n^T k_t)

Solving for both terms of the right side gives e = U - W C_n. The rest is linear attention:

    o_t = P[t+1, 0] C_n^T q_t + sum_{s<=t} P[t+1, s+1] (q_t . k_s) e_s
    C_{n+1} = P[C, 0] C_n + sum_s P[C, s+1] k_s e_s^T
"""

import torch
from torch import Tensor

from plstm.ops.chunks import chunk_size, join_chunks, scan_chunks, split_chunks
from plstm.ops.products import transition_products

CHUNK_SIZE = 64


def delta_rule_chunk(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Same result as `delta_rule_naive`, in matrix products."""
    length = q.shape[1]
    size = chunk_size(length, CHUNK_SIZE)
    q, k, v, beta = (split_chunks(x, size) for x in (q, k, v, beta[..., None]))
    products = transition_products(split_chunks(decay, size, fill=1.0))
    inside, enter = products[..., 1:, 1:], products[..., 1:, :1]
    leave, across = products[..., -1, 1:, None], products[..., -1:, :1]

    system = (beta * k @ k.mT) * inside  # the solve reads only what is below the diagonal
    right = torch.cat([beta * v, beta * enter * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    writes, reads = solved.split([v.shape[-1], k.shape[-1]], -1)  # U, W

    keys = (leave * k).mT
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    states, state = scan_chunks(
        lambda factor, state, update: factor @ state + update,
        across * identity - keys @ reads,
        keys @ writes,
        state,
    )
    errors = writes - reads @ states
    out = ((q @ k.mT) * inside) @ errors + (enter * q) @ states
    return scale * join_chunks(out, length), state
