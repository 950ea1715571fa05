"""Derivatives beyond one backward pass, which kernels do not have: plain operations, or an error.

A custom autograd function or operator knows its first derivative only. PyTorch's other ways to
differentiate would go wrong without a word: forward mode does not see into an operator, and a
second derivative takes for constants what a backward pass has computed outside of autograd.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx

Gradients = tuple[Tensor | None, ...]


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: only plain operations do."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_not_transformed(function: str, backend: str) -> None:
    """Raise a NotImplementedError where `transformed`, for backends that are kernels."""
    if transformed():
        raise NotImplementedError(
            f'{function}: backend "{backend}" has first derivatives by backward() only, got a call '
            'under torch.func or forward-mode differentiation; use backend "auto" or "naive"'
        )


def first_derivatives_only(function: str) -> Callable:
    """Decorate the backward of a custom function: its gradients raise when differentiated again.

    Unlike PyTorch's `once_differentiable`, also where the incoming gradient is a constant: the
    gradients depend on saved tensors as well.

    Args:
        function: Public name put in front of the message.
    """

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def wrapper(ctx: FunctionCtx, *grads: Tensor) -> Gradients:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return results  # torch.compile has its own error for a second
            if forward_ad._current_level >= 0:
                raise NotImplementedError(_message(function))
            return _Barrier.apply(function, len(results), *results, *grads, *ctx.saved_tensors)

        return wrapper

    return decorate


class _Barrier(Function):
    """Passes on the first `count` tensors as functions of them all, with no derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, function: str, count: int, *tensors: Tensor | None) -> Gradients:
        ctx.function = function
        return tensors[:count]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Gradients:
        raise NotImplementedError(_message(ctx.function))


def first_derivatives_of(function: str, *tensors: Tensor | None) -> Gradients:
    """The tensors, with a backward that refuses to become part of a graph itself.

    For functions of other packages, whose second derivatives may be wrong without an error.
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
