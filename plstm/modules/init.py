"""Initial values shared by layers."""

import math

from torch import nn


def small_init_(linear: nn.Linear) -> None:
    """Draw weights from N(0, 2 / (5 fan_in)) and set the bias to zero (as published for pLSTM)."""
    nn.init.normal_(linear.weight, std=math.sqrt(2 / (5 * linear.in_features)))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def constant_gate_(linear: nn.Linear) -> None:
    """Zero the weights of a gate projection: a new layer has gates set by the bias alone."""
    nn.init.zeros_(linear.weight)
