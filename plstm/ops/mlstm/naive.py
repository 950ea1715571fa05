"""The definition of the stabilized mLSTM: a loop over positions."""

import torch
from torch import Tensor


def mlstm_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    log_forget: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    stabilizer: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, memory, normalizer and stabilizer step by step, as in `mlstm`."""
    outs = []
    for t in range(q.shape[1]):
        before = log_forget[:, t] + stabilizer
        # The output does not depend on the stabilizer, so neither does its gradient.
        stabilizer = torch.maximum(before, input_gate[:, t]).clamp(min=0).detach()
        forget = (before - stabilizer).exp()[..., None]
        key = (input_gate[:, t] - stabilizer).exp()[..., None] * k[:, t]
        memory = forget[..., None] * memory + key[..., None] * v[:, t, ..., None, :]
        normalizer = forget * normalizer + key
        read = scale * (q[:, t, ..., None, :] @ memory).squeeze(-2)
        weight = scale * (q[:, t] * normalizer).sum(-1).abs()
        outs.append(read / torch.maximum(weight, (-stabilizer).exp())[..., None])
    return torch.stack(outs, 1), memory, normalizer, stabilizer
