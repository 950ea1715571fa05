"""Triton kernels: where they can run, their launch settings, and whether they compile."""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

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
SMALLEST_BLOCK = 16  # the smallest side of a tile in tl.dot


class Launch(NamedTuple):
    """All that determines the compiled code of a kernel and the number of its programs.

    Args:
        kernel: Function decorated with `triton.jit`; takes tensors, then sizes, then constants.
        grid: Number of programs along up to three axes.
        dtypes: Dtypes of the tensors, in order.
        sizes: Integer arguments of the compiled kernel, by name.
        constants: Compile-time constants, by name.
        num_warps: Warps per program.
        num_stages: Loop iterations with loads in flight at once (software pipelining).
    """

    kernel: Any
    grid: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    sizes: dict[str, int]
    constants: dict[str, int | bool | str]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int | bool | str]:
        """Keyword arguments of a launch."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return self.sizes | self.constants | options


def precision(amd: bool = torch.version.hip is not None) -> str:
    """Value of tl.dot's input_precision that keeps float32 accuracy: on AMD plain "ieee"."""
    return "ieee" if amd else "tf32x3"


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def block(size: int) -> int:
    """Side of a tile that covers `size` elements: a power of two, as Triton requires."""
    return max(SMALLEST_BLOCK, 1 << (size - 1).bit_length())


def operand_dtype(sums: torch.dtype, *tensors: Tensor) -> torch.dtype:
    """Dtype of the operands of products: bfloat16 if all tensors are and sums are in float32."""
    narrow = sums == torch.float32 and all(x.dtype == torch.bfloat16 for x in tensors)
    return torch.bfloat16 if narrow else sums


def prefers_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" takes a Triton kernel: on NVIDIA tensor cores, and not in float64.

    The kernels compile for AMD GPUs, but have not been run on one yet.
    """
    fits = (
        device.type == "cuda"
        and torch.version.hip is None
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


def launch(settings: Launch, *tensors: Tensor) -> None:
    """Run a Triton kernel on the device of its first tensor; Triton uses the current one."""
    assert tuple(x.dtype for x in tensors) == settings.dtypes
    # torch.compile does not support torch.cuda.device_of; -1, for CPU tensors, does nothing.
    with torch.cuda.device(tensors[0].get_device()):
        settings.kernel[settings.grid](*tensors, **settings.options)


def compiles(function: str, launches: Iterable[Launch], device: torch.device) -> bool:
    """Compile kernels for a CUDA device and load them there; on failure warn, return False.

    Triton caches them for the launches that follow.
    """
    if INTERPRETED:
        return True
    try:
        with torch.cuda.device(device):
            for settings in launches:
                made = settings.kernel.warmup(
                    *settings.dtypes, **settings.options, grid=settings.grid
                )
                made._init_handles()  # raises if a program needs more than the device has
    except Exception as error:  # the compiler and its tools raise many types
        reason = f"Triton kernels do not compile for {device}, {type(error).__name__}: {error}"
        warn_slower(function, reason, "update triton and the driver of the GPU")
        return False
    return True
