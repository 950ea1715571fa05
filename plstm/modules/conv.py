"""Causal depthwise convolution with a carried window."""

import torch
from torch import Tensor, nn

from plstm.checks import check_not_empty


class CausalConv1d(nn.Module):
    """Depthwise convolution over the current and the width - 1 previous positions.

    Args:
        dim: Channels.
        width: Positions seen, the current one included; at least 2.
        bias: Add a learned number per channel.
    """

    def __init__(self, dim: int, width: int, bias: bool = True) -> None:
        super().__init__()
        if width < 2:
            raise ValueError(
                f"CausalConv1d: width must be at least 2, got {width}; leave it out instead"
            )
        self.dim, self.width = dim, width
        self.conv = nn.Conv1d(dim, dim, width, groups=dim, bias=bias)

    def reset_parameters(self) -> None:
        """Draw new initial values, those of PyTorch."""
        self.conv.reset_parameters()

    def forward(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve x (B, L, dim) after `window` (B, width - 1, dim), zeros if None.

        Returns:
            The result, (B, L, dim), and the next window.

        Raises:
            ValueError: an empty sequence.
        """
        check_not_empty("CausalConv1d", x)
        if window is None:
            window = x.new_zeros(x.shape[0], self.width - 1, self.dim)
        x = torch.cat([window.to(x.dtype), x], 1)
        return self.conv(x.mT).mT, x[:, x.shape[1] - self.width + 1 :]

    def window_size(self) -> int:
        """Numbers carried per sequence."""
        return (self.width - 1) * self.dim
