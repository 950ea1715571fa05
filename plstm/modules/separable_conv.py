"""Separable convolution of MetaFormer: pointwise, depthwise, pointwise."""

import torch
from torch import Tensor, nn


class StarReLU(nn.Module):
    """y = scale relu(x)^2 + shift, with one learned scale and one learned shift.

    Source: arXiv 2210.13452. Initially 1 and 0, as in its code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale to 1 and shift to 0."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.relu(x).square() + self.shift


class SeparableConv(nn.Module):
    """Inverted separable convolution over a grid.

    y = W_out starrelu(conv(starrelu(W_in layernorm(x))))

    with a depthwise convolution; only the layer norm has a bias.

    Args:
        dim: Model width.
        width: Side of the convolution, odd; the border is padded with zeros.
        expansion: Channels of the convolution relative to dim.

    Source: arXiv 2210.13452, with the norm and the second activation of arXiv 2412.16146.
    """

    def __init__(self, dim: int, width: int, expansion: int = 2) -> None:
        super().__init__()
        inner = expansion * dim
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.in_activation = StarReLU()
        self.conv = nn.Conv2d(inner, inner, width, padding=width // 2, groups=inner, bias=False)
        self.out_activation = StarReLU()
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def reset_parameters(self) -> None:
        """Initialize the parameters with the defaults of PyTorch."""
        for part in self.children():
            part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, Y, X, dim) to the same shape."""
        y = self.in_activation(self.in_proj(self.norm(x)))
        y = self.conv(y.movedim(-1, 1)).movedim(1, -1)
        return self.out_proj(self.out_activation(y))
