"""Plot of misclassified images."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from tasks.data import UNLABELLED

SHOWN, COLUMNS = 24, 8  # maximum images, and images per row
LONG = 18  # maximum characters of a name above an image


def worst(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Indices of the misclassified images with the highest predicted probability.

    Args:
        probabilities: Class probabilities, (n, C).
        labels: Classes, (n,), or `UNLABELLED`.
    """
    sure, predicted = probabilities.max(1)
    wrong = ((predicted != labels) & (labels != UNLABELLED)).nonzero()[:, 0]
    return wrong[sure[wrong].argsort(descending=True, stable=True)][:SHOWN].tolist()


def mistakes(
    images: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Images with their class and, below, the predicted class and its probability.

    Args:
        images: Values in [0, 1], (n, C, Y, X).
        probabilities: Class probabilities, (n, classes).
        labels: True classes, (n,).
        classes: Names of the classes.
    """
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(1.5 * COLUMNS, 1.9 * rows + 0.4), layout="constrained")
    figure.suptitle("Most confident mistakes: true class, predicted class")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    sure, predicted = probabilities.max(1)
    for number, (axes, image) in enumerate(zip(panels, images, strict=False)):
        shown = image[0] if len(image) == 1 else image.movedim(0, -1)
        axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
        names = [classes[int(x[number])][:LONG] for x in (labels, predicted)]
        title = f"{names[0]}\n{names[1]} {float(sure[number]):.0%}"
        axes.set_title(title, fontsize=7, parse_math=False)
    return figure
