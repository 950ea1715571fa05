"""Rows of measurements: read, merge, write, and print as tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, object]
KEY = ("device", "dtype", "group", "form")  # identifies a row


def read(file: Path) -> list[Row]:
    """Read the rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def merge(file: Path, rows: list[Row]) -> list[Row]:
    """Add rows to a file; a new row replaces the old row with the same key."""
    merged = {key(row): row for row in read(file)} if file.exists() else {}
    merged.update((key(row), row) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in merged.values()), "utf-8")
    return list(merged.values())


def key(row: Row) -> tuple[object, ...]:
    """Identifies a row, without its measurements."""
    return tuple(row[name] for name in KEY)


def add_ratios(rows: list[Row]) -> None:
    """Set the cost of each row relative to the anchor of its group; None without an anchor."""
    anchors = {row["group"]: row for row in rows if row["anchor"]}
    for row in rows:
        anchor = anchors.get(row["group"])
        row["time_ratio"] = _ratio(row, anchor, "total_ms")
        row["peak_ratio"] = _ratio(row, anchor, "peak_mib")


def _ratio(row: Row, anchor: Row | None, field: str) -> float | None:
    if anchor is None or row[field] is None or not anchor[field]:
        return None
    return round(row[field] / anchor[field], 3)


def table(rows: Iterable[Row]) -> str:
    """A table of all rows: times, memory, both relative to the anchor, and fractions of peak rates.

    GFLOP and GB come from benchmarks.counts; "product" and "copy" are the achieved rates divided by
    those of one large matrix product and of one large copy.
    """
    head = ["case", "form", "forward ms", "backward ms", "total ms", "time / anchor"]
    head += ["peak MiB", "peak / anchor", "state", "GFLOP", "GFLOP/s", "product", "GB", "copy"]
    return markdown(head, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    cells = [row["group"], row["form"], number(row["forward_ms"]), number(row["backward_ms"])]
    cells += [
        number(row["total_ms"]),
        number(row["time_ratio"], 2),
        number(row["peak_mib"], 0),
        number(row["peak_ratio"], 2),
        number(row["state_size"], 0),
    ]
    if row["gflop"] is None:
        return [*cells, *"-----"]
    gflops, gbs = (1e3 * row[name] / row["total_ms"] for name in ("gflop", "gb"))
    cells += [number(row["gflop"], 2), number(gflops), f"{gflops / row['matmul_gflops']:.0%}"]
    return [*cells, number(row["gb"], 2), f"{gbs / row['copy_gbs']:.0%}"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, readable as plain text too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(x.ljust(n) for x, n in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def number(value: float | None, digits: int = 1) -> str:
    """A number as text, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"
