"""Where Triton kernels can run."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch


def _has_triton() -> bool:
    try:
        major, minor = version("triton").split(".")[:2]
    except PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 6)  # the compiler of 3.2 dies of our kernels


HAS_TRITON = _has_triton()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton decides at import as well


def prefers_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" takes a Triton kernel: on a GPU with tensor cores, and not in float64."""
    return (
        HAS_TRITON
        and device.type == "cuda"
        and dtype != torch.float64
        and torch.cuda.get_device_capability(device)[0] >= 8
    )


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
