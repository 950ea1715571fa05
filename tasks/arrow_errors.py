"""Plot of accuracy on arrow-pointing images against distance, angle and direction."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tasks.arrow_scenes import Scene

FEWEST = 10  # minimum images per bin
TURNS = [0, 5, 10, 15, 20, 30, 45, 60, 90, 120, 150, 180]  # bins in degrees, narrow at near misses
AXIS_ANGLES = list(range(0, 46, 5))  # bins in degrees
DISTANCE_BINS = 10


def arrow_errors(results: Mapping[str, tuple[Scene, Tensor]]) -> Figure:
    """Accuracy against the geometry of the images, one line per test set.

    Against the distance of arrow and circle; against the angle between the heading of the arrow and
    the direction to the circle (dashed where the arrow hits it); and against the angle between the
    heading and the nearest image axis.

    Args:
        results: Scenes, and whether each is classified correctly (B,), by name of the test
            set.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    by_distance, by_turn, by_axis = figure.subplots(1, 3, sharey=True)
    for number, (name, (scene, correct)) in enumerate(results.items()):
        line = {"color": f"C{number}", "label": name, "marker": ".", "linewidth": 1.2}
        distance, turn, axis = geometry(scene)
        edges = torch.linspace(distance.min(), distance.max(), DISTANCE_BINS + 1).tolist()
        _plot(by_distance, distance, correct, edges, line)
        _plot(by_axis, axis, correct, AXIS_ANGLES, line)
        for label, style in ((0, "-"), (1, "--")):
            shown = scene.label == label
            _plot(by_turn, turn[shown], correct[shown], TURNS, line | {"linestyle": style})
    by_distance.set_xlabel("distance of arrow and circle in pixels")
    by_turn.set_xlabel("angle between heading and circle in degrees\n(dashed: meets)")
    by_axis.set_xlabel("angle between heading and nearest\naxis of the canvas in degrees")
    by_distance.set_ylabel("test accuracy")
    by_distance.legend(fontsize=8)
    for axes in (by_distance, by_turn, by_axis):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    return figure


def geometry(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Distance in pixels, angle between heading and circle, angle to the nearest axis, each (B,).

    Angles are in degrees, from 0 to 180 and from 0 to 45.
    """
    delta = scene.circle - scene.arrow
    turn = (scene.angle - torch.atan2(delta[:, 1], delta[:, 0])).rad2deg()
    axis = scene.angle.rad2deg() % 90
    return delta.norm(dim=1), ((turn + 180) % 360 - 180).abs(), axis.minimum(90 - axis)


def binned(
    x: Tensor, correct: Tensor, edges: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """Mean of x, accuracy and its standard error, for bins with enough images."""
    bins = torch.bucketize(x, torch.tensor(edges[1:-1], dtype=x.dtype))
    kept = [bins == n for n in range(len(edges) - 1) if (bins == n).sum() >= FEWEST]
    shares = [float(correct[part].float().mean()) for part in kept]
    errors = [
        math.sqrt(share * (1 - share) / int(part.sum()))
        for share, part in zip(shares, kept, strict=True)
    ]
    return [float(x[part].mean()) for part in kept], shares, errors


def _plot(
    axes: Axes, x: Tensor, correct: Tensor, edges: Sequence[float], line: dict[str, object]
) -> None:
    means, shares, errors = binned(x, correct, edges)
    axes.errorbar(means, shares, yerr=errors, **line)
