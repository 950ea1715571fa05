"""python -m benchmarks.quickstart: plot for the quick start, with examples and accuracy by size.

It shows the rows with the most steps written by this command:

    python -m benchmarks compare --task quickstart --nets plstm,plstm-p,plstm-d,attention \
        --max_steps STEPS --data.extrapolation_sizes=[48,64,128] --data.test_size=2048
"""

import shlex

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks import results
from benchmarks.compare_report import by_net, metric_names, values
from benchmarks.measure import ROOT
from benchmarks.results import Row
from tasks.arrow import ArrowData

RESULTS = ROOT / "benchmarks" / "results"
ARGUMENTS = shlex.join(["--data.extrapolation_sizes=[48,64,128]", "--data.test_size=2048"])
NAMES = {
    "plstm": "pLSTM, P and D",
    "plstm-p": "pLSTM, P only",
    "plstm-d": "pLSTM, D only",
    "attention": "softmax attention",
}
SHOWN = (32, 64)  # image sizes of the examples
EXAMPLES = 4  # per size
SHAPES = {"padding": 5, "radius": (3, 5), "arrow_length": (6, 9), "line_width": (1, 2)}


def longest(rows: list[Row]) -> list[Row]:
    """Rows with the most steps among those of the command above."""
    rows = [row for row in rows if row["arguments"] == ARGUMENTS and row["net"] in NAMES]
    steps = max(row["steps"] for row in rows)
    return [row for row in rows if row["steps"] == steps]


def picture(rows: list[Row]) -> Figure:
    """Example images of two sizes, and accuracy against size, mean and spread over seeds."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    _examples(left)
    _accuracies(right.subplots(), rows)
    return figure


def _examples(figure: SubFigure) -> None:
    data = ArrowData(SHOWN[0], SHOWN[1:], **SHAPES)
    for axes_row, size in zip(figure.subplots(len(SHOWN), EXAMPLES), SHOWN, strict=True):
        drawing, labels = data.dataset("test", size).__getitems__(list(range(EXAMPLES)))
        for axes, image, label in zip(axes_row, drawing.draw(), labels, strict=True):
            axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title("points at it" if label else "does not", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(f"{size} pixels", fontsize=8)


def _accuracies(axes: Axes, rows: list[Row]) -> None:
    names = metric_names("quickstart", rows)
    sizes = [int(name.partition("@")[2] or SHOWN[0]) for name in names]
    for net, runs in by_net("quickstart", rows).items():
        means, spreads = zip(*(values(runs, name) for name in names), strict=True)
        errors = [spread or 0.0 for spread in spreads]
        axes.errorbar(sizes, means, yerr=errors, marker="o", capsize=2, label=NAMES[net])
    axes.axvline(SHOWN[0], color="0.6", linestyle="--", label="training size")
    axes.axhline(0.5, color="0.6", linewidth=0.8)
    axes.set_xticks(sizes)
    axes.set_xlabel("image size in pixels")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0.45, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main() -> None:
    """Draw the plot."""
    rows = longest(results.read(RESULTS / "compare_quickstart.jsonl"))
    picture(rows).savefig(RESULTS / "quickstart.png", dpi=150)


if __name__ == "__main__":
    main()
