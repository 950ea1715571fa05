import math

import pytest
import torch
from torch.nn.functional import logsigmoid, silu

from plstm import GLA, RetNet
from tests.helpers import assert_close
from tests.layers.quadratic import decayed_sums


def perturbed(**kwargs):
    layer = GLA(12, 3, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def by_hand(layer, x):
    """From the parameters; x (B, L, dim)."""
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    q, k, v = (proj(x).unflatten(-1, (layer.num_heads, -1)) for proj in projections)
    logits = x @ layer.decay_down.weight.T @ layer.decay_up.weight.T + layer.decay_up.bias
    log_decay = logsigmoid(logits.unflatten(-1, (layer.num_heads, -1))) / layer.gate_normalizer
    out = decayed_sums(q, k, v, log_decay) / layer.qk_dim**0.5
    out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return layer.out_proj(out.flatten(2) * layer.norm.weight * silu(layer.gate_proj(x)))


@pytest.mark.parametrize("length", [1, 7, 131])
@pytest.mark.parametrize(
    "options",
    [{}, {"qk_dim": 5, "v_dim": 3, "gate_rank": 2, "gate_normalizer": 2.0}],
    ids=["default", "options"],
)
def test_by_hand(options, length):
    layer, x = perturbed(**options), torch.randn(2, length, 12).double()
    assert_close("output", layer(x), by_hand(layer, x))


def test_constant_gate_is_retnet_without_rotation():
    retnet, x = RetNet(12, 3, rotary=False).double(), torch.randn(2, 70, 12).double()
    gla = GLA(12, 3, qk_dim=retnet.qk_dim, v_dim=retnet.v_dim, gate_normalizer=1.0).double()
    gla.load_state_dict(retnet.state_dict(), strict=False)
    with torch.no_grad():
        gla.decay_up.weight.zero_()
        gla.decay_up.bias.copy_(torch.logit(retnet.log_decay.exp()).repeat_interleave(4))
    assert_close("output", gla(x), retnet(x))


def test_new_layer_remembers():
    """Decays start near 1/2 to the power 1/16, 0.958: a half-life of 16 positions, not of one."""
    layer = GLA(64, 4)
    assert (layer.decay_up.bias == 0).all()
    logits = layer.decay_up(layer.decay_down(torch.randn(100, 64)))
    decay = (logsigmoid(logits) / layer.gate_normalizer).exp()
    assert_close("decay", decay, torch.full_like(decay, 0.5 ** (1 / 16)), 0.01)


@pytest.mark.parametrize("logit", [-1e3, -1e30])
def test_very_negative_gates(logit):
    """A gate that forgets all leaves each position its own q . k v."""
    layer, x = perturbed(gate_normalizer=1.0), torch.randn(1, 131, 12).double()
    with torch.no_grad():
        layer.decay_up.bias.fill_(logit)
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    q, k, v = (proj(x).unflatten(-1, (3, -1)) for proj in projections)
    out = (q * k).sum(-1, keepdim=True) * v / layer.qk_dim**0.5
    out = layer.norm(out) * silu(layer.gate_proj(x))
    y = layer(x)
    assert_close("output", y, layer.out_proj(out))
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_widths_and_initial_values():
    layer = GLA(64, 4)
    assert (layer.qk_dim, layer.v_dim) == (8, 16)  # half of the model width, and all of it
    assert GLA(12, 4).qk_dim == 2  # half of 3, rounded up
    assert layer.state_size() == 4 * 8 * 16
    assert layer.decay_down.weight.shape == (16, 64)
    for name, linear in layer.named_children():
        if name != "norm":
            assert (linear.bias is None) == (name != "decay_up")
            bound = 2**-2.5 * math.sqrt(6 / sum(linear.weight.shape))
            assert 0.98 * bound < linear.weight.abs().max() <= bound


def test_errors():
    with pytest.raises(ValueError, match="GLA: gate_normalizer must be positive, got 0"):
        GLA(12, 3, gate_normalizer=0.0)
    with pytest.raises(ValueError, match="GLA: dim must be divisible by num_heads"):
        GLA(12, 5)
