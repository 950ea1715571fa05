"""Pictures that a net takes for something else."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from tasks.data import UNLABELLED

SHOWN, COLUMNS = 24, 8  # pictures, at most, and how many in a row
LONG = 18  # characters of a name that have room above a picture


def worst(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Numbers of the pictures that are taken for another class with the greatest probability.

    Args:
        probabilities: Of every class, (n, C).
        labels: Classes, (n,), or `UNLABELLED`.
    """
    sure, predicted = probabilities.max(1)
    wrong = ((predicted != labels) & (labels != UNLABELLED)).nonzero()[:, 0]
    return wrong[sure[wrong].argsort(descending=True, stable=True)][:SHOWN].tolist()


def mistakes(
    images: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Pictures with their class and, below it, the predicted one and its probability.

    Args:
        images: Values in [0, 1], (n, C, Y, X).
        probabilities: Of every class, (n, classes).
        labels: True classes, (n,).
        classes: Names of the classes.
    """
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(1.5 * COLUMNS, 1.9 * rows + 0.4), layout="constrained")
    figure.suptitle("Mistakes the net is surest of: the class, and what it is taken for")
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
