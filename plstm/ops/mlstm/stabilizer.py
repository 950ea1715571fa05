"""The stabilizer of the mLSTM: a running maximum of logarithms."""

import torch
from torch import Tensor


def running_stabilizer(input_gate: Tensor, log_forget: Tensor, initial: Tensor) -> Tensor:
    """m_t = max(log_forget_t + m_{t-1}, input_gate_t, 0) for all positions, m_0 = initial.

    Each step is a map m -> max(a + m, b), and two such maps compose into another, so after n
    rounds every position has composed its last 2^n steps. No sum is subtracted, so -inf works.

    Args:
        input_gate: Logits, (B, L, H).
        log_forget: Logarithms of the forget gate, (B, L, H).
        initial: m_0, (B, H).

    Returns:
        m, (B, L, H), without gradient.
    """
    shift, floor = log_forget.detach(), input_gate.detach().clamp(min=0)
    span = 1
    while span < shift.shape[1]:
        reach = torch.maximum(floor[:, span:], shift[:, span:] + floor[:, :-span])
        floor = torch.cat([floor[:, :span], reach], 1)
        shift = torch.cat([shift[:, :span], shift[:, span:] + shift[:, :-span]], 1)
        span *= 2
    return torch.maximum(floor, shift + initial[:, None])
