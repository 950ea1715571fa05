"""Pooling from the tokens of a grid to one vector per image."""

import torch
from torch import Tensor


def pool_corners(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The four corner tokens of x (B, Y, X, dim) concatenated, (B, 4 dim).

    With valid (B, Y, X), the corners of the smallest rectangle that contains all valid tokens;
    zeros for a corner that is not valid.
    """
    if valid is None:
        return torch.cat([x[:, y, column] for y in (0, -1) for column in (0, -1)], -1)
    x = x.masked_fill(~valid[..., None], 0)
    image = torch.arange(x.shape[0], device=x.device)
    rows, columns = _ends(valid.any(2)), _ends(valid.any(1))
    return torch.cat([x[image, y, column] for y in rows for column in columns], -1)


def _ends(used: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index where used (B, N) is True."""
    used = used.int()
    return used.argmax(1), used.shape[1] - 1 - used.flip(1).argmax(1)


def pool_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean of the (valid) tokens of x (B, Y, X, dim), (B, dim)."""
    if valid is None:
        return x.mean((1, 2))
    count = valid.sum((1, 2))[:, None].clamp(min=1)
    return x.masked_fill(~valid[..., None], 0).sum((1, 2)) / count


def pool_max(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The maximum of each channel over the (valid) tokens of x (B, Y, X, dim), (B, dim)."""
    if valid is not None:
        x = x.masked_fill(~valid[..., None], -torch.inf)
    return x.amax((1, 2))


POOLINGS = {"corners": pool_corners, "mean": pool_mean, "max": pool_max}
