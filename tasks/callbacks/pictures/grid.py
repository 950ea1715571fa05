"""Plot of the gates between one token of an image and all others."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from plstm.layers.plstm_2d import PLSTM2d
from tasks.callbacks.pictures.capture import first_layers, observe
from tasks.callbacks.pictures.reach import HEADS, draw_reach, draw_scale, grid_reach

CELL = 1.35  # inches


def gating_maps(net: nn.Module, images: Tensor, title: str) -> Figure | None:
    """Gates between one token of an image and all others, per head and corner, for modes P and D.

    The query token is the one with the most contrast. None for a net without PLSTM2d.

    Args:
        net: Maps images (B, C, height, width) to logits.
        images: A batch; the first image is drawn.
        title: Description of this image.
    """
    layers = first_layers(net, PLSTM2d)
    if not layers:
        return None
    gates = observe(net, images[:1], layers.values(), lambda layer, x: layer.gates(x))
    brightness = images[0].float().mean(0).cpu()
    query = most_contrast(brightness, *gates[0][-1].shape[1:3])
    heads = max(min(layer.num_heads, HEADS) for layer in layers.values())
    rows = 1 + max(len(layer.corners) for layer in layers.values())
    widths = [CELL * heads + 0.4] * len(layers) + [CELL + 0.3]
    figure = Figure(figsize=(sum(widths), CELL * rows + 1), layout="constrained")
    figure.suptitle(f"Gates to the framed token ({title})")
    *parts, side = figure.subfigures(1, len(widths), width_ratios=widths)
    for part, (name, layer), seen in zip(parts, layers.items(), gates, strict=True):
        part.suptitle(f"{name}, mode {layer.mode}", fontsize="medium")
        reach = grid_reach(seen, layer.corners, query)
        _draw_layer(part, reach, layer.corners, brightness, query)
    above, below = side.subfigures(2, 1, height_ratios=[1.3, rows - 1])
    picture, bar = above.subplots(), below.subplots()
    picture.imshow(brightness.numpy(), cmap="gray", extent=_extent(*gates[0][-1].shape[1:3]))
    _frame(picture, query)
    bar.set_axis_off()
    draw_scale(below, ax=bar, fraction=1, aspect=30)
    return figure


def most_contrast(brightness: Tensor, rows: int, columns: int) -> tuple[int, int]:
    """Row and column of the patch with the greatest variance of an image (height, width)."""
    mean, square = (
        nn.functional.adaptive_avg_pool2d(x[None], (rows, columns))[0]
        for x in (brightness, brightness.square())
    )
    return divmod(int((square - mean.square()).argmax()), columns)


def _draw_layer(
    part: SubFigure,
    reach: Tensor,
    corners: tuple[str, ...],
    brightness: Tensor,
    query: tuple[int, int],
) -> None:
    """A row of panels for every corner and one for all corners; a column for every head."""
    names = [*(f"from\n{corner.replace('_', ' ')}" for corner in corners), "all corners"]
    heads = reach.shape[1]
    panels = part.subplots(len(names), min(heads, HEADS), squeeze=False)
    for row, name, maps in zip(panels, names, reach, strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axes, one in zip(row, maps, strict=False):
            draw_reach(axes, one)
            _outline(axes, brightness, _extent(*one.shape))
            _frame(axes, query)
    for number, axes in enumerate(panels[0], 1):
        axes.set_title(f"head {number} of {heads}", fontsize=8)


def _outline(axes: Axes, brightness: Tensor, extent: tuple[float, ...]) -> None:
    """Draw lines of medium brightness that do not cover the colours."""
    low, high = float(brightness.min()), float(brightness.max())
    if low < high:
        style = {"colors": "black", "linewidths": 1}
        level = (low + high) / 2
        axes.contour(brightness.numpy(), [level], origin="upper", extent=extent, **style)


def _extent(rows: int, columns: int) -> tuple[float, float, float, float]:
    """Extent of an image with a token at every integer."""
    return -0.5, columns - 0.5, rows - 0.5, -0.5


def _frame(axes: Axes, query: tuple[int, int]) -> None:
    row, column = query
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="blue", linewidth=1.5))
    axes.set_xticks([])
    axes.set_yticks([])
