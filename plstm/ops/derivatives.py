"""Second derivatives, forward mode and torch.func: plain operations for them, or an error.

A custom autograd function or operator defines its first derivative only. PyTorch's other ways to
differentiate would silently be wrong: forward mode does not see into an operator, and a second
derivative treats as constant what a backward pass has computed outside of autograd.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx

Gradients = tuple[Tensor | None, ...]


def transformed() -> bool:
    """Whether torch.func or forward mode is active, which only plain operations support."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_not_transformed(function: str, backend: str) -> None:
    """Raise a NotImplementedError if `transformed()`; for backends that are kernels."""
    if transformed():
        raise NotImplementedError(
            f'{function}: backend "{backend}" has first derivatives by backward() only, got a call '
            'under torch.func or forward-mode differentiation; use backend "auto" or "naive"'
        )


def first_derivatives_only(function: str) -> Callable:
    """Decorate a custom backward so that differentiating its gradients raises an error.

    PyTorch's `once_differentiable` raises only if the incoming gradient requires one; this also
    covers the saved tensors, on which the gradients depend as well.

    Args:
        function: Public name that starts the message.
    """

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def wrapper(ctx: FunctionCtx, *grads: Tensor) -> Gradients:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return results  # torch.compile raises its own error for second derivatives
            if forward_ad._current_level >= 0:
                raise NotImplementedError(_message(function))
            return _Barrier.apply(function, len(results), *results, *grads, *ctx.saved_tensors)

        return wrapper

    return decorate


class _Barrier(Function):
    """Returns the first `count` tensors; depends on all, and has no derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, function: str, count: int, *tensors: Tensor | None) -> Gradients:
        ctx.function = function
        return tensors[:count]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Gradients:
        raise NotImplementedError(_message(ctx.function))


def first_derivatives_of(function: str, *tensors: Tensor | None) -> Gradients:
    """Return the tensors; their backward pass cannot be differentiated again.

    For functions of other packages, whose second derivatives may be silently wrong.
    """
    return _Once.apply(function, *tensors)


class _Once(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, function: str, *tensors: Tensor | None) -> Gradients:
        ctx.function = function
        return tensors

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Gradients:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(_message(ctx.function))
        return None, *grads


def _message(function: str) -> str:
    return (
        f"{function}: this backend has first derivatives only, and its gradients are being "
        'differentiated again; backend="naive" differentiates twice, as does torch.func'
    )
