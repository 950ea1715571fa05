"""python -m benchmarks: speed and memory of the recurrences, as a table and as JSON lines."""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.measure import conditions, median_ms, peak_mib
from benchmarks.ops import Case, cases


def measure(case: Case, repeats: int) -> dict[str, object]:
    """Forward, forward with backward, and peak memory of the latter."""

    def forward() -> None:
        with torch.no_grad():
            case.function()

    def both() -> None:
        torch.autograd.grad(case.function().square().sum(), case.inputs)

    forward_ms, both_ms = median_ms(forward, repeats), median_ms(both, repeats)
    return {
        "group": case.group,
        "form": case.form,
        "forward_ms": round(forward_ms, 2),
        "backward_ms": round(both_ms - forward_ms, 2),
        "peak_mib": peak_mib(both),
    }


def table(rows: list[dict[str, object]]) -> str:
    """Markdown; the last form of a group is the anchor that the ratio refers to."""
    anchors = {row["group"]: row["forward_ms"] + row["backward_ms"] for row in rows}
    lines = [
        "| case | form | forward ms | backward ms | both / softmax | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = (row["forward_ms"] + row["backward_ms"]) / anchors[row["group"]]
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append(
            f"| {row['group']} | {row['form']} | {row['forward_ms']:.1f} "
            f"| {row['backward_ms']:.1f} | {ratio:.2f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="measured calls of a case, at most")
    parser.add_argument("--out", type=Path, help="file for JSON lines, one per case")
    args = parser.parse_args()
    where = conditions()
    rows = []
    for case in cases():
        rows.append(measure(case, args.repeats))
        print(f"measured {case.group}: {case.form}", flush=True)
    print("\n" + ", ".join(f"{k} {v}" for k, v in where.items()) + "\n\n" + table(rows))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("".join(json.dumps({**row, **where}) + "\n" for row in rows))


if __name__ == "__main__":
    main()
