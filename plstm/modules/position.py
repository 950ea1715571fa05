"""Learned position encodings."""

import torch
from torch import Tensor, nn

from plstm.compiler import statically_known_true


class LearnedPosition2d(nn.Module):
    """A learned vector per grid position, interpolated bicubically for grids of other sizes.

    Args:
        dim: Model width.
        rows: Rows of the learned grid.
        columns: Columns of the learned grid.
    """

    def __init__(self, dim: int, rows: int, columns: int) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.empty(1, dim, rows, columns))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        nn.init.normal_(self.code, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding to x (B, Y, X, dim)."""
        code, sides = self.code, zip(self.code.shape[2:], x.shape[1:3], strict=True)
        # With dynamic sizes it always interpolates, which is exact at the learned size.
        if not all(statically_known_true(own == side) for own, side in sides):
            code = nn.functional.interpolate(code, size=tuple(x.shape[1:3]), mode="bicubic")
        return x + code.movedim(1, -1)


class LearnedPosition1d(nn.Module):
    """A learned vector per position of a sequence.

    Args:
        dim: Model width.
        max_length: Number of positions.
    """

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.empty(max_length, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        nn.init.normal_(self.code, std=0.02)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add the encodings of positions, (L,) or (B, L), to x (B, L, dim); 0, 1, ... if None."""
        end = x.shape[1] if positions is None else int(positions.max()) + 1
        if end > len(self.code):
            raise ValueError(
                f"LearnedPosition1d: only {len(self.code)} positions are encoded, got a sequence "
                f"up to position {end}; raise max_length or use no position encoding"
            )
        return x + (self.code[:end] if positions is None else self.code[positions])
