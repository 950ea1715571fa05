import math

import pytest
import torch

from plstm import LightNet
from plstm.layers.lightnet import additive_decay
from plstm.modules.lrpe import apply_lrpe
from plstm.modules.rotary import coordinates
from tests.helpers import assert_close


def perturbed(**kwargs):
    layer = LightNet(12, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def twin(layer, **kwargs):
    """The same parameters with other options."""
    other = perturbed(**kwargs)
    other.load_state_dict(layer.state_dict())
    return other


def by_hand(layer, x, causal):
    """sum_s sum_d q_td softmax(kappa)_sd v_s, head by head; x (L, dim)."""
    q, kappa, v = (p(x).chunk(2, -1) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    heads = []
    for q_h, kappa_h, v_h in zip(q, kappa, v, strict=True):
        outs = []
        for t in range(len(x)):
            seen = slice(0, t + 1 if causal else None)
            weights = kappa_h[seen].exp()
            weights = weights / (weights.sum(0) + layer.phantom)
            outs.append((q_h[t] * q_h[t].sigmoid()) @ weights.T @ v_h[seen])
        out = torch.stack(outs)
        heads.append(out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    gate = (x @ layer.gate_down.weight.T @ layer.gate_up.weight.T).sigmoid()
    return layer.out_proj(torch.cat(heads, -1) * layer.norm.weight * gate)


OPTIONS = pytest.mark.parametrize(
    ("causal", "phantom"),
    [(True, False), (True, True), (False, False)],
    ids=["causal", "phantom", "whole"],
)


@OPTIONS
def test_by_hand(causal, phantom):
    layer = perturbed(causal=causal, phantom=phantom, qk_dim=5, v_dim=3)
    x = torch.randn(7, 12).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x, causal))


@pytest.mark.parametrize("lrpe", ["none", "cosine"])
def test_last_causal_output_is_the_one_of_the_whole(lrpe):
    layer, x = perturbed(causal=False, lrpe=lrpe), torch.randn(2, 70, 12).double()
    causal = twin(layer, causal=True, lrpe=lrpe)
    assert_close("last", causal(x)[:, -1], layer(x)[:, -1])
    assert not torch.allclose(causal(x)[:, 0], layer(x)[:, 0])


def test_order_and_shape_of_positions_do_not_matter():
    layer, x = perturbed(causal=False), torch.randn(2, 2, 3, 4, 12).double()
    y = layer(x)
    assert_close("sequence", layer(x.flatten(1, 3)), y.flatten(1, 3))
    order = torch.randperm(24)
    assert_close("permuted", layer(x.flatten(1, 3)[:, order]), y.flatten(1, 3)[:, order])


@OPTIONS
def test_shift_of_kappa(causal, phantom):
    """A constant per channel on kappa cancels, unless there is a phantom to compare with."""
    layer, x = perturbed(causal=causal, phantom=phantom), torch.randn(2, 9, 12).double()
    x[..., 0] = 1.0
    y = layer(x)
    with torch.no_grad():
        layer.k_proj.weight[:, 0] += torch.randn(12)
    moved = (layer(x) - y).norm() / y.norm()
    assert moved > 1e-3 if phantom else moved < 1e-10


def test_constant_kappa_averages():
    """S_t is the mean of the values so far and the decay (t - 1) / t."""
    kappa = torch.randn(2, 1, 2, 6).double().expand(-1, 9, -1, -1)
    (k, log_decay), _ = additive_decay(kappa, torch.full((2, 2, 6), -math.inf).double())
    t = torch.arange(1, 10).double()[:, None, None]
    assert_close("decay", log_decay.exp(), ((t - 1) / t).expand_as(k))
    assert_close("keys", k, (1 / t).expand_as(k))
    layer = perturbed()
    with torch.no_grad():
        layer.k_proj.weight.zero_()
    x = torch.randn(2, 9, 12).double()
    _, state = layer(x, return_state=True)
    mean = layer.v_proj(x).mean(1).view(2, 2, 1, 6)
    assert_close("memory", state.memory, mean.expand(-1, -1, 6, -1))


@pytest.mark.parametrize("start", [-math.inf, 0.0], ids=["plain", "phantom"])
def test_keys_and_decays_add_to_one(start):
    kappa = torch.randn(2, 9, 2, 6).double()
    (k, log_decay), _ = additive_decay(kappa, torch.full((2, 2, 6), start).double())
    assert (log_decay <= 0).all()
    assert_close("sum", k + log_decay.exp(), torch.ones_like(k))


@pytest.mark.parametrize("causal", [True, False])
def test_huge_kappa_is_finite(causal):
    layer, x = perturbed(causal=causal).float(), torch.randn(1, 70, 12)
    x[..., 0] = 1e4 * torch.randn(70)
    with torch.no_grad():
        for proj in (layer.q_proj, layer.v_proj, layer.gate_down):
            proj.weight[:, 0] = 0
    assert layer.k_proj(x).abs().max() > 1e4
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("form", ["cosine", "rotate"])
def test_position_encodings_on_a_grid_by_hand(form):
    layer, x = perturbed(causal=False, lrpe=form), torch.randn(1, 3, 4, 12).double()
    q, kappa, v = layer._qkv(x.flatten(1, 2))
    positions = coordinates((3, 4), x.device)
    q, k = (apply_lrpe(part, positions, form) for part in (q, kappa.softmax(1)))
    out = torch.einsum("bthk,bshk,bshv->bthv", q, k, v).view(1, 3, 4, 2, 6)
    assert_close("output", layer(x), layer._output(out, x))


@pytest.mark.parametrize("lrpe", ["none", "cosine", "rotate"])
def test_pieces_with_codes(lrpe):
    layer, x = perturbed(lrpe=lrpe, tpe_axes=1), torch.randn(2, 80, 12).double()
    state, outs = None, []
    for piece in x.split([1, 2, 70, 7], 1):
        y, state = layer(piece, state=state, return_state=True)
        outs.append(y)
    assert state.seen.tolist() == [80, 80]
    assert layer.state_size() == sum(s[0].numel() for s in state[:3])
    assert_close("output", torch.cat(outs, 1), layer(x))


def test_toeplitz_code_comes_first():
    layer, x = perturbed(causal=False, tpe_axes=2), torch.randn(2, 3, 4, 12).double()
    plain = perturbed(causal=False)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k[:5] != "code."})
    assert_close("output", layer(x), plain(layer.code(x)))


