"""Time and peak memory of a function, and where it was measured."""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

RESET = Path("/proc/self/clear_refs")  # writing 5 resets the peak of the resident memory (Linux)
STATUS = Path("/proc/self/status")


def median_ms(function: Callable[[], object], repeats: int, budget_s: float = 20.0) -> float:
    """Median milliseconds of a call after a warm-up; fewer repeats where the budget runs out."""
    start = time.perf_counter()
    function()
    times: list[float] = []
    while len(times) < repeats and (not times or time.perf_counter() - start < budget_s):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def peak_mib(function: Callable[[], object]) -> float | None:
    """Rise of the resident memory during one call in MiB; None where the system cannot tell."""
    if not RESET.exists():
        return None
    # What earlier calls freed, and the C library kept, would hide the rise.
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = _status_mib("VmRSS")
    function()
    return max(0.0, _status_mib("VmHWM") - before)


def _status_mib(key: str) -> float:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def conditions() -> dict[str, object]:
    """Machine, versions and date of a measurement."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
