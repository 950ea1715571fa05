"""Orthogonal matrices that training can change from rotations to reflections."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from plstm.ops.derivatives import transformed

STEPS = 15
BLOCK = 8192  # matrices at a time on a CPU, which fit in its cache


def orthogonal(z: Tensor) -> Tensor:
    """Orthogonal matrices nearest to z (..., J, J), with the gradient of sqrt(J) z / |z|.

    Newton-Schulz steps, o -> (3 o - o o^T o) / 2 starting from z / |z| with the Frobenius norm,
    bring all singular values to 1 (those below |z| / 500 to less, never above 1). With the exact
    derivative, the sign of the determinant could not change. The straight-through gradient (arXiv
    1308.3432) moves z as if it were used directly, also through singular matrices, while products
    of any number of factors stay orthogonal.
    """
    unit = z / torch.linalg.matrix_norm(z, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    soft = math.sqrt(z.shape[-1]) * unit
    one_operator = torch.compiler.is_compiling() and not transformed()
    exact = (_operator if one_operator else _newton_schulz)(unit.detach())
    return soft + (exact - soft).detach()


@torch.library.custom_op("plstm::newton_schulz", mutates_args=())
def _operator(o: Tensor) -> Tensor:
    """For compiled graphs, where plain operations would be thousands of nodes."""
    return _newton_schulz(o)


@_operator.register_fake
def _(o: Tensor) -> Tensor:
    return torch.empty_like(o)


def _newton_schulz(o: Tensor) -> Tensor:
    """All steps, starting from o (..., J, J).

    Products of many small matrices are several times faster row by row, with the batch on the last
    axis.
    """
    lanes, blocks = o.shape[-1], []
    for x in o.reshape(-1, lanes, lanes).split(BLOCK if o.device.type == "cpu" else o.numel() + 1):
        x = x.permute(1, 2, 0).contiguous()
        for _ in range(STEPS):
            gram = _sum_of_products((row[:, None], row) for row in x)
            cubed = _sum_of_products((x[:, k, None], gram[k]) for k in range(lanes))
            x = torch.add(1.5 * x, cubed, alpha=-0.5)
        blocks.append(x.permute(2, 0, 1))
    return torch.cat(blocks).view(o.shape)


def _sum_of_products(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    (a, b), *others = pairs
    total = a * b
    for a, b in others:
        total.addcmul_(a, b)
    return total
