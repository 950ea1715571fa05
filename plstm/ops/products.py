"""Products of consecutive transitions: the (I - T)^-1 of a path graph."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from plstm.ops.derivatives import transformed


class _TransitionProducts(torch.autograd.Function):
    """Saves only the result, which is all that the backward of an inverse needs."""

    @staticmethod
    def forward(ctx: FunctionCtx, transition: Tensor) -> Tensor:
        products = _products(transition).tril_()
        ctx.save_for_backward(products)
        return products

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (products,) = ctx.saved_tensors
        return transition_gradient(products, grad)


def transition_products(transition: Tensor) -> Tensor:
    """All products of consecutive factors, P[t, s] = T[s] T[s+1] ... T[t-1] for s <= t, 0 above.

    The empty product on the diagonal is 1. Equals (I - N)^-1 with T on the first subdiagonal of N.
    Multiplies only, so zero, negative and tiny factors are exact, in the gradient too.

    Args:
        transition: Factors T, (..., L).

    Returns:
        Lower-triangular products, (..., L + 1, L + 1).

    Source: arXiv 2506.11997, the resolvent of the transition matrix on a path graph.
    """
    if transformed():
        return _products(transition).tril()
    return _TransitionProducts.apply(transition)


def _products(transition: Tensor) -> Tensor:
    """`transition_products` with ones above the diagonal."""
    size = transition.shape[-1] + 1
    lower = transition.new_ones(size, size).tril()
    factors = torch.nn.functional.pad(transition, (1, 0), value=1.0).unsqueeze(-1)
    # Factors below the diagonal, ones elsewhere.
    return torch.addcmul(lower.mT, lower.tril(-1), factors).cumprod(-2)


def transition_gradient(products: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the factors, (..., L), from that of their products P, (..., L + 1, L + 1).

    d (I - N)^-1 = P dN P, so dN = P^T grad P^T; only the subdiagonal of N varies. Entries of `grad`
    above the diagonal are ignored.
    """
    left = products.mT @ grad
    return (left[..., 1:, :] * products[..., :-1, :]).sum(-1)
