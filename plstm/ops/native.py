"""C++ kernels for the CPU, compiled on first use with the system's compiler and cached."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from plstm.ops.fallback import warn_slower

HEADERS = Path(__file__).parent  # of native.h; other headers are beside the source
# Sums may be reordered, so that dot products vectorize; infinities and NaN stay valid.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
SHOWN = 3  # lines of compiler output in a warning
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Load the library of a source file, and compile it first unless it is in the cache.

    Raises:
        RuntimeError: no compiler was found, or it failed.
    """
    compiler, version = find_compiler()
    command = [compiler, *FLAGS, "-I", str(HEADERS)]
    texts = (source, *sorted({*HEADERS.glob("*.h"), *source.parent.glob("*.h")}))
    parts = (*command, version, _processor(), *(file.read_text() for file in texts))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = cache_folder() / f"{source.parent.name}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            done = subprocess.run(
                [*command, str(source), "-o", str(built)], capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(
                    f"plstm.ops.native: {compiler} failed on {source}:\n{done.stderr}"
                )
            built.replace(library)  # atomic: other processes may build it too
    return ctypes.CDLL(str(library))


def find_compiler() -> tuple[str, str]:
    """Path and version of the C++ compiler: CXX, c++ or g++.

    Raises:
        RuntimeError: there is none, or it does not start.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "plstm.ops.native: a C++ compiler is needed for the CPU kernels and none was found; "
            "install one or set CXX"
        )
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(
            f"plstm.ops.native: the C++ compiler {compiler} does not start: {error.strerror}; "
            "install one or set CXX"
        ) from None
    return compiler, done.stdout


@functools.cache
def available(source: Path) -> bool:
    """Whether the kernels of a source file compile on this machine; warns if not."""
    try:
        load(source)
    except (RuntimeError, OSError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:SHOWN])
        warn_slower(source.parent.name, reason, "install a C++ compiler such as g++, or set CXX")
        return False
    return True


def call(source: Path, name: str, *args: Tensor | int) -> None:
    """Run a kernel on contiguous tensors of one dtype and integers; adds the thread count."""
    dtype = next(x.dtype for x in args if isinstance(x, Tensor))
    function = getattr(load(source), f"{name}_{SUFFIX[dtype]}")
    function(*(_argument(x, dtype) for x in args), ctypes.c_int64(torch.get_num_threads()))


def _argument(x: Tensor | int, dtype: torch.dtype) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(x, int):
        return ctypes.c_int64(x)
    assert x.is_contiguous() and x.dtype == dtype and x.device.type == "cpu"
    return ctypes.c_void_p(x.data_ptr())


def cache_folder() -> Path:
    """Folder of the compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "plstm"


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x for x in lines if x.startswith(("flags", "Features"))), platform.processor())
