"""The Triton kernels compile for GPUs that are not here, and fit them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.6")

from benchmarks.kernels import overwrites

LOOP = """
%tile_1 = ttg.local_alloc : () -> !ttg.memdesc<{buffers}x64x64xbf16, #shared, #smem, mutable>
%tile_2 = ttg.memdesc_index %tile_1[%c0] : !ttg.memdesc<{buffers}x64x64xbf16>
%out:2 = scf.for %i = %c0 to %c256 step %c64 {{
  %product = ttng.warp_group_dot %a, %tile_2, %sum {{isAsync = true}}
  %tile_3 = ttg.async_copy_global_to_local %pointers, %tile_2 mask %exists
}}
"""


def compile_kernels(*arguments):
    """Run the command in a process of its own: the interpreter is on in this one."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("buffers", "wrong"), [(1, True), (2, False)])
def test_a_single_buffer_under_unfinished_products(buffers, wrong):
    assert overwrites(LOOP.format(buffers=buffers)) == wrong
    assert not overwrites(LOOP.format(buffers=1).replace("true", "false"))


def test_small_selection():
    """The widest loop on Hopper; AMD takes no tf32x3."""
    for target, case, launches in (
        ("sm_90", "1d bfloat16 L4096", 6),
        ("gfx942", "1d float32 L1 ", 6),
    ):
        done = compile_kernels("--targets", target, "--match", case)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{launches} launches, 0 at fault" in done.stdout


def test_faults_are_found():
    done = compile_kernels("--targets", "sm_80", "--match", "2d bfloat16 1x1", "--spill", "-1")
    assert done.returncode == 1
    assert "3 launches, 3 at fault" in done.stdout
    assert "spills more than -1" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_all(target):
    done = compile_kernels("--targets", target)
    assert done.returncode == 0, done.stdout + done.stderr
