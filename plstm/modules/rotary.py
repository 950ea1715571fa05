"""Rotary position embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rotate_positions(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding: q . k depends on relative positions.

    Rotates (x_i, x_{i + W/2}) by p * base^(-2 i / W) at position p. With several position axes the
    channels are split evenly between them.

    Args:
        x: Queries or keys, (B, H, L, W); W divisible by twice the number of axes.
        positions: Coordinates of the L positions, (L, axes), or of each sample, (B, L, axes).
        base: Longest wavelength divided by 2 pi.

    Returns:
        Rotated x, same shape and dtype.

    Source: arXiv 2104.09864.
    """
    axes = positions.shape[-1]
    width = x.shape[-1] // axes
    if x.shape[-1] % (2 * axes):
        raise ValueError(
            f"rotate_positions: the width per head must be divisible by {2 * axes} for {axes} "
            f"position axes, got {x.shape[-1]}"
        )
    frequencies = base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = positions.to(frequencies)[..., None] * frequencies
    angles = angles.unsqueeze(-4)  # for heads, (1, L, axes, W / (2 axes))
    return rotate(x.unflatten(-1, (axes, width)), angles).flatten(-2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs (x_i, x_{i + W/2}) of x (..., W) by angles that broadcast to (..., W / 2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def coordinates(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Coordinates of a flattened grid of any number of axes, (product of sizes, axes)."""
    axes = (torch.arange(size, device=device) for size in sizes)
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([axis.flatten() for axis in grid], -1)
