"""Plot of confusion matrices."""

from collections.abc import Mapping, Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

MAX_CLASSES = 100  # rows of more classes are too narrow to read
MAX_NUMBERED = 20  # up to this number of classes, cells show counts
LONG = 6  # characters; longer names do not fit side by side


def accuracy(counts: Tensor) -> float:
    """Accuracy from a confusion matrix."""
    return float(counts.diagonal().sum() / counts.sum())


def confusion_matrices(matrices: Mapping[str, Tensor], classes: Sequence[str]) -> Figure:
    """Confusion matrices side by side: counts, and percentages of the true class by number and
    colour.

    Args:
        matrices: Counts (C, C) by name of the test set; rows are true classes.
        classes: Names of the C classes. With more than MAX_NUMBERED the cells have colours only.
    """
    side = min(max(0.5 * len(classes) + 1.8, 2.8), 9.5)
    figure = Figure(figsize=(side * len(matrices) + 1, side + 0.3), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, counts) in zip(panels, matrices.items(), strict=True):
        image = _draw(axes, counts.cpu(), classes)
        axes.set_title(
            f"{name}\naccuracy {accuracy(counts):.3f} ({counts.sum():,} samples)", fontsize=10
        )
        axes.set_xlabel("predicted class")
    panels[0].set_ylabel("true class")
    label = "share of the true class (grey: no samples)"
    figure.colorbar(image, ax=panels, label=label, shrink=0.7)
    return figure


def _draw(axes: Axes, counts: Tensor, classes: Sequence[str]) -> AxesImage:
    shares = counts / counts.sum(1, keepdim=True)  # NaN in a row without samples
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_facecolor("0.9")
    numbered = len(classes) <= MAX_NUMBERED
    style = {"fontsize": 9 if numbered else 6, "parse_math": False}
    upright = 90 if max(map(len, classes)) > LONG else 0
    axes.xaxis.set_ticks(range(len(classes)), classes, rotation=upright, **style)
    axes.yaxis.set_ticks(range(len(classes)), classes, **style)
    for row, column in product(range(len(classes)), repeat=2) if numbered else ():
        count, share = int(counts[row, column]), float(shares[row, column])
        text = f"{count}\n{share:.0%}" if count else "0"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return image
