"""Plots of the learning curve, and of a metric against the input size."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

Metrics = Mapping[str, float]


METRICS = ("loss", "accuracy", "bits_per_char", "rmse", "roc_auc")  # panels of the learning curve


def learning_curve(
    train: Sequence[tuple[int, Metrics]],
    val: Sequence[tuple[int, Metrics]],
    title: str = "",
    training_size: str = "",
) -> Figure:
    """Plot the loss and available METRICS over steps, side by side.

    Args:
        train: Steps and training metrics.
        val: Steps and validation metrics.
        title: Title of the plot.
        training_size: Suffix of the metrics at the training size, if there are other sizes.
    """
    shown = [m for m in METRICS if any(name.startswith(f"val/{m}") for name in val[-1][1])]
    figure = Figure(figsize=(4.5 * len(shown), 3.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        own = f"train/{metric}"
        if points := [(step, metrics[own]) for step, metrics in train if own in metrics]:
            axes.plot(*zip(*points, strict=True), color="0.75", linewidth=0.8, label=own)
        for name in sorted(val[-1][1]):
            if name.partition("@")[0] == f"val/{metric}":
                points = [(step, metrics[name]) for step, metrics in val if name in metrics]
                label = name if "@" in name else f"{name}{training_size}"
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set_title(metric.replace("_", " ").replace("char", "character"), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def metric_by_size(
    sizes: Sequence[int],
    values: Sequence[float],
    split: str,
    size_name: str,
    metric: str = "accuracy",
) -> Figure:
    """Plot a metric at the training size (the first) and at other sizes.

    Args:
        sizes: Input sizes of the sets.
        values: Value of the metric on each set.
        split: Name of the split.
        size_name: Name of the size.
        metric: Name of the metric.
    """
    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    points = sorted(zip(sizes, values, strict=True))
    axes.plot(*zip(*points, strict=True), marker="o")
    for size, value in points:
        axes.annotate(
            f"{value:.3f}", (size, value), (0, 7), textcoords="offset points", ha="center"
        )
    axes.axvline(sizes[0], color="0.6", linestyle="--", label=f"training size {sizes[0]}")
    axes.set_xticks(sorted(sizes))
    axes.margins(x=0.12)
    axes.set_xlabel(size_name)
    axes.set_ylabel(f"{split} {metric}")
    if metric == "accuracy":
        axes.set_ylim(min(0.45, *values) - 0.02, 1.06)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return figure
