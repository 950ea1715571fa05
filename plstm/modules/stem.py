"""Convolutional stem: patches that overlap."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class ConvStem(nn.Sequential):
    """3 x 3 convolutions of stride 2 with GELU between them; the border is replicated.

    A token sees a little more than its patch, 7 pixels after two convolutions instead of 4.

    Args:
        in_dim: Channels of the image.
        dim: Model width, the channels of the last convolution.
        channels: Channels of the convolutions before it.
        bias: Add a learned number per channel; without it black pixels give a token of zeros.

    Source: arXiv 2106.14881, early convolutions in place of one that cuts patches.
    """

    def __init__(self, in_dim: int, dim: int, channels: Sequence[int], bias: bool = True) -> None:
        widths = [in_dim, *channels, dim]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [
                nn.Conv2d(fan_in, fan_out, 3, 2, 1, bias=bias, padding_mode="replicate"),
                nn.GELU(),
            ]
        super().__init__(*layers[:-1])
