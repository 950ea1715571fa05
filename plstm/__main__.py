"""Print which compiled kernels run on this machine, and why the others do not: python -m plstm."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from plstm.ops import delta_rule, gated_linear_attention, native, plstm_1d, plstm_2d

PACKAGES = ("plstm", "torch", "triton", "fla-core")


def sequence(device: str, backend: str) -> Tensor:
    """Run `plstm_1d` on a short sequence."""
    x, gate = torch.ones(1, 5, 1, 16, device=device), torch.ones(1, 5, 1, device=device)
    return plstm_1d(x, x, x, gate, gate, gate, gate, backend=backend)


def grid(device: str, backend: str) -> Tensor:
    """Run `plstm_2d` on a small grid."""
    x, gate = torch.ones(1, 3, 3, 1, 16, device=device), torch.ones(1, 3, 3, 1, device=device)
    edge, turn = gate[None, ..., None].repeat(1, 1, 1, 1, 1, 2), gate.new_ones(1, 1, 3, 3, 1, 2, 2)
    return plstm_2d(x, x, x, edge, turn, edge, gate, backend=backend)


def decay(device: str, backend: str) -> Tensor:
    """Run `gated_linear_attention` on a short sequence."""
    x = torch.ones(1, 5, 1, 16, device=device)
    return gated_linear_attention(x, x, x, -x[..., 0], backend=backend)


def delta(device: str, backend: str) -> Tensor:
    """Run `delta_rule` on a short sequence."""
    x = torch.ones(1, 5, 1, 16, device=device)
    return delta_rule(x, x, x, x[..., 0], backend=backend)


# Function, backend, device, and how to run it.
KERNELS: tuple[tuple[str, str, str, Callable[[str, str], Tensor]], ...] = (
    ("plstm_1d", "triton", "cuda", sequence),
    ("plstm_2d", "dense", "cpu", grid),
    ("plstm_2d", "scan", "cpu", grid),
    ("plstm_2d", "triton", "cuda", grid),
    ("gated_linear_attention", "fla", "cuda", decay),
    ("delta_rule", "fla", "cuda", delta),
)


def attempt(device: str, backend: str, run: Callable[[str, str], Tensor]) -> str:
    """Run a backend on a small input: "yes", or "no" with the reason on one line."""
    if device == "cuda" and not torch.cuda.is_available():
        return "no: there is no CUDA device"
    try:
        out = run(device, backend)
    except Exception as error:  # compilers, drivers and packages raise errors of their own
        return f"no: {' '.join(str(error).split())}"
    return "yes" if torch.isfinite(out).all() else "no: the output is not finite"


def report() -> str:
    """Return versions, compiler and devices, then one line per compiled backend."""
    facts = [("Python", platform.python_version())]
    facts += [(name, _version(name)) for name in PACKAGES]
    facts += [("C++ compiler", _compiler()), ("its kernels", str(native.cache_folder()))]
    facts += [("CPU threads", str(torch.get_num_threads()))]
    facts += [(f"cuda:{n}", _device(n)) for n in range(torch.cuda.device_count())]
    lines = [f"{name:<14}{value}" for name, value in facts]
    lines += ["", f"{'function':<24}{'backend':<9}{'device':<8}runs here"]
    for function, backend, device, run in KERNELS:
        lines.append(f"{function:<24}{backend:<9}{device:<8}{attempt(device, backend, run)}")
    lines += ["", 'Where none of them runs, "auto" uses plain PyTorch operations.']
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    try:
        path, text = native.find_compiler()
    except RuntimeError as error:
        return str(error)
    return f"{path}: {text.partition(chr(10))[0]}"


def _device(number: int) -> str:
    major, minor = torch.cuda.get_device_capability(number)
    return f"{torch.cuda.get_device_name(number)}, compute capability {major}.{minor}"


if __name__ == "__main__":
    print(report())
