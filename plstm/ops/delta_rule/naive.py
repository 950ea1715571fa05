"""The definition of the delta rule: a loop over positions."""

import torch
from torch import Tensor


def delta_rule_naive(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Decay the state, read it at the key, and correct it by beta times the error."""
    outs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None, None] * state
        read = (k[:, t, ..., None, :] @ state).squeeze(-2)  # S^T k, (B, H, V)
        error = beta[:, t, :, None] * (v[:, t] - read)
        state = state + k[:, t, ..., None] * error[..., None, :]
        outs.append((q[:, t, ..., None, :] @ state).squeeze(-2))
    return scale * torch.stack(outs, 1), state
