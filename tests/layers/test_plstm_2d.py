import copy
import sys
from unittest import mock

import pytest
import torch
from torch.nn.utils import parametrize

from plstm import PLSTM2d
from plstm.ops import native
from plstm.ops.plstm_2d import CORNERS, cpu, gates
from tests.helpers import assert_close, gradients

MODES = ["P", "D"]
modes = pytest.mark.parametrize("mode", MODES)


def perturbed(**kwargs):
    layer = PLSTM2d(12, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


@modes
def test_gate_shapes(mode):
    layer = perturbed(mode=mode, corners=("top_left", "bottom_right", "top_right"))
    source, transition, mark, direct = layer.gates(torch.randn(2, 4, 5, 12).double())
    assert source.shape == mark.shape == (3, 2, 4, 5, 2, 2)
    assert transition.shape == (3, 2, 4, 5, 2, 2, 2)
    assert direct.shape == (2, 4, 5, 2)


def test_mode_p_splits():
    layer = perturbed(mode="P")
    x = torch.randn(2, 4, 5, 12).double()
    source, transition, mark, _ = layer.gates(x)
    assert_close("same for both incoming edges", transition[..., 0], transition[..., 1])
    assert_close("same mark", mark[..., 0], mark[..., 1])
    angle = source[..., 0] / source.sum(-1)
    share = transition[..., 0, 0] / transition[..., 0].sum(-1)
    assert_close("source and transition turn together", share, angle)
    decay = transition[..., 0].sum(-1)
    assert (decay.abs() <= 1).all()
    assert (decay < 0).any()


def test_mode_p_heads_look_in_different_directions():
    source, *_ = PLSTM2d(12, 3, mode="P").gates(torch.randn(1, 2, 2, 12))
    angle = source[..., 0] / source.sum(-1)
    want = torch.tensor([-2.0, 0.0, 2.0]).sigmoid().expand_as(angle)
    assert_close("angle", angle, want, 1e-6)


@pytest.mark.parametrize("chirality", ["L", "R"])
def test_mode_d_keeps_one_turn(chirality):
    _, transition, _, _ = perturbed(mode="D", chirality=chirality).gates(
        torch.randn(2, 4, 5, 12).double()
    )
    into_x, into_y = transition[..., 0, 1], transition[..., 1, 0]
    kept, dropped = (into_x, into_y) if chirality == "L" else (into_y, into_x)
    assert (dropped == 0).all()
    assert (kept != 0).all()
    assert (transition.abs() <= 1).all()


@pytest.mark.parametrize("chirality", ["L", "R"])
def test_chirality_is_what_reaches_round_the_corner(chirality):
    """Open gates: the other node of the diagonal is reached by one of the two ways only."""
    layer = perturbed(mode="D", chirality=chirality, corners=("top_left",), transition_bias=100.0)
    x = torch.randn(1, 2, 2, 12).double()
    # A node in between passes on only where its own transition is open: close it at (0, 1).
    source, transition, mark, direct = layer.gates(x)
    closed = transition.clone()
    closed[:, :, 0, 1] = 0

    def run(gate):
        layer.gates = lambda _: (source, gate, mark, direct)
        return layer(x)[0, 1, 1]

    # Right then down turns into y, which "R" keeps.
    passes_there = not torch.allclose(run(transition), run(closed))
    assert passes_there == (chirality == "R")


@modes
def test_published_biases(mode):
    layer = PLSTM2d(12, 2, mode, source_bias=-4.0, mark_bias=-3.0, direct_bias=-6.0)
    source, _, mark, direct = layer.gates(torch.randn(2, 3, 3, 12))
    strength = source.sum(-1) if mode == "P" else source  # P splits it over two edges
    for gate, logit in ((strength, -4.0), (mark, -3.0), (direct, -6.0)):
        assert_close("gate", gate, torch.full_like(gate, logit).sigmoid(), 1e-5)


@modes
@pytest.mark.parametrize("corner", CORNERS)
def test_one_corner_sees_one_quadrant(mode, corner):
    layer, x = perturbed(mode=mode, corners=(corner,)), torch.randn(1, 3, 5, 12).double()
    moved = x.clone()
    moved[:, 1, 2] += 1
    changed = (layer(moved) - layer(x)).norm(dim=-1)[0] > 1e-12
    want = torch.zeros(3, 5, dtype=torch.bool)
    rows = slice(1, None) if corner.startswith("top") else slice(None, 2)
    columns = slice(2, None) if corner.endswith("left") else slice(None, 3)
    want[rows, columns] = True
    assert torch.equal(changed, want)


@modes
def test_all_corners_see_everything(mode):
    layer, x = perturbed(mode=mode), torch.randn(1, 3, 5, 12).double()
    moved = x.clone()
    moved[:, 1, 2] += 1
    assert ((layer(moved) - layer(x)).norm(dim=-1) > 1e-12).all()


@modes
def test_backends_agree(mode):
    layer, x = perturbed(mode=mode), torch.randn(2, 4, 5, 12).double()
    y = layer(x)
    for backend in ("naive", "rows", "chunk"):
        layer.backend = backend
        assert_close(backend, layer(x), y)


@modes
def test_every_linear_is_called(mode):
    """Linear layers are called as modules, for hooks, adapters and quantization."""
    layer, called = perturbed(mode=mode), set()
    linears = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    for linear in linears:
        linear.register_forward_hook(lambda module, *_: called.add(module))
    x = torch.randn(1, 3, 4, 12).double()
    before = layer(x)
    assert called == set(linears)
    for linear in linears:
        twin = copy.deepcopy(layer)
        (name,) = (name for name, m in layer.named_modules() if m is linear)
        parametrize.register_parametrization(twin.get_submodule(name), "weight", Doubled())
        assert not torch.allclose(twin(x), before)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_weights_of_the_angle_are_scaled():
    """angle = sigmoid(b + w.x / (2 dim))"""
    layer, x = perturbed(mode="P"), torch.randn(1, 3, 4, 12).double()
    source = layer.gates(x).source
    got = (source[..., 0] / source.sum(-1)).movedim(0, 3).flatten(3)
    want = torch.sigmoid(layer.angle_bias + x @ layer.angle_proj.weight.T / 24)
    assert_close("angle", got, want)


needs_compiler = pytest.mark.skipif(
    not native.available(gates.SOURCE), reason="needs a C++ compiler"
)
kinds = pytest.mark.parametrize(("mode", "chirality"), [("P", "L"), ("D", "L"), ("D", "R")])


def gates_and_gradients(layer, x, backend):
    """Gates of a layer as it hands them to a backend, and their gradients."""
    layer.backend = backend
    inputs, found = {"x": x, **dict(layer.named_parameters())}, {}
    for n, name in enumerate(("source", "transition", "mark", "direct")):
        found[name] = layer.gates(x)[n]
        for to, grad in gradients(found[name], inputs).items():
            found[f"gradient of {name} by {to}"] = grad
    return found


@needs_compiler
@kinds
@pytest.mark.parametrize("corners", [CORNERS[:1], CORNERS[1:]], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_compiled_gates(mode, chirality, corners, dtype):
    layer = perturbed(mode=mode, chirality=chirality, corners=corners).to(dtype)
    x = torch.randn(3, 4, 5, 12, dtype=dtype, requires_grad=True)
    want, got = (gates_and_gradients(layer, x, backend) for backend in ("naive", "dense"))
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    for name in want:
        assert got[name].dtype == dtype
        assert_close(name, got[name], want[name], rtol)


@needs_compiler
@kinds
def test_compiled_gates_lie_where_they_are_read(mode, chirality, monkeypatch):
    """No pass over the gates between the maps of a layer and the kernel."""
    layer, used = perturbed(mode=mode, chirality=chirality, backend="dense"), []
    monkeypatch.setattr(gates.native, "call", lambda *args: used.append(args))
    layer(torch.randn(3, 4, 5, 12).double())
    made, read = (call[2:] for call in used)
    assert [x.data_ptr() for x in read[:4]] == [x.data_ptr() for x in made[2:6]]


@needs_compiler
@kinds
def test_compiled_gates_are_a_sound_custom_op(mode, chirality):
    scans = 2 * len(CORNERS)
    sizes = (3 * scans + 2, scans) if mode == "P" else (7 * scans + 2, 0)
    inputs = [torch.randn(2, 3, 2, n, dtype=torch.float64, requires_grad=True) for n in sizes]
    turn = 0 if mode == "P" else gates.TURNS[chirality]
    torch.library.opcheck(gates._gates, (*inputs, 2, len(CORNERS), turn))


@needs_compiler
@modes
def test_compiles_as_a_whole(mode):
    layer, x = perturbed(mode=mode), torch.randn(2, 3, 4, 12).double()
    inputs = dict(layer.named_parameters())
    want, got = (run(x) for run in (layer, torch.compile(layer, fullgraph=True)))
    assert_close("output", got, want)
    got = gradients(got, inputs)
    for name, grad in gradients(want, inputs).items():
        assert_close(f"gradient of {name}", got[name], grad)


GRIDS = [(2, 3, 5), (3, 4, 2), (2, 7, 6)]


@needs_compiler
@modes
def test_one_graph_for_all_sizes(mode):
    """On both sides of the threshold between the two C++ forms."""
    torch._dynamo.reset()
    layer, graphs = perturbed(mode=mode), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    for size in GRIDS:
        x = torch.randn(*size, 12).double()
        with mock.patch.object(cpu, "DENSE_WORK", 1 if size[0] == 3 else 100):
            assert_close("output", compiled(x), layer(x))
    assert len(graphs) == 1


@needs_compiler
@modes
def test_exports_with_free_sizes(mode):
    layer = perturbed(mode=mode)
    sizes = ({axis: torch.export.Dim(f"size{axis}") for axis in range(3)},)
    x = torch.randn(*GRIDS[0], 12).double()
    program = torch.export.export(layer, (x,), dynamic_shapes=sizes)
    ours = [str(node.target) for node in program.graph.nodes if "plstm" in str(node.target)]
    assert ours == ["plstm.grid_gates.default", "plstm.grid.default"]
    for size in GRIDS:
        x = torch.randn(*size, 12).double()
        assert_close("output", program.module()(x), layer(x))


@modes
def test_without_a_compiler(mode, monkeypatch):
    layer, x = perturbed(mode=mode), torch.randn(2, 4, 5, 12).double()
    y = layer(x)
    monkeypatch.setattr(sys.modules["plstm.ops.plstm_2d"], "kernels_available", lambda: False)
    monkeypatch.setattr(native, "call", None)  # must not be used
    assert_close("output", layer(x), y)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "Q"}, "PLSTM2d: mode must be one of 'P', 'D', got 'Q'"),
        ({"chirality": "left"}, "PLSTM2d: chirality must be one of 'L', 'R', got 'left'"),
        ({"corners": ("middle",)}, "PLSTM2d: every corner must be one of .*got 'middle'"),
        ({"corners": ()}, "corners must be distinct and at least one"),
        ({"corners": ("top_left", "top_left")}, "corners must be distinct"),
        ({"num_heads": 5}, "PLSTM2d: dim must be divisible by num_heads"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
    ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()) if type(case) is dict else "",
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PLSTM2d(12, **{"num_heads": 2} | kwargs)(torch.zeros(1, 2, 2, 12))


