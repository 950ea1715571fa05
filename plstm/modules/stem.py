"""Convolutional stem with overlapping patches."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class ConvStem(nn.Sequential):
    """3 x 3 convolutions with GELU between them; the border is replicated.

    As many of them as needed for one token per patch have stride 2: the first ones and the last.
    The others have stride 1. The receptive field of a token is a little larger than its patch.

    Args:
        in_dim: Channels of the image.
        dim: Model width, the channels of the last convolution.
        patch_size: Side of a patch in pixels, 4, 8, 16, ...
        channels: Channels of the convolutions before the last, at least log2(patch_size) - 1.
        bias: Add biases; without them black patches give zero tokens.

    Raises:
        ValueError: patch_size is not a power of 2 above 2; too few channels.

    Source: arXiv 2106.14881, early convolutions instead of one patch embedding.
    """

    def __init__(
        self, in_dim: int, dim: int, patch_size: int, channels: Sequence[int], bias: bool = True
    ) -> None:
        halvings = patch_size.bit_length() - 1
        if halvings < 2 or patch_size != 2**halvings or len(channels) < halvings - 1:
            raise ValueError(
                "ConvStem: patch_size must be 4, 8, 16, ... and channels must list at least "
                f"log2(patch_size) - 1 convolutions, got {patch_size} and {list(channels)}"
            )
        strides = [2] * (halvings - 1) + [1] * (len(channels) - halvings + 1) + [2]
        layers: list[nn.Module] = []
        for widths, stride in zip(pairwise([in_dim, *channels, dim]), strides, strict=True):
            layers += [
                nn.Conv2d(*widths, 3, stride, 1, bias=bias, padding_mode="replicate"),
                nn.GELU(),
            ]
        super().__init__(*layers[:-1])
