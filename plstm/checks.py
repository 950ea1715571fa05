"""Input checks and precision rules shared by recurrences, layers and models."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Pattern = str  # for example "B L H K": a letter stands for a size, digits are literal sizes


def check_shapes(function: str, **tensors: tuple[Tensor, Pattern]) -> dict[str, int]:
    """Check tensors against shape patterns that share their letters.

    Args:
        function: Name that starts every message.
        tensors: Argument name to (tensor, pattern), for example `q=(q, "B L H K")`; the first
            tensor that uses a letter fixes its size, and "..." stands for one or more axes.

    Returns:
        Size of every letter.

    Raises:
        ValueError: wrong rank or size, not floating point, or tensors on different devices.
    """
    sizes: dict[str, int] = {}
    first_name, first = next((name, tensor) for name, (tensor, _) in tensors.items())
    for name, (tensor, pattern) in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"{function}: {name} must be a floating-point tensor, got {got}; convert it first"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{function}: all tensors must be on one device, got {first_name} on "
                f"{first.device} and {name} on {tensor.device}; move them with .to(device)"
            )
        axes = _axes(pattern, tensor.ndim)
        expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        wrong = len(axes) != tensor.ndim or any(
            want is not None and want != got
            for want, got in zip(expected, tensor.shape, strict=False)
        )
        if wrong:
            shape, got = ", ".join(pattern.split()), tuple(tensor.shape)
            known = ", ".join(f"{a}={sizes[a]}" for a in axes if a in sizes)
            raise ValueError(
                f"{function}: {name} must have shape ({shape}), got {got}"
                + (
                    f"; the other arguments fix {known}"
                    if known
                    else "; see the shapes in its docstring"
                )
            )
        sizes.update(zip(axes, tensor.shape, strict=True))
    return sizes


def _axes(pattern: Pattern, ndim: int) -> list[str]:
    """Names of the axes of a tensor with `ndim` of them."""
    before, dots, after = (part.split() for part in pattern.partition("..."))
    more = max(1, ndim - len(before) - len(after)) if dots else 0
    return [*before, *(f"n{i}" for i in range(more)), *after]


def check_choice(function: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{function}: {name} must be one of {listed}, got {value!r}")


def check_valid(function: str, valid: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raise a ValueError unless `valid`, where tokens are, is boolean, of this shape and device."""
    if valid.dtype != torch.bool or valid.shape != tuple(shape) or valid.device != device:
        raise ValueError(
            f"{function}: valid must be a torch.bool tensor {tuple(shape)} on {device}, True where "
            f"a token is, got {valid.dtype} {tuple(valid.shape)} on {valid.device}"
        )


def check_positive(function: str, **sizes: int) -> None:
    """Raise a ValueError unless every size is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{function}: {name} must be 1 or more, got {size}")


def check_not_empty(function: str, x: Tensor) -> None:
    """Raise a ValueError if a sequence (B, L, ...) has no position."""
    if x.shape[1] == 0:
        raise ValueError(f"{function}: the sequence must have at least one position, got L = 0")


def output_scale(scale: float | None, key_width: int) -> float:
    """The factor on an output: K^(-1/2) unless given; 1 if K = 0, where the output is 0."""
    return max(key_width, 1) ** -0.5 if scale is None else scale


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of states and sums: that of the widest input, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context without autocast, which the meta device does not support."""
    # If autocast is off, a context would only add a region to exported graphs.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
