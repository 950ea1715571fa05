"""Any sequence mixer applied to a grid, row by row."""

import torch
from torch import Tensor, nn

from plstm.checks import check_choice, check_shapes
from plstm.modules.block import MixerFactory

STARTS = ("top_left", "bottom_right")


class FlattenedGrid(nn.Module):
    """Runs a sequence mixer over the positions of a grid, row by row from one corner.

    y = flip(mixer(flip(flatten(x)))), without flips for corner top_left

    With a causal mixer, a position sees only earlier positions in reading order; blocks that
    alternate between the two corners, `mixers: [top_left, bottom_right]`, see the whole grid.

    Args:
        dim: Model width.
        mixer: Factory of the sequence mixer, called with `dim`.
        corner: Where the scan starts, "top_left" or "bottom_right".

    Raises:
        ValueError: unknown corner.

    Source: arXiv 2406.04303, section 3; `plstm.layers.vision_lstm.VisionLSTM` is its mLSTM layer.
    """

    def __init__(self, dim: int, mixer: MixerFactory, corner: str = "top_left") -> None:
        super().__init__()
        check_choice("FlattenedGrid", "corner", corner, STARTS)
        self.corner, self.mixer, self.dim = corner, mixer(dim), dim

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        self.mixer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, *positions, dim) to the same shape; the last position axis runs along a row."""
        check_shapes("FlattenedGrid", x=(x, f"B ... {self.dim}"))
        sequence = x.flatten(1, -2)
        if self.corner == "top_left":
            return self.mixer(sequence).view_as(x)
        return torch.flip(self.mixer(torch.flip(sequence, [1])), [1]).view_as(x)

    def extra_repr(self) -> str:
        return f"corner={self.corner!r}"
