import pytest
import torch
from torch.nn.functional import layer_norm, silu

from plstm import GLA, LightningAttention, RetNet
from plstm.layers.lightning_attention import alibi_slopes, scheduled_slopes
from tests.helpers import assert_close
from tests.layers.quadratic import decayed_sums


def perturbed(**kwargs):
    layer = LightningAttention(12, 3, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def heads(layer, x):
    """q, k and v of a layer, (B, L, H, width)."""
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    return [silu(proj(x)).unflatten(-1, (layer.num_heads, -1)) for proj in projections]


def finish(layer, out, x):
    """What follows the recurrence; out (B, L, H, V)."""
    out = out.flatten(2)
    out = layer_norm(out, out.shape[-1:], layer.norm.weight, layer.norm.bias)
    gate = torch.sigmoid(x @ layer.gate_down.weight.T @ layer.gate_up.weight.T)
    return (out * gate) @ layer.out_proj.weight.T


@pytest.mark.parametrize("length", [1, 7, 131])
@pytest.mark.parametrize("widths", [{}, {"qk_dim": 5, "v_dim": 2}], ids=["equal", "unequal"])
def test_by_hand(widths, length):
    layer, x = perturbed(**widths), torch.randn(2, length, 12).double()
    q, k, v = heads(layer, x)
    out = decayed_sums(q, k, v, -layer.slopes[:, None].expand_as(k))
    assert_close("output", layer(x), finish(layer, out, x))


def test_no_slope_never_forgets():
    layer, x = perturbed(), torch.randn(1, 7, 12).double()
    layer.slopes.zero_()
    q, k, v = heads(layer, x)
    out = torch.einsum("bthk,bshk,bshv,ts->bthv", q, k, v, torch.ones(7, 7).double().tril())
    assert_close("output", layer(x), finish(layer, out, x))


def test_infinite_slope_sees_the_present_only():
    layer, x = perturbed(), torch.randn(1, 131, 12).double()
    layer.slopes.fill_(torch.inf)
    q, k, v = heads(layer, x)
    assert_close("output", layer(x), finish(layer, (q * k).sum(-1, keepdim=True) * v, x))


def test_memory_is_that_of_retnet_without_rotation_and_of_gla_with_a_constant_gate():
    """All three with k = v = u; here u = silu(W x), so the others get u as their input."""
    layer, x = perturbed(), torch.randn(2, 70, 12).double()
    layer.v_proj.weight = layer.k_proj.weight
    u = silu(layer.k_proj(x))
    retnet = RetNet(12, 3, rotary=False, v_dim=4).double()
    gla = GLA(12, 3, qk_dim=4, gate_normalizer=1.0).double()
    retnet.log_decay.copy_(-layer.slopes)
    with torch.no_grad():
        for other in (retnet, gla):
            other.k_proj.weight.copy_(torch.eye(12))
            other.v_proj.weight.copy_(torch.eye(12))
        decay = (-layer.slopes).exp()
        gla.decay_up.weight.zero_()
        gla.decay_up.bias.copy_(torch.logit(decay).repeat_interleave(4))
    want = layer(x, return_state=True)[1].memory
    for other in (retnet, gla):
        assert_close(type(other).__name__, other(u, return_state=True)[1].memory, want)


def test_alibi_slopes():
    assert alibi_slopes(1).tolist() == [2**-8]
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(12)[:8].tolist() == alibi_slopes(8).tolist()
    assert alibi_slopes(12)[8:].tolist() == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_schedules():
    base = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8])
    for layer, share in enumerate([1.0, 2 / 3, 1 / 3, 0.0]):
        slopes = scheduled_slopes("alibi", 4, layer, 4)
        assert_close("alibi", slopes, base * (share + 1e-5), 1e-5)
    assert scheduled_slopes("transnormer", 4, 1, 4).tolist() == [1.5, 3.0, 4.5, 6.0]
    assert scheduled_slopes("transnormer_from_zero", 4, 1, 4).tolist() == [0.0, 1.5, 3.0, 4.5]


@pytest.mark.parametrize("schedule", ["alibi", "transnormer", "transnormer_from_zero"])
def test_deeper_layers_forget_less(schedule):
    slopes = torch.stack([scheduled_slopes(schedule, 6, layer, 5) for layer in range(5)])
    assert (slopes >= 0).all()
    assert (slopes.diff(dim=0) <= 0).all()
    assert (slopes.diff(dim=0) < 0).any(-1).all()


def test_a_single_layer():
    assert_close("slopes", LightningAttention(12, 4).slopes, alibi_slopes(4), 2e-5)


def test_slopes_are_no_weights():
    layer = LightningAttention(12, 3)
    assert "slopes" not in layer.state_dict()
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_initial_values():
    layer = LightningAttention(100, 4)
    layer.reset_parameters()
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.gate_down, layer.out_proj):
        assert linear.bias is None
        assert 0.09 < linear.weight.abs().max() <= 0.1  # uniform up to 1 / sqrt(fan in)
    assert layer.gate_down.weight.shape == (25, 100)


def test_errors():
    with pytest.raises(ValueError, match=r"schedule must be one of 'alibi'.*got 'linear'"):
        LightningAttention(12, 3, schedule="linear")
    with pytest.raises(ValueError, match="layer must be from 0 to num_layers - 1, got layer=4"):
        LightningAttention(12, 3, layer=4, num_layers=4)
    with pytest.raises(ValueError, match="LightningAttention: dim must be divisible"):
        LightningAttention(12, 5)
