"""Orthogonal matrices that training can turn from rotations into reflections."""

import math

import torch
from torch import Tensor

STEPS = 15


def orthogonal(z: Tensor) -> Tensor:
    """Orthogonal matrices nearest to z (..., J, J), with the gradient of sqrt(J) z / |z|.

    Steps of Newton and Schulz, o -> (3 o - o o^T o) / 2 from z / |z| on with the Frobenius norm,
    take all singular values to 1 (one below |z| / 500 to less, none above 1). The derivative of the
    exact result would never change the sign of the determinant. The straight-through one (arXiv
    1308.3432) moves z as if it were used itself, through the singular matrices to the other side,
    while a product of any number of factors stays orthogonal.
    """
    unit = z / torch.linalg.matrix_norm(z, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    soft, exact = math.sqrt(z.shape[-1]) * unit, unit.detach()
    for _ in range(STEPS):
        exact = 1.5 * exact - 0.5 * exact @ (exact.mT @ exact)
    return soft + (exact - soft).detach()
