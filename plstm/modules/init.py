"""Initial values shared by layers."""

import math

from torch import nn


def small_init_(linear: nn.Linear) -> None:
    """Draw weights from N(0, 2 / (5 fan_in)) and set the bias to zero (as published for pLSTM)."""
    nn.init.normal_(linear.weight, std=math.sqrt(2 / (5 * linear.in_features)))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def constant_gate_(linear: nn.Linear, bias: float | None = None) -> None:
    """Zero the weights of a gate projection and fill its bias, which alone sets a new layer's gate.

    With bias None the caller fills the bias, or there is none.
    """
    nn.init.zeros_(linear.weight)
    if bias is not None:
        nn.init.constant_(linear.bias, bias)
