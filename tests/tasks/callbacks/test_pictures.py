"""Values in the pictures, the pictures, and the files of `predict`."""

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import nn
from torch_geometric.data import Data
from torchmetrics.functional.classification import multiclass_confusion_matrix

from plstm import PLSTM1d, PLSTM2d, PLSTMGraph
from plstm.graph import LineGraph
from plstm.models import SequenceModel, VisionModel
from plstm.ops.plstm_2d import CORNERS, plstm_2d
from tasks.callbacks.pictures import Pictures, callback, graph, grid, sequence
from tasks.callbacks.pictures.capture import first_layers, observe
from tasks.callbacks.pictures.confusion import MAX_NUMBERED, accuracy, confusion_matrices
from tasks.callbacks.pictures.curves import learning_curve, metric_by_size
from tasks.callbacks.pictures.reach import grid_reach, sequence_reach
from tests.graph.graphs import grid_dag
from tests.helpers import assert_close
from tests.ops.inputs import grid_inputs, sequence_inputs
from tests.tasks.runs import CONFIGS, folder_of, run

GATES = ("source", "transition", "mark", "direct")
NONE = ((), ())


def heat_maps(axes):
    """Arrays of the heat maps that an Axes shows."""
    return [torch.from_numpy(image.get_array().filled(0)) for image in axes.images]


