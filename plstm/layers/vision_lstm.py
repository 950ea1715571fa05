"""mLSTM layer of Vision-LSTM."""

import torch
from torch import Tensor, nn

from plstm.checks import check_choice, check_not_empty, check_shapes
from plstm.layers.flattened_grid import STARTS
from plstm.layers.mlstm import MLSTMCore


class VisionLSTM(MLSTMCore):
    """Matrix LSTM that scans a grid row by row from one corner, with a convolution on the grid.

    (u, z) = W_up x,   c = silu(conv(u)),   y = W_down ((norm(mlstm(c, u)) + skip * c) * silu(z))

    Like `plstm.layers.mlstm.MLSTM` over the positions in reading order, but with a two-dimensional
    depthwise convolution. Blocks that alternate between the two corners,
    `mixers: [top_left, bottom_right]`, see the whole grid. Linear in the number of positions.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        corner: Where the scan starts, "top_left" or "bottom_right".
        expansion: Width of u and z relative to dim.
        conv_width: Side of the convolution, odd; the border is padded with zeros.
        block_width: Width of the diagonal blocks of the maps to q, k and v.
        num_blocks: Number of blocks of the model; scales the initial W_down.
        backend: See `plstm.ops.mlstm`.

    Raises:
        ValueError: unknown corner; an even conv_width; expansion * dim is not divisible by the
            heads and by the block width.

    Source: arXiv 2406.04303, section 3, with biases in all maps and in the norm of the heads, as in
    its code, initially 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        corner: str = "top_left",
        expansion: int = 2,
        conv_width: int = 3,
        block_width: int = 4,
        num_blocks: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            "VisionLSTM", dim, num_heads, expansion, block_width, num_blocks, True, backend
        )
        check_choice("VisionLSTM", "corner", corner, STARTS)
        if conv_width < 1 or conv_width % 2 == 0:
            raise ValueError(
                f"VisionLSTM: conv_width must be odd, got {conv_width}; use for example 3"
            )
        self.corner = corner
        self.conv = nn.Conv2d(
            self.inner, self.inner, conv_width, padding=conv_width // 2, groups=self.inner
        )
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, Y, X, dim) to the same shape."""
        check_shapes("VisionLSTM", x=(x, f"B Y X {self.dim}"))
        check_not_empty("VisionLSTM", x.flatten(1, 2))
        turned = x if self.corner == "top_left" else torch.flip(x, [1, 2])
        u, z = self.up_proj(turned).chunk(2, -1)
        convolved = self.conv(u.movedim(-1, 1)).movedim(1, -1)
        y, _ = self.mix(*(part.flatten(1, 2) for part in (u, z, convolved)))
        y = y.view_as(x)
        return y if self.corner == "top_left" else torch.flip(y, [1, 2])

    def extra_repr(self) -> str:
        return f"corner={self.corner!r}"
