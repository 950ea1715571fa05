"""Matrices of spectral norm at most 1."""

import torch
from torch import Tensor


def contraction(z: Tensor) -> Tensor:
    """Matrices of spectral norm at most 1 in the directions of z (..., J, J); orthogonal ones stay.

        O = sqrt(min(J, 4)) z / |z|_F,   then (3 O - O O^T O) / 2, once for J up to 4

    The singular values o of O are at most 2, where |3 o - o^3| / 2 is at most 1. This step of
    Newton and Schulz has slope 0 at o = 1, so that a long product of nearly orthogonal factors
    keeps its size, and it lets a singular value pass through 0, where a reflection becomes a
    rotation. For J above 4 an orthogonal z begins below 1, and further steps lead there.

    Args:
        z: Square matrices; zeros stay zeros.
    """
    lanes, eps = z.shape[-1], torch.finfo(z.dtype).tiny ** 0.5
    norm = torch.linalg.matrix_norm(z, keepdim=True).clamp(min=eps)
    o = z * (min(lanes, 4) ** 0.5 / norm)
    for _ in range(1 if lanes <= 4 else lanes.bit_length()):
        o = 1.5 * o - 0.5 * o @ (o.mT @ o)
    return o
