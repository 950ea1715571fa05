"""Draw the pictures of the site with the library's own ops: python docs/pictures.py."""

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from PIL import Image
from torch import Tensor

from plstm import LineGraph, plstm_2d, plstm_dag
from plstm.ops.plstm_2d import CORNERS

FOLDER = Path(__file__).with_name("pictures")
INK, FAINT, PAPER = "#2b2b2b", "#b5b5b5", "#ffffff"
SOURCE, TRANSITION, MARK, DIRECT = "#d95f02", "#6a51a3", "#1b9e77", "#7f7f7f"
INFLUENCE = LinearSegmentedColormap.from_list("influence", [PAPER, "#b3a5d3", "#6a51a3", "#2d1160"])
Point = tuple[float, float]
Gates = tuple[tuple[float, float], list[list[float]]]  # source, transition [out, in]
SIDE = 33  # nodes along a grid

DAG_NODES: list[Point] = [(0, 1), (1.5, 2), (1.5, 0), (3, 1), (4.5, 2), (4.5, 0)]
DAG_EDGES = [(0, 1), (0, 2), (1, 3), (2, 3), (1, 4), (3, 4), (3, 5), (2, 5)]
# Atoms and bonds of aspirin, hydrogen left out; bonds point away from the ring's first atom.
ATOMS: list[Point] = [
    *((math.sin(math.pi * n / 3), math.cos(math.pi * n / 3)) for n in range(6)),
    *((0, 2), (-0.87, 2.5), (0.87, 2.5), (1.73, 1), (2.6, 0.5), (2.6, -0.5), (3.46, 1)),
]
BONDS = [(0, 1), (0, 5), (1, 2), (5, 4), (2, 3), (4, 3), (0, 6), (6, 7), (6, 8), (1, 9), (9, 10)]
BONDS += [(10, 11), (10, 12)]


def influence(graph: LineGraph, transition: float, direct: float = 1.0) -> Tensor:
    """The gating matrix (N, N): what reaches node n from node m; sources and marks are 1."""
    one, edge = torch.ones(graph.num_nodes, 1, 1), torch.ones(graph.num_edges, 1)
    turn = torch.full((graph.num_pairs, 1), transition)
    identity = torch.eye(graph.num_nodes)[:, None]
    gates = edge, turn, edge, direct * one[..., 0]
    return plstm_dag(one, one, identity, *gates, graph, scale=1)[:, 0]


def grid_influence(
    side: int, start: tuple[int, int], gates: Gates, corners: Sequence[str]
) -> Tensor:
    """What reaches every node of a grid from the node `start`, (side, side)."""
    source, transition = gates
    shape = (1, side, side, 1)
    one, values = torch.ones(*shape, 1), torch.zeros(*shape, 1)
    values[0, *start] = 1
    leading = len(corners), *shape
    return plstm_2d(
        one,
        one,
        values,
        torch.tensor(source).expand(*leading, 2),
        torch.tensor(transition).expand(*leading, 2, 2),
        torch.ones(*leading, 2),
        torch.ones(shape),
        corners=tuple(corners),
        scale=1,
    )[0, :, :, 0, 0]


ALL_TURNS: Gates = (1.0, 1.0), [[1.0, 1.0], [1.0, 1.0]]
ONE_TURN: Gates = (1.0, 1.0), [[1.0, 1.0], [0.0, 1.0]]  # from vertical into horizontal


def beam(share: float) -> Gates:
    """Mode P: a share of what arrives goes along x and the rest along y."""
    return (share, 1 - share), [[share, share], [1 - share, 1 - share]]


def field(decay: float) -> Gates:
    """Mode D: one turn, every factor the same."""
    return (1.0, 1.0), [[decay, decay], [0.0, decay]]


