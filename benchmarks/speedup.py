"""python -m benchmarks.speedup BEFORE AFTER: compare two files of rows.

Shows only cases in both files. Times include forward and backward (of a step or an epoch). They may
come from different runs, so look at the ratios to the anchor too: a change of the machine affects
both.
"""

import argparse
from pathlib import Path

from benchmarks.results import Row, key, markdown, number, read

HEAD = ["case", "form", "before ms", "after ms", "speed-up", "before / anchor", "after / anchor"]
HEAD += ["before MiB", "after MiB"]


def table(before: list[Row], after: list[Row]) -> str:
    """One line per case that both runs have, in the order of the later run."""
    old = {key(row): row for row in before}
    pairs = [(old[key(row)], row) for row in after if key(row) in old]
    return markdown(HEAD, [_cells(*pair) for pair in pairs])


def _cells(before: Row, after: Row) -> list[str]:
    cells = [after["group"], after["form"]]
    cells += [number(row["total_ms"]) for row in (before, after)]
    cells.append(f"{before['total_ms'] / after['total_ms']:.2f}")
    cells += [number(row["time_ratio"], 2) for row in (before, after)]
    return [*cells, *(number(row["peak_mib"], 0) for row in (before, after))]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="JSON lines of the earlier run")
    parser.add_argument("after", type=Path, help="JSON lines of the later run")
    args = parser.parse_args()
    print(table(read(args.before), read(args.after)))


if __name__ == "__main__":
    main()
