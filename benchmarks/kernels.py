"""python -m benchmarks kernels: resources that the Triton kernels need, compiled ahead of time.

Needs no GPU. Compiles the launches of a forward and a backward pass for every target. A row shows
the registers and spilled bytes per thread, the bytes of shared memory per program, and the matrix
instructions.

The exit status is 1 if a kernel does not compile, needs more shared memory than the target has,
spills more than --spill bytes, or overwrites operands of matrix products that may still be read.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks.results import markdown
from plstm.ops import kernels
from plstm.ops.kernels import Launch
from plstm.ops.plstm_1d import triton as sequences
from plstm.ops.plstm_2d import triton as grids


class Chip(NamedTuple):
    """A compiler target, and its limit on shared memory per program in bytes."""

    target: GPUTarget
    shared_memory: int


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 166912),  # A100
    "sm_86": Chip(GPUTarget("cuda", 86, 32), 101376),  # A40, RTX 30
    "sm_89": Chip(GPUTarget("cuda", 89, 32), 101376),  # L40, RTX 40
    "sm_90": Chip(GPUTarget("cuda", 90, 32), 232448),  # H100
    "sm_100": Chip(GPUTarget("cuda", 100, 32), 232448),  # B200
    "sm_120": Chip(GPUTarget("cuda", 120, 32), 101376),  # RTX 50
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), 65536),  # MI300
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SPILL = 160  # accepted bytes per thread, enough for a few addresses
ORDERS = 0b11_10_01_00  # `scan_orders` of all four corners, or of the first
# Length, heads, K, V. The first is that of configs/text.yaml.
SEQUENCES = (
    (256, 4, 32, 32),
    (1024, 4, 64, 64),
    (1000, 3, 37, 5),
    (4096, 2, 128, 256),
    (1, 1, 1, 1),
)
# Side, heads, K and V, corners. The first are those of configs/quickstart.yaml and arrow.yaml.
GRIDS = (
    *((8, 6, 8, 4), (8, 3, 16, 4), (12, 6, 32, 4), (12, 3, 64, 4), (24, 6, 32, 4), (24, 3, 64, 4)),
    *((32, 3, 16, 4), (14, 4, 64, 1), (64, 4, 64, 4), (17, 2, 40, 2), (64, 2, 128, 4)),
    *((128, 2, 64, 4), (1, 1, 1, 1)),
)


def cases() -> Iterator[tuple[str, list[Launch]]]:
    """Name and launches of every case; the target sets the precision."""
    for name, dtype in DTYPES.items():
        for length, heads, key, value in SEQUENCES:
            problem = sequences.Problem(
                *(2, length, heads, key, value),
                dtype,
                torch.float32,
                sequences.CHUNK_SIZE[dtype],
                "",
            )
            yield f"1d {name} L{length} H{heads} K{key} V{value}", sequences.launches(problem)
        for side, heads, width, corners in GRIDS:
            problem = grids.Problem(
                2, side, side, heads, width, width, corners, ORDERS, dtype, torch.float32, ""
            )
            yield f"2d {name} {side}x{side} H{heads} K{width} C{corners}", grids.launches(problem)


def compile_for(target: GPUTarget, settings: Launch) -> CompiledKernel:
    """Compile a launch as Triton does for tensors aligned to 16 bytes, as in PyTorch."""
    constants = settings.constants | {"PRECISION": kernels.precision(amd=target.backend == "hip")}
    constants |= {name: 1 for name, size in settings.sizes.items() if size == 1}
    dtypes = iter(settings.dtypes)
    signature, attributes = {}, {}
    for position, name in enumerate(settings.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        size = settings.sizes.get(name)
        signature[name] = "i32" if size is not None else POINTERS[next(dtypes)]
        if size is None or size % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(settings.kernel, signature, constants, attributes)
    options = {"num_warps": settings.num_warps, "num_stages": settings.num_stages}
    return triton.compile(source, target, options)


POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def needs(made: CompiledKernel) -> dict[str, int | str]:
    """Registers and spilled bytes per thread, shared memory per program, matrix instructions."""
    amd = "ptx" not in made.asm
    registers, spill = _registers_amd(made) if amd else _registers(made)
    return {
        "warps": made.metadata.num_warps,
        "registers": registers,
        "spill": spill,
        "shared": made.metadata.shared,
        "matrix": _matrix_instructions(made.asm["amdgcn" if amd else "ptx"]),
    }


def _registers(made: CompiledKernel) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])


def _registers_amd(made: CompiledKernel) -> tuple[int, int]:
    names = ("vgpr_count", "private_segment_fixed_size")
    return tuple(int(re.search(rf"\.{name}:\s+(\d+)", made.asm["amdgcn"])[1]) for name in names)


def _matrix_instructions(assembly: str) -> str:
    pattern = r"(wgmma|tcgen05|mma)\.(?:mma_async|mma|sync)\.\S*?(tf32|bf16|f16|f64)\b|v_(mfma_\w+)"
    found = Counter(".".join(filter(None, x)) for x in re.findall(pattern, assembly))
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def row(chip: str, case: str, settings: Launch, most_spill: int) -> dict[str, int | str]:
    """One row of the table; "fault" is empty if nothing is wrong."""
    first = {"target": chip, "case": case, "kernel": settings.kernel.__name__}
    try:
        made = compile_for(CHIPS[chip].target, settings)
        found = needs(made)
    except Exception as error:  # the compiler and its tools raise many types
        return first | {"fault": f"{type(error).__name__}: {error}".splitlines()[0]}
    faults = [f"spills more than {most_spill}"] * (found["spill"] > most_spill)
    limit = CHIPS[chip].shared_memory
    faults += [f"shared memory above {limit}"] * (found["shared"] > limit)
    faults += ["overwrites operands"] * overwrites(made.asm["ttgir"])
    return first | found | {"fault": "; ".join(faults)}


def overwrites(ttgir: str) -> bool:
    """Whether a loop copies the next tile into a single buffer that pending products still read.

    `ttgir` is Triton's last own intermediate representation. A product waits for the product of the
    previous iteration, not for itself, so its operands need two buffers.
    """
    views = dict(re.findall(r"(%\w+) = ttg\.memdesc_(?:index|trans) (%\w+)", ttgir))
    single = set(re.findall(r"(%\w+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<1x", ttgir))
    products = re.findall(r"warp_group_dot (%\w+), (%\w+), .*isAsync = true", ttgir)
    read = {_buffer(operand, views) for operands in products for operand in operands}
    copied = re.findall(r"async_copy_global_to_local %\w+, (%\w+)", ttgir.partition("scf.for")[2])
    return any(_buffer(x, views) in read & single for x in copied)


def _buffer(name: str, views: dict[str, str]) -> str:
    """The buffer behind nested views of shared memory."""
    while name in views:
        name = views[name]
    return name


COLUMNS = ("target", "case", "kernel", "warps", "registers", "spill", "shared", "matrix", "fault")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", nargs="+", choices=CHIPS, default=["sm_80", "sm_90"])
    parser.add_argument(
        "--match", nargs="+", default=[""], help="only cases that contain one of these texts"
    )
    parser.add_argument("--spill", type=int, default=SPILL, help="accepted bytes per thread")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    if kernels.INTERPRETED:
        sys.exit("TRITON_INTERPRET=1 disables the compiler; unset it")
    args = parse(sys.argv[2:])
    rows = []
    for case, launches in cases():
        if any(text in case for text in args.match):
            for chip, settings in itertools.product(args.targets, launches):
                rows.append(row(chip, case, settings, args.spill))
                print(*rows[-1].values(), file=sys.stderr, flush=True)  # shows progress
    print(markdown(COLUMNS, [[str(x.get(name, "")) for name in COLUMNS] for x in rows]))
    at_fault = sum(bool(x["fault"]) for x in rows)
    print(f"\nTriton {triton.__version__}: {len(rows)} launches, {at_fault} with faults")
    sys.exit(at_fault > 0 or not rows)
