"""Root-mean-square norms."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """RMS norm whose scale takes the dtype of the input: the fused kernel wants them alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its last axis."""
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class HeadRMSNorm(nn.Module):
    """Root-mean-square norm of every head by itself, with a scale per head and channel.

    y = x / sqrt(mean(x^2) + eps) * weight, the mean over the channels of one head.

    Args:
        num_heads: Number of heads H.
        width: Channels per head W.
        eps: Added to the mean square.
    """

    def __init__(self, num_heads: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_heads, self.width, self.eps = num_heads, width, eps
        self.weight = nn.Parameter(torch.ones(num_heads * width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., H, W) and merge the heads: (..., H * W)."""
        normed = nn.functional.rms_norm(x, (self.width,), eps=self.eps)
        return normed.flatten(-2) * self.weight.to(normed.dtype)