def perturbed(module):
    """Another one with gates that depend on the input."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module.eval()


# Gates between tokens.


@pytest.mark.parametrize("corners", [CORNERS, ("bottom_left", "top_right"), ("top_left",)])
@pytest.mark.parametrize("query", [(0, 0), (1, 3), (2, 4)])
def test_grid_reach_is_what_one_source_gives(corners, query):
    inputs = grid_inputs(3, 5, len(corners), batch=1, heads=2)
    gates = [inputs[name].detach() for name in GATES]
    with torch.inference_mode():
        got = grid_reach([gate.clone() for gate in gates], corners, query)
    assert got.shape == (len(corners) + 1, 2, 3, 5)
    q = torch.ones(1, 3, 5, 2, 1).double()
    for y in range(3):
        for x in range(5):
            v = torch.zeros_like(q)
            v[0, y, x] = 1
            for c, corner in enumerate([*corners, None]):
                used = [gate[c : c + 1] for gate in gates[:3]] if corner else gates[:3]
                direct = torch.zeros_like(gates[3]) if corner else gates[3]
                names = (corner,) if corner else corners
                out = plstm_2d(q, q, v, *used, direct, corners=names, scale=1.0, backend="naive")[
                    0, *query, :, 0
                ]
                assert_close(f"{corner} {y} {x}", got[c, :, y, x], out)
    if corners == CORNERS:
        assert (got[-1] != 0).sum() > 10  # of 30; transitions of zero stop the others


@pytest.mark.parametrize("length", [1, 2, 13])
def test_sequence_reach_is_a_product_of_gates(length):
    inputs = sequence_inputs(length, batch=1)
    source, transition, mark, direct = (inputs[name].detach()[0] for name in GATES)
    want = torch.zeros(2, length, length).double()
    for t in range(length):
        want[:, t, t] = direct[t]
        for s in range(t):
            want[:, t, s] = mark[t] * transition[s + 1 : t].prod(0) * source[s]
    got = sequence_reach(tuple(inputs[name] for name in GATES))
    assert_close("reach", got, want)


def vision_net(heads=2, modes="PD"):
    mixers = [lambda dim, mode=mode: PLSTM2d(dim, heads, mode) for mode in modes]
    return perturbed(
        VisionModel(1, 2, dim=4 * heads, depth=2 * len(modes), mixers=mixers, patch_size=4)
    )


def test_grid_maps_show_the_gates_of_the_first_layers():
    net, images = vision_net(), torch.rand(3, 1, 12, 20)
    images[0, :, 4:8, 12:16] = torch.eye(4) * 9  # the patch with the most contrast
    figure = grid.gating_maps(net, images, "class 0")
    *parts, side = figure.subfigs
    assert [part.get_suptitle() for part in parts] == [
        "blocks.0.mixer, mode P",
        "blocks.1.mixer, mode D",
    ]
    x = net.embed(images[:1]).movedim(1, -1)
    drawn = []
    for block, part in zip(net.blocks, parts, strict=False):
        want = grid_reach(block.mixer.gates(block.mixer_norm(x)), CORNERS, (1, 3)).abs()
        x = block(x)
        panels = part.get_axes()
        assert len(panels) == 5 * 2  # corners and all of them, heads
        got = torch.stack([*(heat_maps(axes)[0] for axes in panels)]).view(5, 2, 3, 5)
        assert_close(part.get_suptitle(), got, want, 1e-6)
        assert all(axes.patches[0].get_xy() == (2.5, 0.5) for axes in panels)
        drawn.append(got)
        assert panels[0].get_ylabel() == "from\ntop left"
        assert panels[0].get_title() == "head 1 of 2"
    assert (drawn[0] - drawn[1]).abs().max() > 0.01
    picture = side.subfigs[0].axes[0]
    assert_close("image", heat_maps(picture)[0], images[0, 0])


def test_grid_maps_show_few_heads_and_plain_images():
    figure = grid.gating_maps(vision_net(heads=6, modes="P"), torch.zeros(1, 1, 8, 8), "")
    (part, _) = figure.subfigs
    assert len(part.get_axes()) == 5 * 4
    assert part.get_axes()[3].get_title() == "head 4 of 6"


def test_sequence_maps():
    net = perturbed(SequenceModel(5, 5, dim=8, depth=2, mixers=[lambda dim: PLSTM1d(dim, 2)]))
    tokens = torch.randint(5, (2, 60))
    figure = sequence.gating_maps(net, tokens, "abcde")
    gates = net.blocks[0].mixer.gates(net.blocks[0].mixer_norm(net.embed(tokens)))
    want = sequence_reach(tuple(gate[:1, : sequence.POSITIONS] for gate in gates)).abs()
    panels = [axes for axes in figure.axes if axes.images]
    got = torch.stack([heat_maps(axes)[0] for axes in panels])
    assert_close("reach", got, want, 1e-6)
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == ["abcde"[token] for token in tokens[0, : sequence.POSITIONS]]
    assert sequence.gating_maps(net.eval(), tokens) is not None  # without names
    lanes = SequenceModel(5, 5, dim=8, depth=1, mixers=[lambda dim: PLSTM1d(dim, 2, lanes=2)])
    assert sequence.gating_maps(lanes, tokens) is None


@pytest.mark.parametrize("module", [grid, sequence, graph])
def test_other_nets_have_no_maps(module):
    arguments = {grid: (torch.ones(1), ""), sequence: (torch.ones(1),), graph: (None, str)}
    assert module.gating_maps(nn.Linear(1, 1), *arguments[module]) is None


def test_first_layers_of_every_mode():
    net = vision_net(modes="PPD")
    assert list(first_layers(net, PLSTM2d)) == ["blocks.0.mixer", "blocks.2.mixer"]
    assert list(first_layers(net, nn.Linear)) == ["blocks.0.mixer.q_proj"]
    assert not first_layers(net, PLSTM1d)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("compiled", [False, True])
def test_nets_are_seen_into(compiled):
    net, x, compilations = Chain(), torch.randn(5, 3), []
    first, second, third = net.layers

    def backend(compiled, inputs):
        compilations.append(compiled)
        return compiled.forward

    if compiled:
        net.compile(backend=backend)
    with torch.inference_mode():
        net(x)
        seen = observe(net, x, [third, second], lambda layer, x: (layer.in_features, x))
        net(x)
    assert [width for width, _ in seen] == [2, 4]
    assert_close("inputs", seen[1][1], first(x), 1e-6)
    assert not any(layer._forward_pre_hooks for layer in net.layers)
    assert len(compilations) == compiled  # none to look, none because of it


# Graphs.


def packed_graphs():
    """A path of two nodes, then a grid of 3 x 3, whose numbers do not follow the edges."""
    square = torch.randperm(9)[grid_dag(3, 3)] + 2
    edges = torch.cat([torch.tensor([[1], [0]]), square], 1)
    return LineGraph.from_edges(edges, 11, torch.tensor([0] * 2 + [1] * 9))


def look(layer, packed):
    """The dag that is drawn of a layer in double precision, and its gates."""
    x = torch.randn(packed.num_nodes, layer.dim).double()
    used = layer.paths(packed)
    return graph._look(layer, x, packed), used, layer.gates(x, used)


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize("reverse", [False, True])
def test_dag_has_the_edges_and_gates_of_its_graph(mode, reverse):
    packed = packed_graphs()
    packed = packed.reverse() if reverse else packed
    layer = PLSTMGraph(6, 3, mode, transition_bias=-1.0, transition_std=0.0)
    dag, used, (source, transition, mark, _) = look(perturbed(layer).double(), packed)
    assert (dag.number, dag.num_nodes) == (1, 9)
    src, dst = dag.edges
    assert (src < dst).all()
    inside = used.edge_index[:, 1:] - 2
    name = torch.full((9,), -1)
    name[inside.flatten()] = dag.edges.flatten()
    assert torch.equal(name[inside], dag.edges)  # one number for every node, edges as they were
    assert torch.equal(name.sort().values, torch.arange(9))
    pairs = used.line_index[0] > 0  # edge 0 is the path's, and goes nowhere
    assert torch.equal(dag.pairs, used.line_index[:, pairs] - 1)
    for gate, got, want in (
        ("source", dag.source, source[1:]),
        ("transition", dag.transition, transition[pairs]),
        ("mark", dag.mark, mark[1:]),
    ):
        assert_close(gate, got, want.abs().mean(1), 1e-6)
    assert transition.min() < 0


def test_dag_is_drawn_the_way_information_flows():
    layer = perturbed(PLSTMGraph(6, 3, "P")).double()
    dag, *_ = look(layer, packed_graphs())
    places, axes = graph.layout(dag), Figure().subplots()
    colours, marks = graph.colour_scale(dag.transition), graph.colour_scale(dag.node_marks)
    graph.draw_dag(axes, dag, places, colours, marks)
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    edges, arcs = arrows[: dag.edges.shape[1]], arrows[dag.edges.shape[1] :]
    assert len(arcs) == dag.pairs.shape[1]
    spots = torch.from_numpy(places)
    for patch, (src, dst), source in zip(edges, dag.edges.T, dag.source, strict=True):
        shape = torch.from_numpy(patch.get_path().vertices)
        tail, head = ((shape - spots[n]).norm(dim=1) for n in (src, dst))
        assert tail[0] < head[0]  # the shaft begins at the source
        assert (head < tail).sum() > (tail < head).sum()  # and has its head where it ends
        assert patch.get_linewidth() == pytest.approx(0.5 + 2.5 * float(source))
    for patch, (before, after), strength in zip(arcs, dag.pairs.T, dag.transition, strict=True):
        shape = torch.from_numpy(patch.get_path().vertices)
        detours = []
        for edge in (before, after):
            src, dst = spots[dag.edges[:, edge]]
            way = (shape - src).norm(dim=1) + (shape - dst).norm(dim=1)
            detours.append(way - (dst - src).norm())
        assert detours[0][0] < 1e-3 < detours[1][0]  # begins on the one edge
        assert detours[1].min() < 1e-3  # and ends on the other
        assert patch.get_edgecolor() == pytest.approx(colours.to_rgba(float(strength)))
    assert [text.get_text() for text in axes.texts] == [str(n) for n in range(9)]
    white = [text.get_bbox_patch().get_facecolor()[:3] == (1, 1, 1) for text in axes.texts]
    assert white == [n not in dag.edges[1] for n in range(9)]


def test_mode_d_leaves_arcs_out():
    packed = packed_graphs()
    p, d = (look(PLSTMGraph(6, 3, mode).double(), packed)[0] for mode in "PD")
    assert torch.equal(p.edges, d.edges)
    assert d.pairs.shape[1] < p.pairs.shape[1]


@pytest.mark.parametrize(
    ("edges", "num_nodes"), [(NONE, 1), (NONE, 3), (((0, 3), (1, 4)), 5)], ids=str
)
def test_graphs_in_several_parts_are_drawn(edges, num_nodes):
    packed = LineGraph.from_edges(torch.tensor(edges).long(), num_nodes)
    dag, *_ = look(PLSTMGraph(6, 3).double(), packed)
    places = graph.layout(dag)
    assert places.shape == (num_nodes, 2)
    apart = torch.cdist(*[torch.from_numpy(places)] * 2) + 9 * torch.eye(num_nodes)
    assert apart.min() > 0.1
    arcs, marks = graph.colour_scale(dag.transition), graph.colour_scale(dag.node_marks)
    graph.draw_dag(Figure().subplots(), dag, places, arcs, marks)


def test_close_gates_have_different_colours():
    colours = graph.colour_scale(torch.tensor([0.53, torch.nan, 0.47]))
    assert (colours.norm.vmin, colours.norm.vmax) == pytest.approx((0.47, 0.53))
    low, high = (torch.tensor(colours.to_rgba(x)) for x in (0.47, 0.53))
    assert (low - high).norm() > 0.5
    norm = graph.colour_scale(torch.tensor([0.5, 0.5])).norm
    assert (norm.vmin, norm.vmax) == pytest.approx((0.475, 0.525))


def test_nodes_have_names_and_the_graph_its_classes():
    square, data = packed_graphs(), Data(x=torch.eye(3)[torch.arange(11) % 3])
    net = nn.ModuleList([PLSTMGraph(3, 1, "P")])
    net.forward = lambda data: net[0](data.x, square)
    figure = graph.gating_maps(net, data, lambda number: f"class of graph {number}", "CNO")
    assert figure.get_suptitle().endswith("(class of graph 1)")
    dag = graph._look(net[0], data.x, square)
    assert sorted(dag.nodes.tolist()) == list(range(2, 11))
    src, dst = dag.nodes[dag.edges]  # back to the numbers of the batch
    assert {*zip(src.tolist(), dst.tolist(), strict=True)} == {
        *zip(*square.edge_index[:, 1:].tolist(), strict=True)
    }
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{'CNO'[n % 3]}\n{i}" for i, n in enumerate(dag.nodes.tolist())]


def test_a_graph_of_nodes_with_targets_is_described_by_its_first_node(workplace, monkeypatch):
    seen = []
    monkeypatch.setattr(graph, "gating_maps", lambda net, data, describe, names: seen.append(
        [describe(number) for number in range(data.num_graphs)]
    ))  # fmt: skip
    cli = run("predict", "properties", "--trainer.logger=false")
    batch = next(iter(cli.datamodule.test_dataloader()))
    first = [int((batch.batch == number).nonzero()[0]) for number in range(batch.num_graphs)]
    want = [f"first node: eccentricity {batch.y[row]:.4g}, predicted" for row in first]
    assert all(text.startswith(start) for text, start in zip(seen[0], want, strict=True))


def test_choice_of_a_graph():
    def chosen(*sizes):
        return graph.choose_graph(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))

    assert chosen(3, 30, 7, 31, 30) == 1
    assert chosen(90, 40, 50) == 1


# Curves and matrices.


def test_confusion_matrix_by_hand():
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    figure = confusion_matrices({"test": counts, "test @48": counts.T}, ["a", "b", "class c"])
    panel, other = figure.axes[:2]
    texts = {
        (text.get_position()[1], text.get_position()[0]): text.get_text() for text in panel.texts
    }
    assert (texts[0, 0], texts[0, 1]) == ("3\n75%", "1\n25%")
    assert [texts[1, column] for column in range(3)] == ["0", "0", "0"]
    assert texts[2, 0] == texts[2, 2] == "2\n50%"
    shown = panel.images[0].get_array()
    assert shown.mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert shown[0].tolist() == [0.75, 0.25, 0]
    assert panel.get_title() == "test\naccuracy 0.625 (8 samples)"
    assert (panel.get_ylabel(), panel.get_xlabel()) == ("true class", "predicted class")
    assert other.images[0].get_array()[0].tolist() == pytest.approx([0.6, 0, 0.4])
    assert accuracy(counts) == 5 / 8


def test_many_classes_have_colours_only():
    names = [str(n) for n in range(MAX_NUMBERED + 1)]
    (panel, _) = confusion_matrices({"test": torch.eye(len(names)).long()}, names).axes
    assert not panel.texts
    assert [label.get_text() for label in panel.get_xticklabels()] == names


def test_accuracy_by_size_marks_the_training_size():
    (axes,) = metric_by_size([32, 64, 16], [0.9, 0.5, 0.7], "test", "pixels").axes
    line, training = axes.lines
    assert line.get_xydata().tolist() == [[16, 0.7], [32, 0.9], [64, 0.5]]
    assert set(training.get_xdata()) == {32}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pixels", "test accuracy")


def test_learning_curve():
    val = [(2, {"val/loss": 0.5, "val/accuracy": 0.6}), (4, {"val/loss": 0.3, "val/accuracy": 0.8})]
    train = [(1, {"train/loss": 0.9}), (2, {"train/loss": 0.7, "train/accuracy": 0.4})]
    figure = learning_curve(train, val, "SmallNet on Data, version_0", "@32")
    loss, right = figure.axes
    assert figure.get_suptitle() == "SmallNet on Data, version_0"
    assert (loss.get_title(), right.get_title()) == ("loss", "accuracy")
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.7]]
    assert loss.lines[1].get_xydata().tolist() == [[2, 0.5], [4, 0.3]]
    assert right.lines[0].get_xydata().tolist() == [[2, 0.4]]
    assert right.lines[1].get_xydata().tolist() == [[2, 0.6], [4, 0.8]]
    labels = [line.get_label() for line in right.lines]
    assert labels == ["train/accuracy", "val/accuracy@32"]


def test_learning_curve_of_a_text():
    val = [(2, {"val/loss": 0.5, "val/accuracy": 0.6, "val/bits_per_char": 0.72})]
    *_, bits = learning_curve([], val).axes
    assert bits.get_title() == "bits per character"
    assert bits.lines[0].get_xydata().tolist() == [[2, 0.72]]


# train.py predict.


def pictures(cli):
    return {file.stem for file in folder_of(cli).glob("*.png")}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("quickstart", {"gating_grid", "confusion", "accuracy_by_size", "arrow_errors"}),
        ("tu", {"gating_graph", "confusion"}),
        ("text", {"gating_sequence", "confusion"}),
    ],
)
def test_predict_leaves_pictures(config, names, workplace, monkeypatch):
    panels = []

    def confusion_matrices_of(matrices, classes):
        panels.extend(matrices)
        return confusion_matrices(matrices, classes)

    monkeypatch.setattr(callback, "confusion_matrices", confusion_matrices_of)
    cli = run("predict", config, "--trainer.logger=TensorBoardLogger")
    assert pictures(cli) == names
    sizes = cli.datamodule.sizes  # that of training has its panel too
    assert panels == ([f"test @{size}" for size in sizes] if len(sizes) > 1 else ["test"])
    folder = folder_of(cli)
    assert all((folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    logged = b"".join(file.read_bytes() for file in folder.glob("events.out*"))
    assert all(name.encode() in logged for name in names)

    saved = torch.load(folder / "predictions.pt", weights_only=True)
    (drawn,) = (x.confusion for x in cli.trainer.callbacks if isinstance(x, Pictures))
    loaders = cli.datamodule.test_dataloader()
    loaders = loaders if isinstance(loaders, list) else [loaders]
    for (name, probabilities), loader in zip(saved.items(), loaders, strict=True):
        targets = torch.cat([batch.y if config == "tu" else batch[1] for batch in loader])
        want = multiclass_confusion_matrix(
            probabilities.flatten(0, -2), targets.flatten(), cli.datamodule.out_dim
        )
        assert torch.equal(drawn[name].compute(), want)


@pytest.mark.parametrize("config", ["quickstart", "tu"])
def test_low_precision(config, workplace):
    names = pictures(run("predict", config, "--trainer.precision=bf16-true"))
    assert any(name.startswith("gating") for name in names)


@pytest.mark.parametrize(
    ("config", "net", "names"),
    [
        ("quickstart", "vit", {"confusion", "accuracy_by_size", "arrow_errors"}),
        ("tu", "gin", {"confusion"}),
    ],
)
def test_other_nets_have_the_other_pictures(config, net, names, workplace):
    cli = run("predict", config, f"--model.net={CONFIGS}/net/{net}_{config}.yaml")
    assert pictures(cli) == names


def test_too_many_classes_have_no_matrix(workplace, monkeypatch):
    monkeypatch.setattr(callback, "MAX_CLASSES", 5)
    assert pictures(run("predict", "text", "--trainer.precision=64-true")) == {"gating_sequence"}


def test_predicting_without_a_logger(workplace, tmp_path):
    before = set(tmp_path.rglob("*"))
    run("predict", "quickstart", "--trainer.logger=false", "--trainer.precision=bf16-mixed")
    assert set(tmp_path.rglob("*")) == before
