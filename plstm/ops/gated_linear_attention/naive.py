"""The definition of gated linear attention: a loop over positions."""

import torch
from torch import Tensor


def gated_linear_attention_naive(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, step by step; a (B, L, H, K) or (B, L, H, 1)."""
    outs = []
    for t in range(q.shape[1]):
        state = decay[:, t, ..., None] * state + k[:, t, ..., None] * v[:, t, ..., None, :]
        outs.append((q[:, t, ..., None, :] @ state).squeeze(-2))
    return scale * torch.stack(outs, 1), state
