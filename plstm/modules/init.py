"""Initialization shared by layers."""

import math

import torch
from torch import Tensor, nn


def small_init_(linear: nn.Linear) -> None:
    """Draw weights from N(0, 2 / (5 fan_in)) and set the bias to zero, as in the pLSTM paper."""
    nn.init.normal_(linear.weight, std=math.sqrt(2 / (5 * linear.in_features)))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def constant_gate_(linear: nn.Linear, bias: float | None = None) -> None:
    """Zero the weights of a gate projection and fill its bias, which alone sets the initial gate.

    If `bias` is None, the caller fills the bias, or there is none.
    """
    nn.init.zeros_(linear.weight)
    if bias is not None:
        nn.init.constant_(linear.bias, bias)


def reset_children(module: nn.Module) -> None:
    """Call `reset_parameters` of every child, or of its nearest descendants that have one."""
    for child in module.children():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
        else:
            reset_children(child)


@torch.no_grad()
def step_size_bias_(bias: Tensor, smallest: float = 1e-3, largest: float = 0.1) -> None:
    """Draw a bias whose softplus, the step size, is log-uniform in [smallest, largest] (Mamba)."""
    step = torch.empty_like(bias).uniform_(math.log(smallest), math.log(largest)).exp_()
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
