"""Plot of cost against size on logarithmic axes, one line per form and layer."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Row

KINDS = {  # panel: title, name of the size, name of an example
    "sequence": ("Sequences", "positions", "sequence"),
    "grid": ("Images, four corners", "tokens", "image"),
    "graph": ("Molecules", "nodes of a molecule", "molecule"),
}
COSTS = {  # field: label; both per example
    "total_ms": "ms, forward + backward",
    "peak_mib": "peak MiB",
}
STYLES = {"layers": {"linestyle": "-", "marker": "o"}, "ops": {"linestyle": ":", "marker": "."}}
SERIES_STYLE = {"linestyle": "--", "marker": "s"}
COLOURS = {
    "naive": "#b15928",
    "chunk": "#1b9e77",
    "rows": "#66a61e",
    "levels": "#1b9e77",
    "PLSTM1d": "#1f4fb4",
    "PLSTM2d P": "#1f4fb4",
    "PLSTM2d D": "#6f4bc0",
    "PLSTMGraph P": "#1f4fb4",
    "PLSTMGraph D": "#6f4bc0",
}
ANCHOR_COLOUR = "0.35"


def picture(rows: list[Row]) -> Figure | None:
    """Time above, peak memory below; columns for sequences, images and graphs.

    Omits rows with another device, processor or precision than the last row. None if there are no
    lines, as for steps and mixers.
    """
    rows = [row for row in rows if _setting(row) == _setting(rows[-1])]
    kinds = {kind: _lines([row for row in rows if row["kind"] == kind]) for kind in KINDS}
    kinds = {kind: lines for kind, lines in kinds.items() if lines}
    if not kinds:
        return None
    figure = Figure(figsize=(14 / 3 * len(kinds), 9), layout="constrained")
    columns = figure.subfigures(1, len(kinds), squeeze=False)[0]
    for column, (kind, lines) in zip(columns, kinds.items(), strict=True):
        title, size, example = KINDS[kind]
        panels = column.subplots(len(COSTS), sharex=True)
        for axes, (field, label) in zip(panels, COSTS.items(), strict=True):
            _draw(axes, lines, field)
            axes.set_ylabel(f"{label}, per {example}")
        panels[0].set_title(title)
        panels[-1].set_xlabel(size)
        handles = panels[0].get_lines()
        column.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(_conditions(rows), fontsize=9)
    return figure


def _setting(row: Row) -> tuple[object, ...]:
    return row["device"], row["processor"], row["dtype"]


def _lines(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of ops and layers by (subject, series, form), sorted by size, at least two sizes."""
    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["subject"] in STYLES:
            name = (row["subject"], row["series"], row["form"])
            lines.setdefault(name, []).append(row)
    return {
        name: sorted(line, key=lambda row: row["tokens"])
        for name, line in lines.items()
        if len(line) > 1
    }


def _draw(axes: Axes, lines: dict[tuple[str, str, str], list[Row]], field: str) -> None:
    for (subject, series, form), line in lines.items():
        colour = ANCHOR_COLOUR if line[0]["anchor"] else COLOURS.get(form)
        shown = [row for row in line if row[field]]
        axes.plot(
            [row["tokens"] for row in shown],
            [row[field] / row["batch"] for row in shown],
            color=colour,
            **STYLES[subject] | (SERIES_STYLE if series else {}),
            label=", ".join(filter(None, [f"{subject[:-1]}: {form}", series])),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)


def _conditions(rows: list[Row]) -> str:
    last = rows[-1]
    return (
        f"{last['processor']}, {last['threads']} threads, PyTorch {last['torch']}, "
        f"{last['dtype']}, {last['date']}, commit {last['commit']}"
    )
