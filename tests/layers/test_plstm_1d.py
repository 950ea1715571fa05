import pytest
import torch

from plstm import PLSTM1d
from plstm.ops.plstm_1d import plstm_1d
from tests.helpers import assert_close

GATES = ("source", "transition", "mark", "direct")


def perturbed(**kwargs):
    layer = PLSTM1d(12, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def fix_gate(layer, name, logit):
    """The same logit everywhere."""
    part = ["source", "mark", "direct", "transition"].index(name)
    with torch.no_grad():
        layer.gate_proj.weight.split(layer.gate_sizes)[part].zero_()
        layer.gate_proj.bias.split(layer.gate_sizes)[part].fill_(logit)


def gates(layer, x):
    """Source, transition, mark and direct, in the shapes of the op."""
    with torch.no_grad():
        return layer.gates(x)


def test_lane_transitions_never_amplify():
    layer = perturbed(lanes=3)
    _, transition, _, _ = gates(layer, torch.randn(2, 6, 12).double())
    norms = torch.linalg.matrix_norm(transition, 2)
    assert (norms <= 1 + 1e-12).all()
    assert norms.std() > 0


def test_lane_transitions_are_rotations_without_decay():
    layer = perturbed(lanes=3)
    fix_gate(layer, "transition", 100.0)  # tanh = 1 leaves U W
    _, transition, _, _ = gates(layer, torch.randn(2, 6, 12).double())
    assert_close("T T^t", transition @ transition.mT, torch.eye(3).expand_as(transition), 1e-10)
    off_diagonal = transition - torch.diag_embed(transition.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() > 0.1
    assert transition.std(1).max() > 1e-3  # depends on the input


def test_lanes_differ_at_the_start():
    _, transition, _, _ = gates(PLSTM1d(12, 2, lanes=2), torch.zeros(1, 1, 12))
    flipped = transition.flip(-1, -2)
    assert not torch.allclose(transition, flipped)


def test_published_biases():
    layer = PLSTM1d(12, 2, source_bias=-4.0, mark_bias=-3.0, direct_bias=-5.0, transition_bias=0.1)
    source, transition, mark, direct = gates(layer, torch.randn(2, 3, 12))
    for gate, logit in ((source, -4.0), (mark, -3.0), (direct, -5.0)):
        assert_close("gate", gate, torch.full_like(gate, logit).sigmoid(), 1e-6)
    assert_close("transition", transition, torch.full_like(transition, 0.5).tanh(), 1e-6)


@pytest.mark.parametrize("conv_width", [0, 3])
def test_gates_are_those_of_forward(conv_width, monkeypatch):
    layer, x, used = perturbed(conv_width=conv_width), torch.randn(2, 5, 12).double(), []

    def spy(*inputs, **options):
        used.extend(inputs[3:])
        return plstm_1d(*inputs, **options)

    monkeypatch.setattr("plstm.layers.plstm_1d.plstm_1d", spy)
    layer(x)
    for name, got, want in zip(GATES, layer.gates(x), used, strict=True):
        assert_close(name, got, want)


def test_scalar_gates_stay_in_their_ranges():
    source, transition, mark, direct = gates(perturbed(), 3 * torch.randn(2, 50, 12).double())
    for gate in (source, mark, direct):
        assert (gate > 0).all()
        assert (gate < 1).all()
    assert (transition.abs() <= 1).all()
    assert (transition < 0).any()


def test_convolution_reaches_back_by_its_width():
    """With the memory closed, the convolution is the only way from one position to a later one."""
    layer = perturbed(conv_width=3)
    fix_gate(layer, "mark", -1000.0)
    x = torch.randn(1, 8, 12).double()
    y, moved = layer(x), x.clone()
    moved[:, 2] += 1
    changed = (layer(moved) - y).norm(dim=-1)[0] > 1e-12
    assert changed.tolist() == [False] * 2 + [True] * 3 + [False] * 3


def test_without_memory_or_convolution_positions_are_alone():
    layer = perturbed()
    fix_gate(layer, "mark", -1000.0)
    x = torch.randn(1, 8, 12).double()
    assert_close("each alone", torch.cat([layer(x[:, t : t + 1]) for t in range(8)], 1), layer(x))


@pytest.mark.parametrize("conv_width", [0, 4])
def test_long_sequence_by_pieces(conv_width):
    """Pieces shorter and longer than the convolution and a chunk."""
    layer, x = perturbed(conv_width=conv_width), torch.randn(2, 150, 12).double()
    state, outs = None, []
    for piece in x.split([1, 2, 70, 5, 72], 1):
        y, state = layer(piece, state=state, return_state=True)
        outs.append(y)
    assert_close("output", torch.cat(outs, 1), layer(x))


def test_backends_agree():
    layer, x = perturbed(lanes=2), torch.randn(2, 40, 12).double()
    y = layer(x)
    layer.backend = "naive"
    assert_close("output", layer(x), y)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lanes": 4}, "PLSTM1d: lanes must divide the value width per head.*lanes=4 and v_dim=6"),
        ({"lanes": 0}, "lanes must divide"),
        ({"num_heads": 5}, "PLSTM1d: dim must be divisible by num_heads, got dim=12"),
        ({"num_heads": 0}, "num_heads must be 1 or more, got 0"),
        ({"qk_dim": 0}, "qk_dim must be 1 or more, got 0"),
        ({"conv_width": 1}, "width must be at least 2, got 1"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
    ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()) if type(case) is dict else "",
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PLSTM1d(12, **{"num_heads": 2} | kwargs)(torch.zeros(1, 3, 12))
