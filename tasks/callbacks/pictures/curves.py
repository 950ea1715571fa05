"""How training went, and how accuracy depends on the size of the inputs."""

from collections.abc import Sequence

from matplotlib.figure import Figure


def learning_curve(
    train: Sequence[tuple[int, float]], val: Sequence[tuple[int, dict[str, float]]]
) -> Figure:
    """Loss and accuracy over steps, side by side.

    Args:
        train: Steps and training losses.
        val: Steps and validation metrics.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        if metric == "loss" and train:
            axes.plot(*zip(*train, strict=True), color="0.75", linewidth=0.8, label="train/loss")
        for name in sorted(val[-1][1]):
            if name.startswith(f"val/{metric}"):
                points = [(step, metrics[name]) for step, metrics in val if name in metrics]
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def accuracy_by_size(
    sizes: Sequence[int], accuracies: Sequence[float], split: str, size_name: str
) -> Figure:
    """Accuracy on a split at the training size, the first, and at the others.

    Args:
        sizes: Sizes of the sets.
        accuracies: Accuracy on each of them.
        split: What the sets are of.
        size_name: What the sizes are.
    """
    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    points = sorted(zip(sizes, accuracies, strict=True))
    axes.plot(*zip(*points, strict=True), marker="o")
    for size, accuracy in points:
        axes.annotate(
            f"{accuracy:.3f}", (size, accuracy), (0, 7), textcoords="offset points", ha="center"
        )
    axes.axvline(sizes[0], color="0.6", linestyle="--", label=f"training size {sizes[0]}")
    axes.set_xticks(sorted(sizes))
    axes.margins(x=0.12)
    axes.set_xlabel(size_name)
    axes.set_ylabel(f"{split} accuracy")
    axes.set_ylim(min(0.45, *accuracies) - 0.02, 1.06)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return figure
