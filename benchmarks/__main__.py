"""python -m benchmarks: speed and memory of ops, layers, mixers, training steps and more.

Every case is measured beside its anchor in the same run: softmax attention by
scaled_dot_product_attention; for graphs, GIN of PyTorch Geometric; on a GPU also the kernels of
flash-linear-attention if they are installed.

python -m benchmarks compare: nets trained with the same budget, see compare --help.
python -m benchmarks sweep FOLDER: loss against learning rate for the runs of a sweep.
python -m benchmarks fingerprints: boosted trees on molecular fingerprints, as a baseline.
python -m benchmarks leaks: how well parts of an arrow-pointing image predict its label.
python -m benchmarks streaming: a trained net reads a text as one stream and in windows.
python -m benchmarks kernels: resources that the Triton kernels need on GPUs, without a GPU.
"""

import argparse
import gc
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from benchmarks import (
    compare,
    fingerprints,
    graphs,
    lanes,
    layers,
    leaks,
    mixers,
    ops,
    packed,
    results,
    steps,
    streaming,
    sweep,
)
from benchmarks.case import Case, Setting
from benchmarks.measure import commit, conditions, machine_rates, median_ms, peak_mib
from benchmarks.plot import picture
from benchmarks.quiet import quiet_trainer
from benchmarks.results import Row

SUBJECTS: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "ops": ops.cases,
    "lanes": lanes.cases,
    "layers": layers.cases,
    "mixers": mixers.cases,
    "packed": packed.cases,
    "steps": steps.cases,
    "graphs": graphs.cases,
}
RESULTS = Path(__file__).parent / "results"


def measure(case: Case, repeats: int, device: str) -> Row:
    """Measure forward, forward with backward, and peak memory of the latter."""
    work = case.make()
    forward_ms = median_ms(work.forward, repeats, device=device) if work.forward else None
    total_ms = median_ms(work.total, repeats, device=device)
    peak = peak_mib(work.total, device)
    return {
        "subject": case.subject,
        "kind": case.kind,
        "group": case.group,
        "form": case.form,
        "batch": case.batch,
        "tokens": case.tokens,
        "series": case.series,
        "anchor": case.anchor,
        "forward_ms": _rounded(forward_ms),
        "backward_ms": _rounded(total_ms - forward_ms) if work.forward else None,
        "total_ms": _rounded(total_ms),
        "peak_mib": _rounded(peak, 1),
        "gflop": work.cost.flops / 1e9 if work.cost else None,
        "gb": work.cost.bytes / 1e9 if work.cost else None,
        "state_size": work.state_size,
    }


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def chosen(cases: Iterable[Case], match: str, long: bool) -> Iterator[Case]:
    """Cases whose group contains `match`, long ones only on request."""
    return (case for case in cases if match in case.group and (long or not case.long))


def run(cases: Iterable[Case], where: Row, repeats: int) -> list[Row]:
    """Measure all cases; skip a case that runs out of memory, with a message."""
    rows = []
    for case in cases:
        try:
            row = measure(case, repeats, where["device"])
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error):
                raise
            print(f"skipped {case.group}: {case.form}: out of memory", flush=True)
            continue
        rows.append(row | where)
        print(f"{row['total_ms']:10.1f} ms  {case.group}: {case.form}", flush=True)
        gc.collect()  # tensors of this case must not count as memory of the next
    results.add_ratios(rows)
    return rows


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)}; default: all"
    )
    parser.add_argument("--match", default="", help="only groups that contain this text")
    parser.add_argument("--long", action="store_true", help="also the largest sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=15, help="most measured calls per case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    parser.add_argument(
        "--name", default="speed", help="writes NAME.jsonl and NAME.png; new rows replace"
    )
    args = parser.parse_args(arguments)
    unknown = set(args.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(SUBJECTS)}")
    return args


@quiet_trainer()
def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        compare.main()
        return
    if sys.argv[1:2] == ["sweep"]:
        sweep.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["fingerprints"]:
        fingerprints.main()
        return
    if sys.argv[1:2] == ["leaks"]:
        leaks.main()
        return
    if sys.argv[1:2] == ["streaming"]:
        streaming.main()
        return
    if sys.argv[1:2] == ["kernels"]:
        from benchmarks import kernels  # imports triton

        kernels.main()
        return
    args = parse(sys.argv[1:])
    setting = Setting(args.device, getattr(torch, args.dtype))
    where = {
        "device": args.device,
        "dtype": args.dtype,
        **conditions(args.device),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        **machine_rates(args.device, setting.dtype),
    }
    sys.argv = sys.argv[:1]  # LightningCLI warns about arguments it does not know
    cases = (case for name in args.subjects or SUBJECTS for case in SUBJECTS[name](setting))
    rows = run(chosen(cases, args.match, args.long), where, args.repeats)
    print("\n" + ", ".join(f"{k} {v}" for k, v in where.items()) + "\n\n" + results.table(rows))
    merged = results.merge(args.out / f"{args.name}.jsonl", rows)
    if figure := picture(merged):
        figure.savefig(args.out / f"{args.name}.png", dpi=150)


if __name__ == "__main__":
    main()
