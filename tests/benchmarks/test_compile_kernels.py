"""The Triton kernels compile for other GPUs, and fit their limits."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", minversion="3.6")

from benchmarks import kernels
from benchmarks.kernels import overwrites

LOOP = """
%tile_1 = ttg.local_alloc : () -> !ttg.memdesc<{buffers}x64x64xbf16, #shared, #smem, mutable>
%tile_2 = ttg.memdesc_index %tile_1[%c0] : !ttg.memdesc<{buffers}x64x64xbf16>
%out:2 = scf.for %i = %c0 to %c256 step %c64 {{
  %product = ttng.warp_group_dot %a, %tile_2, %sum {{isAsync = true}}
  %tile_3 = ttg.async_copy_global_to_local %pointers, %tile_2 mask %exists
}}
"""

SPILLING = (
    "1d bfloat16 L4096 H2 K128 V256",
    "2d bfloat16 32x32 H3 K16",
    "2d float32 32x32 H3 K16",
    "2d float32 64x64 H4 K64",
    "2d float32 128x128 H2 K64",
)


def compile_kernels(*arguments):
    """Run the command in a separate process, since this one uses the interpreter."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("buffers", "wrong"), [(1, True), (2, False)])
def test_a_single_buffer_under_unfinished_products(buffers, wrong):
    assert overwrites(LOOP.format(buffers=buffers)) == wrong
    assert not overwrites(LOOP.format(buffers=1).replace("true", "false"))


def test_small_selection():
    """The widest loop, and the kernels of grids, on Hopper."""
    done = compile_kernels("--targets", "sm_90", "--match", "1d bfloat16 L4096", "2d bfloat16 1x1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 launches, 0 with faults" in done.stdout


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"spill": 128, "shared": 101376}, ""),
        ({"spill": 129, "shared": 0}, "spills more than 128"),
        ({"spill": 0, "shared": 101377}, "shared memory above 101376"),
    ],
)
def test_faults(found, fault, monkeypatch):
    monkeypatch.setattr(kernels, "compile_for", lambda *_: SimpleNamespace(asm={"ttgir": ""}))
    monkeypatch.setattr(kernels, "needs", lambda made: found)
    _, (settings, *_) = next(kernels.cases())
    assert kernels.row("sm_89", "a case", settings, 128)["fault"] == fault


def test_a_compiler_that_fails(monkeypatch):
    def fail(*args):
        raise RuntimeError("ptxas stopped\nat once")

    monkeypatch.setattr(kernels, "compile_for", fail)
    _, (settings, *_) = next(kernels.cases())
    assert kernels.row("sm_90", "a case", settings, 0)["fault"] == "RuntimeError: ptxas stopped"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_all(target):
    """Wide heads or rows, and narrow heads on wide rows, spill; the other cases fit."""
    done = compile_kernels("--targets", target)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| sm")]
    faults = [line for line in rows if not line.rstrip("| ").endswith(("bf16", "tf32"))]
    known = [line for line in faults if any(case in line for case in SPILLING)]
    assert rows
    assert faults == known, done.stdout + done.stderr


@pytest.mark.slow
def test_amd():
    """In float32, for which AMD's compiler takes no tf32x3."""
    done = compile_kernels("--targets", "gfx942", "--match", "1d float32 L1 ", "2d float32 1x1")
    assert done.returncode == 0, done.stdout + done.stderr
