"""Plot of a graph: its DAG and the magnitude of its gates."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import networkx
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from torch import Tensor, nn

from plstm.graph import LineGraph
from plstm.layers.plstm_graph import PLSTMGraph
from tasks.callbacks.pictures.capture import first_layers, observe

MAX_NODES = 30  # of the drawn graph, if possible
PANEL = 6.5  # inches
# Neither as pale as the background nor too dark for labels.
COLOURS = ListedColormap(colormaps["YlOrRd"](np.linspace(0.2, 0.85, 256)))
NARROWEST = 0.05  # minimum range of the colours
CURVE = [Path.MOVETO, Path.CURVE3, Path.CURVE3]
KEY = (
    "Number: position in a topological order. Grey arrow: edge, its width is the source gate. Arc: "
    "transition from one edge to the next."
)


class GatedDag(NamedTuple):
    """One DAG and the magnitudes of its gates, averaged over heads.

    Nodes are numbered in a topological order.
    """

    number: int  # index of the graph in its batch
    nodes: Tensor  # their indices in the batch, (N,)
    edges: Tensor  # (2, E)
    pairs: Tensor  # incoming and outgoing edge, (2, A)
    source: Tensor  # (E,)
    transition: Tensor  # (A,)
    mark: Tensor  # (E,)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def node_marks(self) -> Tensor:
        """Mean mark of the edges into every node, (N,); NaN without edges."""
        sums = self.mark.new_zeros(self.num_nodes).index_add_(0, self.edges[1], self.mark)
        return sums / torch.bincount(self.edges[1], minlength=self.num_nodes)


def gating_maps(
    net: nn.Module,
    data: object,
    describe: Callable[[int], str],
    node_names: Sequence[str] | None = None,
) -> Figure | None:
    """One graph of a batch with the gates of the first layer of each mode, side by side.

    Edges are arrows in the direction of information flow; their width is the source gate. An arc
    joins consecutive edges, coloured by the transition; mode D omits some. Nodes are coloured by
    their mean mark gate. The colour range is that of the plotted values. None for a net without
    PLSTMGraph.

    Args:
        net: Maps DagData to logits.
        data: A batch.
        describe: Describes a graph, given its index.
        node_names: Names of the node features, if these are one-hot, or of the categories in the
            first column.
    """
    layers = first_layers(net, PLSTMGraph)
    if not layers:
        return None
    dags = observe(net, data, layers.values(), _look)
    places = layout(dags[0])
    width, height = np.ptp(places, axis=0)
    size = (PANEL * len(layers) + 2, PANEL * min(1.2, (height + 0.2) / (width + 0.2)) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    arcs = colour_scale(torch.cat([dag.transition for dag in dags]))
    marks = colour_scale(torch.cat([dag.node_marks for dag in dags]))
    names = _names(data.x[dags[0].nodes], node_names) if node_names else []
    for axes, (name, layer), dag in zip(panels, layers.items(), dags, strict=True):
        draw_dag(axes, dag, places, arcs, marks, names)
        sources = " to ".join(f"{x:.2f}" for x in dag.source.aminmax()) if len(dag.source) else "-"
        title = f"{name}, mode {layer.mode}, mean of {layer.num_heads} heads; source {sources}"
        axes.set_title(title, fontsize=11)
    shown = f"{dags[0].num_nodes} nodes, {len(dags[0].source)} edges"
    number = dags[0].number
    figure.suptitle(
        f"Gates of graph {number} of the first test batch: {shown}\n({describe(number)})"
    )
    figure.supxlabel(KEY, fontsize="medium")
    for colours, label in (
        (marks, "|mark| (nodes; white: nothing arrives)"),
        (arcs, "|transition| (arcs)"),
    ):
        figure.colorbar(colours, ax=list(panels), label=label, aspect=40)
    return figure


def _names(x: Tensor, names: Sequence[str]) -> list[str]:
    """Names of nodes with one-hot or categorical features x."""
    kinds = x.argmax(1) if x.is_floating_point() else x[:, 0]
    return [names[kind] for kind in kinds.tolist()]


def _look(
    layer: PLSTMGraph, x: Tensor, graph: LineGraph, edge_attr: Tensor | None = None
) -> GatedDag:
    graph = layer.paths(graph)
    source, transition, mark, _ = layer.gates(x, graph, edge_attr)
    return gated_dag(graph, source, transition, mark, choose_graph(graph.node_graph))


def choose_graph(node_graph: Tensor) -> int:
    """The first of the largest graphs with up to MAX_NODES nodes; else the smallest graph."""
    sizes = torch.bincount(node_graph)
    fitting = torch.where(sizes <= MAX_NODES, sizes, 0)
    return int(fitting.argmax() if fitting.any() else sizes.argmin())


def gated_dag(
    graph: LineGraph, source: Tensor, transition: Tensor, mark: Tensor, number: int
) -> GatedDag:
    """Select one graph of a packed batch with source (E, H), transition (A, H), mark (E, H)."""
    nodes = graph.node_graph == number
    edges = nodes[graph.edge_index[0]]
    pairs = edges[graph.line_index[0]]
    source, transition, mark = (
        gate[chosen].detach().abs().mean(1).float().cpu()
        for gate, chosen in ((source, edges), (transition, pairs), (mark, edges))
    )
    edge_index = _renumbered(graph.edge_index[:, edges], nodes).cpu()
    line_index = _renumbered(graph.line_index[:, pairs], edges).cpu()
    count = int(nodes.sum())
    place = _topological_place(edge_index, count)
    order = nodes.nonzero()[:, 0].cpu()[place.argsort()]
    return GatedDag(number, order, place[edge_index], line_index, source, transition, mark)


def colour_scale(gates: Tensor) -> ScalarMappable:
    """Colour range from the smallest to the largest gate, ignoring NaN."""
    gates = gates[gates.isfinite()]
    low, high = map(float, gates.aminmax()) if len(gates) else (0.0, 1.0)
    spare = max(0.0, NARROWEST - (high - low)) / 2
    return ScalarMappable(Normalize(low - spare, high + spare), COLOURS)


def _renumbered(index: Tensor, chosen: Tensor) -> Tensor:
    """Map indices among all to indices among the selected."""
    return (chosen.cumsum(0) - 1)[index]


def _topological_place(edges: Tensor, num_nodes: int) -> Tensor:
    """Position of every node in a topological order, (N,)."""
    dag = networkx.DiGraph(edges.T.tolist())
    dag.add_nodes_from(range(num_nodes))
    order = list(networkx.lexicographical_topological_sort(dag))
    place = torch.empty(num_nodes, dtype=torch.int64)
    place[order] = torch.arange(num_nodes)
    return place


def layout(dag: GatedDag) -> np.ndarray:
    """Node positions in the plane, (N, 2), that approximate distances in the graph."""
    graph = networkx.Graph(dag.edges.T.tolist())
    graph.add_nodes_from(range(dag.num_nodes))
    steps = dict(networkx.all_pairs_shortest_path_length(graph))
    apart = 2 + max(max(row.values()) for row in steps.values()) / 2  # of separate components
    distances = {a: {b: steps[a].get(b, apart) for b in graph} for a in graph}
    places = networkx.kamada_kawai_layout(graph, dist=distances)
    return np.array([places[node] for node in range(dag.num_nodes)])


def draw_dag(
    axes: Axes,
    dag: GatedDag,
    places: np.ndarray,
    arcs: ScalarMappable,
    marks: ScalarMappable,
    names: Sequence[str] = (),
) -> None:
    """Draw a DAG with nodes at `places` (N, 2): edges, then arcs, then nodes.

    Nodes show their names, if any, above their indices.
    """
    starts, ends = places[dag.edges.numpy()]
    for start, end, source in zip(starts, ends, dag.source.tolist(), strict=True):
        width = 0.5 + 2.5 * source
        _arrow(axes, 9, posA=start, posB=end, shrinkA=9, shrinkB=9, linewidth=width, color="0.6")
    strengths = dag.transition.tolist()
    for (before, after), strength in zip(dag.pairs.T.tolist(), strengths, strict=True):
        node = ends[before]
        arc = Path([_near(node, starts[before]), node, _near(node, ends[after])], CURVE)
        _arrow(axes, 8, path=arc, linewidth=1.5, color=arcs.to_rgba(strength), zorder=2)
    for node, mark in enumerate(dag.node_marks.tolist()):
        colour = "white" if math.isnan(mark) else marks.to_rgba(mark)
        text = f"{names[node]}\n{node}" if names else str(node)
        circle = {"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "0.3"}
        axes.text(*places[node], text, ha="center", va="center", fontsize=7, zorder=3, bbox=circle)
    axes.set_axis_off()
    axes.set_aspect("equal")
    low, high = places.min(0) - 0.1, places.max(0) + 0.1
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _near(node: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Start or end of an arc on the edge between two nodes."""
    length = np.linalg.norm(other - node)
    return node + min(0.45, 0.15 / length) * (other - node)


def _arrow(axes: Axes, head: float, **style: object) -> None:
    axes.add_patch(FancyArrowPatch(arrowstyle="-|>", mutation_scale=head, **style))
