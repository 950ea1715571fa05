"""Decaying linear attention written out as sums over pairs of positions."""

import torch
from torch import Tensor


def decayed_sums(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """sum over s <= t of (sum_d q_td k_sd exp(sum of log_decay_d over s + 1 to t)) v_s.

    q, k and log_decay (B, L, H, K), v (B, L, H, V); finite log_decay only.
    """
    total = log_decay.cumsum(1)
    between = total[:, :, None] - total[:, None]  # (B, t, s, H, K)
    length = q.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)[..., None, None]
    decay = between.masked_fill(future, -torch.inf).exp()
    return torch.einsum("bthk,bshk,btshk,bshv->bthv", q, k, decay, v)