def test_norm_of_all_heads_keeps_their_sizes():
    """Scaling the values of a head by 1/100 scales its output with "all", not with "head"."""
    for norm, want in (("all", 0.01), ("head", 1.0)):
        layer, x = PLSTM2d(12, 2, norm=norm).double(), 100 * torch.randn(1, 3, 3, 12).double()
        seen = []
        layer.out_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        layer(x)
        with torch.no_grad():
            layer.v_proj.weight[:6] *= 0.01
        layer(x)
        before, after = (y[..., :6].norm(dim=-1) / y[..., 6:].norm(dim=-1) for y in seen)
        assert_close(norm, after / before, torch.full_like(before, want), 1e-3)


@modes
def test_without_biases_tokens_of_zeros_stay_and_say_nothing(mode):
    x = torch.randn(1, 4, 5, 12)
    x[:, 1:, 2] = 0
    kept = PLSTM2d(12, 2, mode, bias=False)(x)
    assert (kept[:, 1:, 2] == 0).all()
    assert (kept[:, :, :2] != 0).any(-1).all()
    assert (PLSTM2d(12, 2, mode)(torch.zeros_like(x)) == 0).all()  # biases start at 0
    layer = PLSTM2d(12, 2, mode)
    with torch.no_grad():
        layer.v_proj.bias += 1
        layer.q_proj.bias += 1
        layer.k_proj.bias += 1
    assert (layer(x)[:, 1:, 2] != 0).any(-1).all()


def test_unknown_norm():
    with pytest.raises(ValueError, match="PLSTM2d: norm must be one of 'head', 'all', got 'layer'"):
        PLSTM2d(12, 2, norm="layer")
