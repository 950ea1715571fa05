"""Matrices of spectral norm at most 1."""

import torch
from torch import Tensor

SQUARINGS = 7


def contraction(z: Tensor) -> Tensor:
    """Matrices of spectral norm at most 1 in the directions of z (..., J, J), most near orthogonal.

        (3 O - O O^T O) / 2,   O = z / tr((z^T z)^p)^(1 / 2p),   p = 2^7

    The divisor is the spectral norm times at most J^(1 / 2p), so the singular values of O are at
    most 1. A step of Newton and Schulz (o -> (3 o - o^3) / 2) brings those near 1 nearer, with a
    slope of 0 at 1, so that a long product of nearly orthogonal factors keeps its size; and it lets
    a singular value pass through 0, where a reflection becomes a rotation. Repeated squares need
    no decomposition, whose derivatives fail at equal singular values.
    """
    eps = torch.finfo(z.dtype).tiny ** 0.5
    z = z / torch.linalg.matrix_norm(z, keepdim=True).clamp(min=eps)
    power, log_norm = z.mT @ z, 0.0  # of trace 1
    for i in range(1, SQUARINGS + 1):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=eps)
        power, log_norm = power / trace, log_norm + trace.log() / 2 ** (i + 1)
    z = z * (-log_norm).exp()
    return 1.5 * z - 0.5 * z @ (z.mT @ z)
