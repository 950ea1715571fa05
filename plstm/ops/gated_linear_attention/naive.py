"""The definition of gated linear attention: one step after the other."""

import torch
from torch import Tensor


def gated_linear_attention_naive(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T as a loop over positions; a, (B, L, H, K) or width 1."""
    outs = []
    for t in range(q.shape[1]):
        state = decay[:, t, ..., None] * state + k[:, t, ..., None] * v[:, t, ..., None, :]
        outs.append((q[:, t, ..., None, :] @ state).squeeze(-2))
    return scale * torch.stack(outs, 1), state
