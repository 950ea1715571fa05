"""Time and peak memory of a function, rates of the machine, and conditions of measurement."""

import ctypes
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESET = Path("/proc/self/clear_refs")  # writing 5 resets the peak of the resident memory (Linux)
STATUS = Path("/proc/self/status")
FEWEST = 3  # calls per median, unless a single call exceeds the time budget


def median_ms(
    function: Callable[[], object], repeats: int, budget_s: float = 3.0, device: str = "cpu"
) -> float:
    """Median milliseconds of a call after a warm-up; fewer repeats if the budget runs out."""
    start = time.perf_counter()
    first = _call_ms(function, device)
    fewest = 1 if first > 1e3 * budget_s else FEWEST
    times: list[float] = []
    while len(times) < repeats and (len(times) < fewest or time.perf_counter() - start < budget_s):
        times.append(_call_ms(function, device))
    return statistics.median(times)


def _call_ms(function: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def peak_mib(function: Callable[[], object], device: str = "cpu") -> float | None:
    """Increase of the memory in use during one call in MiB; None if unknown.

    On a CPU the resident memory of the process, on a GPU the memory allocated by PyTorch.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not RESET.exists():
        return None
    # Memory that earlier calls freed and the C library kept would hide the increase.
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = _status_mib("VmRSS")
    function()
    return max(0.0, _status_mib("VmHWM") - before)


def _status_mib(key: str) -> float:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def machine_rates(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Rates of the machine: GFLOP/s of a large matrix product, GB/s of a large copy."""
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    product_ms = median_ms(lambda: a @ a, 7, device=device)
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    copy_ms = median_ms(lambda: target.copy_(source), 7, device=device)
    return {
        "matmul_gflops": round(2 * size**3 / product_ms / 1e6, 1),
        "copy_gbs": round(2 * source.numel() / copy_ms / 1e6, 2),  # read and written
    }


def conditions(device: str = "cpu") -> dict[str, object]:
    """Machine, versions and date of a measurement."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        if names:
            return names[0].split(":")[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The current commit, with "+" if the package differs from it; None without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "plstm", "tasks"], check=False)
    return name + "+" * changed.returncode
