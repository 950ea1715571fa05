"""Plot of accuracy against the position of the label in a sequence."""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BINS = 64  # maximum points per curve


def accuracy_by_length(results: Mapping[str, tuple[Tensor, Tensor]], trained: int) -> Figure:
    """Accuracy of the labels by position, and of all labels of a sequence up to that position.

    Args:
        results: For every set by name, whether each prediction is correct and where labels are,
            both (B, L).
        trained: Longest training length.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, (hits, labelled) in results.items():
        so_far = (hits | ~labelled).cummin(1).values
        _curve(left, name, hits, labelled)
        _curve(right, name, so_far, labelled)
    for axes, what in ((left, "accuracy of the label"), (right, "every label so far is right")):
        axes.axvline(trained, color="0.6", linestyle="--", label=f"training length {trained}")
        axes.set_xlabel("position of the label")
        axes.set_ylabel(what)
        axes.set_ylim(-0.02, 1.04)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, loc="lower left")
    return figure


def _curve(axes: Axes, name: str, right: Tensor, labelled: Tensor) -> None:
    """Mean of `right` over the labels in every bin of positions, and the mean position."""
    length = right.shape[1]
    position = torch.arange(length).expand_as(right)[labelled]
    width = -(-length // BINS)
    count = torch.bincount(position // width)
    filled = count > 0
    where, mean = (
        torch.bincount(position // width, weights=weights)[filled] / count[filled]
        for weights in ((position + 1).double(), right[labelled].double())
    )
    axes.plot(where, mean, marker=".", label=name)
