"""Where Triton kernels can run, and their launch."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from plstm.ops.fallback import warn_slower


def _has_triton() -> bool:
    try:
        major, minor = version("triton").split(".")[:2]
    except PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 6)  # Triton 3.2 crashes when it compiles our kernels


HAS_TRITON = _has_triton()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides at import as well


def prefers_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" takes a Triton kernel: on a GPU with tensor cores, and not in float64."""
    fits = (
        device.type == "cuda"
        and dtype != torch.float64
        and torch.cuda.get_device_capability(device)[0] >= 8
    )
    if fits and not HAS_TRITON:
        reason = "the package triton 3.6 or newer is not installed"
        warn_slower("plstm_1d, plstm_2d", reason, 'install the extra "gpu"')
    return fits and HAS_TRITON


def check_triton(function: str, device: torch.device) -> None:
    """Raise a ValueError unless Triton kernels can run on tensors of this device."""
    if not HAS_TRITON:
        raise ValueError(
            f'{function}: backend "triton" needs the package triton 3.6 or newer, which is not '
            'installed; install the extra "gpu", or use backend "auto"'
        )
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'{function}: backend "triton" needs tensors on a CUDA device, got {device}; move them '
            "there, or set TRITON_INTERPRET=1 before Python starts to run its kernels on the CPU"
        )


def launch(kernel: Any, grid: tuple[int, ...], *args: Tensor | int, **options: Any) -> None:
    """Run a Triton kernel on the device of its first argument: Triton takes the current one."""
    # torch.compile knows no torch.cuda.device_of; -1, of the interpreter's tensors, does nothing.
    with torch.cuda.device(args[0].get_device()):
        kernel[grid](*args, **options)
