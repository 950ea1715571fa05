"""Linearized relative position encodings for queries and keys."""

import torch
from torch import Tensor

from plstm.modules.rotary import rotate


def apply_lrpe(x: Tensor, positions: Tensor, form: str, base: float = 10_000.0) -> Tensor:
    """Multi-dimensional linearized relative position encoding (MD-LRPE).

        cosine:  P_n(x) = (x cos(a_n), x sin(a_n))
                 <P_n(x), P_m(y)> = sum_i x_i y_i cos(a_n - a_m)_i
        rotate:  the pairs (x_i, x_{i + W/2}) are rotated by a_n

    with W angles for cosine, W / 2 for rotate, and theta_i = base^(-2 i / W), i = 0, 1, ... With
    one axis, a_n = n theta. With several, a_n = (n_1 theta, n_2 theta, ...): the axes share the
    angles evenly and each uses the first entries of theta.

    Args:
        x: Queries or keys, (..., L, H, W); W even to rotate.
        positions: Coordinates n of the L positions, (L, axes), or of each sample, (B, L, axes).
        form: "cosine" or "rotate".
        base: Longest wavelength divided by 2 pi.

    Returns:
        (..., L, H, 2 W) for cosine, (..., L, H, W) for rotate, in the dtype of x.

    Source: arXiv 2405.21022, with the frequencies of its author's code.
    """
    width = x.shape[-1]
    number = width if form == "cosine" else width // 2
    per_axis = -(-number // positions.shape[-1])
    theta = base ** (-2 * torch.arange(per_axis, device=x.device, dtype=x.dtype) / width)
    angles = (positions.to(x.dtype)[..., None] * theta).flatten(-2)
    angles = angles[..., None, :number]  # (L, 1, number)
    if form == "rotate":
        return rotate(x, angles)
    return torch.cat([x * angles.cos(), x * angles.sin()], -1)
