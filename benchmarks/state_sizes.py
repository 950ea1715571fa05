"""Plot of the metric of a task against the state size, for rows of several widths."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.compare_report import METRICS, TITLE_WIDTH, by_net, metric_names, values
from benchmarks.results import Row


def several_sizes(rows: list[Row]) -> bool:
    """Whether any net with a fixed state size has rows with two or more sizes."""
    sizes = {(row["net"], row["state_size"]) for row in rows if row["state_size"]}
    return len(sizes) > len({net for net, _ in sizes})


def state_picture(task: str, groups: list[list[Row]]) -> Figure:
    """The metric against the state size, with one panel per size of the test data.

    A net with a growing state is a horizontal line at its best value.

    Args:
        groups: Rows of each width, with the same budget and arguments.
    """
    names = metric_names(task, groups[0])
    figure = Figure(figsize=(4.5 * len(names), 3.8), layout="constrained")
    curves = _curves(task, groups)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, (net, by_size) in enumerate(curves.items()):
            _curve(axes, f"C{number}", net, by_size, name)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("state size: elements per sequence")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    last = groups[-1][-1]
    title = f"{task}, {last['budget']}, {METRICS[task][0]} against state size, {last['date']}"
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH), fontsize=9)
    return figure


def _curves(task: str, groups: list[list[Row]]) -> dict[str, list[list[Row]]]:
    """Rows of every net, sorted by state size."""
    curves: dict[str, list[list[Row]]] = {}
    for rows in groups:
        for net, runs in by_net(task, rows).items():
            curves.setdefault(net, []).append(runs)
    for runs in curves.values():
        runs.sort(key=lambda rows: rows[0]["state_size"] or 0)
    return dict(sorted(curves.items()))


def _curve(axes: Axes, colour: str, net: str, by_size: list[list[Row]], name: str) -> None:
    means, deviations = zip(*(values(rows, name) for rows in by_size), strict=True)
    sizes = [rows[0]["state_size"] for rows in by_size]
    if None in sizes:
        axes.axhline(max(means), color=colour, linestyle="--", label=f"{net} (state grows)")
        return
    spread = [deviation or 0.0 for deviation in deviations]
    axes.errorbar(sizes, means, yerr=spread, color=colour, marker="o", capsize=3, label=net)
