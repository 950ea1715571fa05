"""Table and plot for rows of `python -m benchmarks compare` with the same budget."""

import statistics
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Row, markdown, number

METRICS = {  # task: metric, whether higher is better; shown for all test sizes
    "quickstart": ("test/accuracy", True),
    "arrow": ("test/accuracy", True),
    "images": ("test/accuracy", True),
    "pixels": ("test/accuracy", True),
    "tu": ("test/accuracy", True),
    "molecules": ("test/roc_auc", True),
    "molecules_regression": ("test/rmse", False),
    "text": ("test/bits_per_char", False),
    "dags": ("test/rmse", False),
    "properties": ("test/log10_mse", False),
    "words": ("test/sequence_accuracy", True),
    "languages": ("test/scaled_accuracy", True),
    "recall": ("test/accuracy", True),
    "listops": ("test/accuracy", True),
}
TITLE_WIDTH = 130  # characters per line of a title
CONDITIONS = ("processor", "threads", "torch", "python", "date", "commit", "command")


def best_rate(task: str, rows: list[Row]) -> float | None:
    """Learning rate of the run that validates best."""
    best = max if METRICS[task][1] else min
    return best(rows, key=lambda row: row["validation"])["lr"]


def by_net(task: str, rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of every net at its learning rate, sorted by the mean of the metric, best first.

    The learning rate is the best in validation for the first seed that has several.
    """
    nets: dict[str, list[Row]] = {}
    for row in rows:
        nets.setdefault(row["net"], []).append(row)
    for net, runs in nets.items():
        first = [row for row in runs if row["seed"] == runs[0]["seed"]]
        if len(first) > 1:
            rate = best_rate(task, first)
            nets[net] = [row for row in runs if row["lr"] == rate]
    metric, higher = METRICS[task]
    order = sorted(nets, key=lambda net: values(nets[net], metric)[0], reverse=higher)
    return {net: nets[net] for net in order}


def values(rows: list[Row], metric: str) -> tuple[float, float | None]:
    """Mean and sample standard deviation of a metric; the latter None for one run."""
    return spread([row["metrics"][metric] for row in rows])


def spread(numbers: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter None for one value."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return statistics.mean(numbers), deviation


def speed(rows: list[Row]) -> float | None:
    """Median samples per second over runs; None if all runs are too short."""
    speeds = [row["samples_per_s"] for row in rows if row["samples_per_s"] is not None]
    return statistics.median(speeds) if speeds else None


def metric_names(task: str, rows: list[Row]) -> list[str]:
    """The metric of the task at every size of the test data."""
    return [name for name in rows[0]["metrics"] if name.split("@")[0] == METRICS[task][0]]


def report(task: str, rows: list[Row]) -> str:
    """A Markdown table with the budget as heading, followed by a list of the conditions."""
    names = metric_names(task, rows)
    head = ["net", "lr", "seeds", *names, "parameters", "state", "steps", "samples/s"]
    lines = []
    for net, runs in by_net(task, rows).items():
        cells = [net, "config" if runs[0]["lr"] is None else f"{runs[0]['lr']:g}", str(len(runs))]
        for name in names:
            mean, deviation = values(runs, name)
            cells.append(f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else ""))
        steps = statistics.mean(row["steps"] for row in runs)
        cells += [number(runs[0]["parameters"], 0), number(runs[0]["state_size"], 0)]
        lines.append([*cells, number(steps, 0), number(speed(runs))])
    title = f"## {task}, {rows[0]['budget']} {rows[0]['arguments']}".rstrip()
    explained = (
        "Mean ± sample standard deviation over seeds of the weights at the end; state: elements of "
        "the state per sequence, if fixed; samples/s: median over seeds."
    )
    measured = {name: sorted({str(row[name]) for row in rows}) for name in CONDITIONS}
    listed = "\n".join(f"- {name}: {', '.join(found)}" for name, found in measured.items())
    return f"{title}\n\n{markdown(head, lines)}\n\n{explained}\n\n{listed}"


def picture(task: str, rows: list[Row]) -> Figure:
    """The metric of every net with its spread and a dot per run; beside it the speed, if known."""
    nets = by_net(task, rows)
    speeds = [speed(runs) or 0.0 for runs in nets.values()]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(nets)), layout="constrained")
    widths = [2, 1] if any(speeds) else [1]
    panels = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    left = panels[0]
    for name in metric_names(task, rows):
        _metric(left, nets, name)
    left.set_xlabel(
        METRICS[task][0] + (", higher" if METRICS[task][1] else ", lower") + " is better"
    )
    if len(metric_names(task, rows)) > 1:
        figure.legend(loc="outside lower left", ncols=3, fontsize=8)
    for right in panels[1:]:
        right.barh(range(len(nets)), speeds, color="0.6")
        right.set_xlabel("training, samples per second")
    left.set_yticks(range(len(nets)), list(nets))
    left.invert_yaxis()
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
    last = rows[-1]
    title = (
        f"{task}, {last['budget']} {last['arguments']}, {last['processor']}, "
        f"{last['threads']} threads, {last['date']}"
    )
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH, break_on_hyphens=False), fontsize=8)
    return figure


def _metric(axes: Axes, nets: dict[str, list[Row]], name: str) -> None:
    spreads = [values(runs, name) for runs in nets.values()]
    means, deviations = [mean for mean, _ in spreads], [d or 0.0 for _, d in spreads]
    rows = range(len(nets))
    bars = axes.errorbar(means, rows, xerr=deviations, fmt="o", capsize=3, label=name)
    colour = bars.lines[0].get_color()
    dots = [(r["metrics"][name], y) for y, runs in enumerate(nets.values()) for r in runs]
    axes.scatter(*zip(*dots, strict=True), s=8, color=colour, alpha=0.5)
