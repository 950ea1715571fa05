"""Linear maps of small groups of channels."""

import torch
from torch import Tensor, nn


class BlockDiagonal(nn.Module):
    """Separate linear map for every block of `block_width` channels.

    Args:
        dim: Input channels.
        out_dim: Output channels.
        block_width: Channels per block; divides dim, and the number of blocks divides out_dim.
        bias: Add a learned bias.

    Raises:
        ValueError: the blocks do not divide the channels.
    """

    def __init__(self, dim: int, out_dim: int, block_width: int, bias: bool = False) -> None:
        super().__init__()
        num_blocks = dim // max(block_width, 1)
        if block_width < 1 or dim % block_width or out_dim % num_blocks:
            raise ValueError(
                f"BlockDiagonal: block_width must divide dim, and dim / block_width out_dim, got "
                f"{block_width}, {dim} and {out_dim}; change one of them"
            )
        self.weight = nn.Parameter(torch.empty(num_blocks, out_dim // num_blocks, block_width))
        self.bias = nn.Parameter(torch.empty(out_dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., dim) to (..., out_dim)."""
        num_blocks, _, block_width = self.weight.shape
        blocks = x.unflatten(-1, (num_blocks, block_width))
        y = torch.einsum("...ni,noi->...no", blocks, self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias.to(y.dtype)