def row_of_axes(width: float, height: float, columns: int, **options: object) -> tuple:
    """A figure with a row of axes without frames, one unit as long in x as in y."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for ax in axes:
        ax.set_axis_off()
        ax.set_aspect("equal", adjustable="datalim")
    return figure, axes


def title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=10, color=INK, pad=6)


def arrow(ax: Axes, start: Point, end: Point, color: str = FAINT, **style: object) -> None:
    """An arrow, by default between the borders of two nodes."""
    options = {"linewidth": 1.6, "mutation_scale": 12, "shrinkA": 12, "shrinkB": 12, "zorder": 1}
    patch = FancyArrowPatch(start, end, arrowstyle="-|>", color=color, **(options | style))
    ax.add_patch(patch)


def node(ax: Axes, at: Point, label: str = "", fill: object = PAPER, radius: float = 0.24) -> None:
    """A circle with a label."""
    ax.add_patch(Circle(at, radius, facecolor=fill, edgecolor=INK, linewidth=1, zorder=3))
    dark = not isinstance(fill, str) and sum(fill[:3]) < 1.6
    color = PAPER if dark else INK
    ax.text(*at, label, ha="center", va="center", zorder=4, fontsize=10, color=color)


def fit(ax: Axes, points: Sequence[Point], margin: float = 0.4) -> None:
    """Limits around points."""
    for limits, values in zip((ax.set_xlim, ax.set_ylim), zip(*points, strict=True), strict=True):
        limits(min(values) - margin, max(values) + margin)


def cells(ax: Axes, values: Tensor, norm: Normalize, start: tuple[int, int]) -> None:
    """An image of a grid; a square marks the node that everything comes from."""
    side = len(values)
    ax.set_adjustable("box")
    ax.imshow(values, cmap=INFLUENCE, norm=norm, interpolation="nearest")
    border = {"fill": False, "edgecolor": FAINT, "linewidth": 1, "clip_on": False}
    ax.add_patch(Rectangle((-0.5, -0.5), side, side, **border))
    mark = {"fill": False, "edgecolor": SOURCE, "linewidth": 1.8}
    ax.add_patch(Rectangle((start[1] - 0.5, start[0] - 0.5), 1, 1, **mark))


def structures() -> Figure:
    """A sequence, a grid and a molecule: what reaches each node from a marked one."""
    figure, axes = row_of_axes(9, 2.9, 3, width_ratios=[1.4, 1, 1.25])
    path = [(0.75 * n, 0.55 * math.sin(0.75 * n)) for n in range(10)]
    grid = [(0.75 * x, -0.75 * y) for y in range(6) for x in range(6)]
    chain, bonds = graph_of([(n, n + 1) for n in range(9)], 10), graph_of(BONDS, len(ATOMS))
    reached = grid_influence(6, (1, 1), beam(0.6), CORNERS[:1]).flatten().sqrt()
    draw_graph(axes[0], path, chain, influence(chain, 0.85)[:, 2], 2)
    draw_graph(axes[1], grid, LineGraph.grid((6, 6)), reached, 7)
    draw_graph(axes[2], ATOMS, bonds, influence(bonds, 0.75)[:, 0], 0)
    for ax, name in zip(axes, ("a sequence", "an image", "a molecule"), strict=True):
        title(ax, name)
    return figure


def graph_of(edges: list[tuple[int, int]], nodes: int) -> LineGraph:
    return LineGraph.from_edges(torch.tensor(edges).T, nodes)


def draw_graph(ax: Axes, places: list[Point], graph: LineGraph, values: Tensor, start: int) -> None:
    """Nodes coloured by what reaches them, and edges."""
    for src, dst in graph.edge_index.T.tolist():
        arrow(ax, places[src], places[dst], shrinkA=8, shrinkB=8, mutation_scale=8, linewidth=1.2)
    for n, (at, value) in enumerate(zip(places, values.tolist(), strict=True)):
        node(ax, at, fill=INFLUENCE(value), radius=0.2)
        if n == start:
            ring = {"fill": False, "edgecolor": SOURCE, "linewidth": 2.2, "zorder": 5}
            ax.add_patch(Circle(at, 0.27, **ring))
    fit(ax, places)


def gates() -> Figure:
    """A DAG, and the four gates at one of its nodes."""
    figure, (left, right) = row_of_axes(9, 3.9, 2, width_ratios=[1, 1.25])
    for src, dst in DAG_EDGES:
        arrow(left, DAG_NODES[src], DAG_NODES[dst])
    for n, at in enumerate(DAG_NODES):
        node(left, at, str(n))
    (x, y), half = DAG_NODES[3], 0.42
    frame = {"fill": False, "edgecolor": INK, "linestyle": ":", "linewidth": 1.4}
    left.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, **frame))
    fit(left, DAG_NODES, 0.45)
    title(left, "States travel along the edges of a DAG")
    gate_box(right)
    title(right, "The gates at a node")
    return figure


def gate_box(ax: Axes) -> None:
    """A node as a box: states enter on the left and leave on the right; x below, y above."""
    frame = {"facecolor": "#f6f5fa", "edgecolor": INK, "linestyle": ":", "linewidth": 1.4}
    ax.add_patch(Rectangle((-1.5, -1.1), 3, 2.2, **frame))
    inner = {"shrinkA": 0, "shrinkB": 0, "zorder": 4, "linewidth": 1.8}
    outer = {"shrinkA": 0, "shrinkB": 0, "linewidth": 2.4, "mutation_scale": 15}
    for i, y in enumerate((0.5, -0.5)):
        arrow(ax, (-2.4, 1.5 * y), (-1.5, y), INK, **outer)
        arrow(ax, (1.5, y), (2.4, 1.5 * y), INK, **outer)
        ax.text(-2.5, 1.5 * y, f"$C_{{e'_{i + 1}}}$", ha="right", va="center")
        ax.text(2.5, 1.5 * y, f"$C_{{e_{i + 1}}}$", ha="left", va="center")
        for end in (0.5, -0.5):
            arrow(ax, (-1.5, y), (1.5, end + 0.06), TRANSITION, **inner)
        bend = {"connectionstyle": f"arc3,rad={0.3 - 0.1 * i}"}
        arrow(ax, (-1.5, y), (-0.2 + 0.09 * i, 1.1), MARK, **bend, **inner)
        bend = {"connectionstyle": f"arc3,rad={0.2 + 0.1 * i}"}
        arrow(ax, (0.12, -1.1), (1.5, y - 0.06), SOURCE, **bend, **inner)
    arrow(ax, (0, -1.1), (0, 1.1), DIRECT, **inner)
    arrow(ax, (0, -1.9), (0, -1.1), INK, **outer)
    arrow(ax, (0, 1.1), (0, 1.9), INK, **outer)
    ax.text(0, -2, "$q_n, k_n, v_n$", ha="center", va="top")
    ax.text(0, 2, "$y_n$", ha="center", va="bottom")
    names = {"source $S$": SOURCE, "transition $T$": TRANSITION, "mark $M$": MARK}
    for i, (name, color) in enumerate((names | {"direct $D$": DIRECT}).items()):
        at = (-3.1 if i > 1 else 1.1, 1.95 - 0.36 * (i % 2))
        ax.text(*at, name, color=color, fontsize=10, ha="left", va="center", weight="bold")
    fit(ax, [(-3, -2.1), (3, 2.3)])


def paths() -> Figure:
    """Three paths between two nodes, and the gating matrix of the whole DAG."""
    figure, (left, right) = row_of_axes(9, 3.4, 2, width_ratios=[1.2, 1])
    chosen = {(0, 1), (1, 4), (1, 3), (3, 4), (0, 2), (2, 3)}
    for edge in DAG_EDGES:
        color, width = (TRANSITION, 2.4) if edge in chosen else (FAINT, 1.6)
        arrow(left, *(DAG_NODES[n] for n in edge), color, linewidth=width)
    for n, at in enumerate(DAG_NODES):
        node(left, at, str(n))
    fit(left, DAG_NODES, 0.45)
    title(left, "Three paths lead from node 0 to node 4")
    matrix_of(right, influence(graph_of(DAG_EDGES, 6), 0.5, direct=0.2))
    title(right, "Gating matrix $G$")
    return figure


def matrix_of(ax: Axes, matrix: Tensor) -> None:
    """A gating matrix with its numbers."""
    size = len(matrix)
    ax.set_adjustable("box")
    ax.imshow(matrix, cmap=INFLUENCE, vmin=0, vmax=1.6)
    for (n, m), value in zip(matrix.nonzero().tolist(), matrix[matrix != 0].tolist(), strict=True):
        color = PAPER if value > 0.9 else INK
        ax.text(m, n, f"{value:.2g}", ha="center", va="center", fontsize=9, color=color)
    for n in range(size):
        ax.text(n, size - 0.25, str(n), ha="center", va="center", fontsize=9, color=INK)
        ax.text(-0.75, n, str(n), ha="center", va="center", fontsize=9, color=INK)
    ax.text(2.5, size + 0.4, "from node", ha="center", va="center", fontsize=9, color=INK)
    ax.text(-1.4, 2.5, "to node", ha="center", va="center", fontsize=9, color=INK, rotation=90)
    box = {"fill": False, "clip_on": False}
    ax.add_patch(Rectangle((-0.5, -0.5), size, size, edgecolor=INK, linewidth=1, **box))
    ax.add_patch(Rectangle((-0.5, 3.5), 1, 1, edgecolor=SOURCE, linewidth=2.2, zorder=5, **box))
    ax.set_xlim(-1.8, size - 0.4)
    ax.set_ylim(size + 0.8, -0.6)


def multitree() -> Figure:
    """The number of paths from the first node of a grid, with all turns and with one."""
    figure, axes = row_of_axes(7.4, 3.6, 2)
    down_then_right = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    paths_to(axes[0], ALL_TURNS, [])
    title(axes[0], "Both turns: more paths with every step")
    paths_to(axes[1], ONE_TURN, down_then_right)
    title(axes[1], "Turns into $x$ only: one path to every node")
    return figure


def paths_to(ax: Axes, gates: Gates, shown: list[tuple[int, int]]) -> None:
    """A grid with the number of paths from its first node, and one of them in colour."""
    side = 5
    values = grid_influence(side, (0, 0), gates, CORNERS[:1])
    coloured = set(itertools.pairwise(shown))
    for src, dst in LineGraph.grid((side, side)).edge_index.T.tolist():
        start, end = divmod(src, side), divmod(dst, side)
        style = {"color": SOURCE, "linewidth": 2.4} if (start, end) in coloured else {}
        arrow(ax, (start[1], -start[0]), (end[1], -end[0]), **style)
    for (y, x), value in zip(
        itertools.product(range(side), repeat=2), values.flatten().tolist(), strict=True
    ):
        fill = INFLUENCE(math.log(value + 1) / math.log(140))
        node(ax, (x, -y), f"{value:.0f}", fill)
    fit(ax, [(0, 0), (side - 1, 1 - side)], 0.35)


def modes() -> Figure:
    """What one node sends over a grid: without bounds, in mode P and in mode D."""
    figure, axes = row_of_axes(9, 2.4, 5)
    start, share = (2, 2), PowerNorm(0.5, 0, 0.5)
    parts = [
        ("every $T$ = 1", ALL_TURNS, LogNorm(1, 1e17)),
        ("P, 80 % along $x$", beam(0.8), share),
        ("P, 50 % along $x$", beam(0.5), share),
        ("P, 20 % along $x$", beam(0.2), share),
        ("D, every $T$ = 0.97", field(0.97), Normalize(0, 1)),
    ]
    for ax, (name, gates, norm) in zip(axes, parts, strict=True):
        values = grid_influence(SIDE, start, gates, CORNERS[:1])
        cells(ax, values, norm, start)
        title(ax, name)
        values[start] = 0  # what reaches the node itself is its direct gate
        ax.text(SIDE / 2, SIDE + 1, f"up to {values.max():.1g}", ha="center", va="top", fontsize=9)
    return figure


def corners() -> Figure:
    """Scans from the four corners, and their sums."""
    figure, axes = row_of_axes(9, 1.9, 6)
    start = SIDE // 2, SIDE // 2
    one, two = PowerNorm(0.5, 0, 0.4), PowerNorm(0.5, 0, 0.8)
    parts = [(f"P, {name.replace('_', ' ')}", beam(0.65), (name,), one) for name in CORNERS]
    parts += [
        ("P, all four", beam(0.65), CORNERS, two),
        ("D, all four", field(0.93), CORNERS, Normalize(0, 2)),
    ]
    for ax, (name, gates, scans, norm) in zip(axes, parts, strict=True):
        cells(ax, grid_influence(SIDE, start, gates, scans), norm, start)
        title(ax, name)
    return figure


PICTURES = (structures, gates, paths, multitree, modes, corners)


def main() -> None:
    for draw in PICTURES:
        drawn = io.BytesIO()
        draw().savefig(drawn, dpi=180)
        colours = Image.open(drawn).convert("RGB").quantize(256)
        colours.save(FOLDER / f"{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