def test_initial_values():
    layer = LightNet(256, 4)
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.gate_up, layer.out_proj):
        assert linear.bias is None
        assert 0.018 < linear.weight.std() < 0.022
    assert layer.gate_down.weight.shape == (64, 256)


def test_whole_carries_nothing():
    assert LightNet(12, 2, causal=False).state_size() == 0


def test_backends_agree():
    layer, x = perturbed(lrpe="cosine"), torch.randn(2, 70, 12).double()
    y = layer(x)
    layer.backend = "naive"
    assert_close("output", layer(x), y)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 5}, "LightNet: dim must be divisible by num_heads"),
        ({"lrpe": "sine"}, "lrpe must be one of"),
        ({"phantom": True, "causal": False}, "phantom needs causal=True"),
        ({"lrpe": "rotate", "qk_dim": 5}, "an even qk_dim"),
        ({"num_heads": 5, "qk_dim": 4, "v_dim": 4, "tpe_axes": 1}, "dim divisible by num_heads"),
        ({"causal": True, "shape": (2, 3)}, "which needs one position axis"),
        ({"causal": False, "tpe_axes": 2}, "x must have tpe_axes=2 position axes, got 1"),
    ],
    ids=str,
)
def test_errors(kwargs, message):
    shape = kwargs.pop("shape", (3,))
    with pytest.raises(ValueError, match=message):
        LightNet(12, **{"num_heads": 2} | kwargs)(torch.zeros(1, *shape, 12))
