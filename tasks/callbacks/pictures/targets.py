"""Plots of predictions against real targets, and of scores of binary targets."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tasks.multi_label import MultiLabel
from tasks.targets import Cells, TargetModule, by_target

MAX_TARGETS = 6  # maximum targets drawn against predictions
PANEL = 3.5  # inches


def picture_of_targets(
    module: TargetModule, cells: Mapping[str, Cells], names: Sequence[str]
) -> Figure:
    """Scores of binary targets, or predictions against targets, depending on the module.

    Args:
        module: The module that predicted.
        cells: Predictions and targets by name of the set.
        names: Names of the T targets.
    """
    if not isinstance(module, MultiLabel):
        return predicted_against_true(cells, names)
    values = {
        label: {name: by_target(score, part) for name, score in module.scores.items()}
        for label, part in cells.items()
    }
    shares = {label: part.targets.nanmean(0) for label, part in cells.items()}
    return score_bars(values, shares, names)


def predicted_against_true(cells: Mapping[str, Cells], names: Sequence[str]) -> Figure:
    """Predictions against targets, one column per target (up to MAX_TARGETS), one row per set.

    Args:
        cells: Predictions and targets (n, T) by name of the set; NaN is ignored.
        names: Names of the T targets.
    """
    shown = names[:MAX_TARGETS]
    size = (PANEL * len(shown), PANEL * len(cells) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(cells), len(shown), squeeze=False)
    for row, (label, (predictions, targets)) in zip(panels, cells.items(), strict=True):
        for number, axes in enumerate(row):
            _scatter(axes, predictions[:, number].numpy(), targets[:, number].numpy())
            axes.set_title(f"{label}: {shown[number]}", fontsize=9, parse_math=False)
    figure.supxlabel("measured", fontsize=10)
    figure.supylabel("predicted", fontsize=10)
    return figure


def _scatter(axes: Axes, predictions: np.ndarray, targets: np.ndarray) -> None:
    measured = np.isfinite(targets)
    x, y = targets[measured], predictions[measured]
    axes.grid(alpha=0.3)
    if len(x) == 0:
        return
    axes.axline((x[0], x[0]), slope=1, color="0.6", linewidth=0.8)
    axes.plot(x, y, ".", markersize=3, alpha=0.6, rasterized=True)
    rmse = np.sqrt(np.square(x - y).mean())
    text = f"RMSE {rmse:.4g}\n{len(x):,} values"
    axes.annotate(text, (0.04, 0.96), xycoords="axes fraction", va="top", fontsize=8)


def score_bars(
    scores: Mapping[str, Mapping[str, Tensor]],
    shares: Mapping[str, Tensor],
    names: Sequence[str],
) -> Figure:
    """Scores of every target as bars, one panel per score, one row of panels per set.

    A tick marks chance level: 0.5 for ROC-AUC, the share of ones for average precision.

    Args:
        scores: Scores (T,) by their names, by name of the set; NaN is ignored.
        shares: Share of ones among the measured cells (T,), by name of the set.
        names: Names of the T targets.
    """
    columns = len(next(iter(scores.values())))
    height = (0.22 * len(names) + 1.1) * len(scores)
    figure = Figure(figsize=(PANEL * columns + 1.5, max(2.0, height)), layout="constrained")
    panels = figure.subplots(len(scores), columns, squeeze=False, sharey=True)
    places = range(len(names))
    for row, (label, by_score) in zip(panels, scores.items(), strict=True):
        for axes, (name, values) in zip(row, by_score.items(), strict=True):
            axes.barh(places, values.nan_to_num(0).numpy(), color="tab:blue", alpha=0.7)
            chance = [0.5] * len(names) if name == "roc_auc" else shares[label].tolist()
            axes.plot(chance, places, "|", color="black", markersize=9, label="guessing")
            for place, value in zip(places, values.tolist(), strict=True):
                axes.annotate(f"{value:.3f}", (0.02, place), va="center", fontsize=7)
            mean = f"mean {values.nanmean():.3f}"
            axes.set_title(f"{label}: {name.replace('_', ' ')}, {mean}", fontsize=9)
            axes.set_xlim(0, 1)
        row[0].set_yticks(places, names, fontsize=7, parse_math=False)
        row[0].invert_yaxis()
    panels[0][-1].legend(fontsize=7, loc="lower right")
    return figure
