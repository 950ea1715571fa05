import pytest
import torch

from plstm import PLSTM1d
from plstm.modules.orthogonal import orthogonal
from plstm.ops.plstm_1d import plstm_1d
from tasks.words import draw_words, group_elements
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
        layer.gate_proj.weight.chunk(4)[part].zero_()
        layer.gate_proj.bias.chunk(4)[part].fill_(logit)


def gates(layer, x):
    """Source, transition, mark and direct, in the shapes of `plstm_1d`."""
    with torch.no_grad():
        return layer.gates(x)


def test_lane_transitions_never_amplify():
    layer = perturbed(lanes=3)
    _, transition, _, _ = gates(layer, torch.randn(2, 6, 12).double())
    norms = torch.linalg.matrix_norm(transition, 2)
    assert (norms <= 1 + 1e-12).all()
    assert norms.std() > 0


def test_lanes_by_their_formula():
    """r_t = scale * (M_t C_t^T q_t + D_t (q_t . k_t) v_t), from C_0 = k_0 v_0^T on."""
    layer = perturbed(lanes=3, expansion=0, conv_width=0)
    x = torch.randn(2, 7, 12).double()
    q, k, v = (proj(x).unflatten(-1, (2, 6)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    source, mark, direct, decay = layer.gate_proj(x).unflatten(-1, (4, 2, 1)).unbind(2)
    z = layer.mixing_proj(x).unflatten(-1, (2, 3, 3))
    transition = (5 * decay[..., None]).tanh() * orthogonal(z)
    memory = (layer.first_key * layer.first_value).expand(2, -1, -1, -1, -1)  # (B, H, K, V, J)
    for t in range(7):
        written = k[:, t, :, :, None] * source[:, t, :, None].sigmoid() * v[:, t, :, None]
        memory = torch.einsum("bhkvi,bhji->bhkvj", memory, transition[:, t])
        memory = memory + written.unflatten(-1, (2, 3))
        read = torch.einsum("bhk,bhkvj->bhvj", q[:, t], memory).flatten(2)
        own = (q[:, t] * k[:, t]).sum(-1, keepdim=True) * v[:, t]
        r = 6**-0.5 * (mark[:, t].sigmoid() * read + direct[:, t].sigmoid() * own)
        want = layer.out_proj(layer.norm(r))
        assert_close(f"position {t}", layer(x)[:, t], want, 1e-10)


def test_memory_without_keys():
    """qk_dim = 0 is a layer whose queries and keys are 1."""
    layer, keyed = perturbed(qk_dim=0, expansion=0), perturbed(qk_dim=1, expansion=0)
    keyed.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        for proj in (keyed.q_proj, keyed.k_proj):
            proj.weight.zero_()
            proj.bias.fill_(1)
    x = torch.randn(2, 9, 12).double()
    assert_close("output", layer(x), keyed(x))
    assert layer.state_size() == keyed.state_size()


def test_lanes_carry_the_state_of_a_group():
    """Permutations of three as rotations and reflections of a plane, over 2000 positions."""
    layer = PLSTM1d(
        6, 1, lanes=2, qk_dim=0, v_dim=2, expansion=0, conv_width=0,
        source_bias=-1000.0, direct_bias=-1000.0, transition_bias=100.0,
    ).double()  # fmt: skip
    plane = torch.tensor([[1.0, -1, 0], [1, 1, -2]]).double() / torch.tensor([[2.0], [6.0]]).sqrt()
    elements = torch.eye(3).double()[group_elements("S3")].mT  # matrices that permute
    inverses = plane @ elements.mT @ plane.mT
    with torch.no_grad():
        layer.mixing_proj.weight.copy_(inverses.flatten(1).mT)
        layer.first_key.fill_(1)
        layer.first_value.copy_(torch.tensor([0.3, 0.8]))
        layer.out_proj.weight.zero_()[:2] = torch.eye(2)
    words, products = draw_words(0, torch.arange(2), (2000, 2000), group="S3")
    y = layer(torch.eye(6).double()[words])[..., :2]
    want = inverses[products] @ torch.tensor([0.3, 0.8]).double()
    want = want / want.square().mean(-1, keepdim=True).sqrt()
    assert_close("state", y, want, 1e-3)


def test_gates_at_the_start():
    biases = {"source_bias": -4.0, "mark_bias": -3.0, "direct_bias": -5.0}
    layer = PLSTM1d(12, 3, transition_bias=(0.1, 0.3), **biases)
    source, transition, mark, direct = gates(layer, torch.randn(2, 4, 12))
    for gate, logit in ((source, -4.0), (mark, -3.0), (direct, -5.0)):
        assert_close("gate", gate, torch.full_like(gate, logit).sigmoid(), 1e-6)
    want = (5 * torch.tensor([0.1, 0.2, 0.3])).tanh()
    assert_close("transition", transition, want.expand(2, 4, 3), 1e-6)


def test_block_by_its_formula():
    """y = W_out (norm(headnorm(r) + skip * c) * silu(z))"""
    layer, x = perturbed(), torch.randn(2, 9, 12).double()
    u, z = layer.up_proj(x).chunk(2, -1)
    before = torch.nn.functional.pad(u, (0, 0, 3, 0))
    weight, bias = layer.conv.conv.weight[:, 0], layer.conv.conv.bias
    c = bias + sum(weight[:, i] * before[:, i : i + 9] for i in range(4))
    c = c * c.sigmoid()
    q, k, v = (
        (c @ torch.block_diag(*proj.weight).mT).unflatten(-1, (2, 12))
        for proj in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    logits = layer.gate_proj(c).split(2, -1)
    source, mark, direct = (x.sigmoid() for x in logits[:3])
    transition = (5 * logits[3]).tanh()
    r = plstm_1d(q, k, v, source, transition, mark, direct, backend="naive")
    r = r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    r = r.flatten(2) * layer.norm.weight + layer.skip * c
    r = r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.inner_norm.weight
    assert_close("output", layer(x), (r * z * z.sigmoid()) @ layer.out_proj.weight.mT, 1e-10)


def test_plain_layer_by_its_formula():
    layer, x = perturbed(expansion=0, conv_width=0), torch.randn(2, 9, 12).double()
    q, k, v = (proj(x).unflatten(-1, (2, 6)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    r = plstm_1d(q, k, v, *layer.gates(x), backend="naive")
    r = r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert_close("output", layer(x), layer.out_proj(r.flatten(2) * layer.norm.weight), 1e-10)


@pytest.mark.parametrize("conv_width", [0, 3])
@pytest.mark.parametrize("expansion", [0, 2])
def test_gates_are_those_of_forward(expansion, conv_width, monkeypatch):
    layer, used = perturbed(expansion=expansion, conv_width=conv_width), []
    x = torch.randn(2, 5, 12).double()

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


@pytest.mark.parametrize("expansion", [0, 2])
def test_convolution_reaches_back_by_its_width(expansion):
    """With closed memory, only the convolution connects positions."""
    layer = perturbed(expansion=expansion, conv_width=3)
    fix_gate(layer, "mark", -1000.0)
    x = torch.randn(1, 8, 12).double()
    y, moved = layer(x), x.clone()
    moved[:, 2] += 1
    changed = (layer(moved) - y).norm(dim=-1)[0] > 1e-12
    assert changed.tolist() == [False] * 2 + [True] * 3 + [False] * 3


def test_without_memory_or_convolution_positions_are_alone():
    layer = perturbed(conv_width=0)
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
        ({"lanes": 5}, "PLSTM1d: lanes must divide the value width per head.*lanes=5 and v_dim=12"),
        ({"lanes": 0}, "lanes must divide"),
        ({"num_heads": 5}, "PLSTM1d: num_heads must divide expansion.*num_heads=5.*dim=12"),
        ({"num_heads": 0}, "PLSTM1d: num_heads must divide expansion.*got num_heads=0"),
        ({"expansion": -1}, "expansion=-1"),
        ({"block_width": 5}, "BlockDiagonal: block_width must divide dim, .*got 5, 24 and 24"),
        ({"block_width": 0}, "got 0, 24 and 24"),
        ({"qk_dim": 5}, "dim / block_width out_dim, got 4, 24 and 10"),
        ({"qk_dim": -1}, "qk_dim must be 0 or more, got -1"),
        ({"conv_width": 1}, "width must be at least 2, got 1"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
    ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()) if type(case) is dict else "",
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PLSTM1d(12, **{"num_heads": 2} | kwargs)(torch.zeros(1, 3, 12))
