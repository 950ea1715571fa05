import pytest
import torch
from torch.nn.functional import silu, softplus

from plstm import Mamba2
from tasks.optim import parameter_groups
from tests.helpers import assert_close
from tests.layers.quadratic import decayed_sums


def perturbed(**kwargs):
    layer = Mamba2(12, 3, **{"qk_dim": 5} | kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def convolved(layer, x):
    """Causal convolution position by position, then silu; x (B, L, channels)."""
    weight, bias = layer.conv.conv.weight[:, 0], layer.conv.conv.bias  # (channels, width)
    outs = []
    for t in range(x.shape[1]):
        seen = [weight[:, -1 - n] * x[:, t - n] for n in range(min(t + 1, weight.shape[1]))]
        outs.append(silu(sum(seen) + bias))
    return torch.stack(outs, 1)


def by_hand(layer, x, dt=None):
    """From the parameters; x (B, L, dim); dt (H,) in place of the computed steps."""
    inner, heads, keys = layer.D.numel() * layer.v_dim, layer.num_heads, layer.qk_dim
    z, mixed, logits = (x @ layer.in_proj.weight.T).split([inner, inner + 2 * keys, heads], -1)
    v, key, query = convolved(layer, mixed).split([inner, keys, keys], -1)
    v = v.unflatten(-1, (heads, -1))
    key, query = (part[:, :, None].expand(-1, -1, heads, -1) for part in (key, query))
    dt = (softplus(logits + layer.dt_bias) if dt is None else dt.expand_as(logits))[..., None]
    log_decay = -dt * layer.A_log.exp()[:, None]
    out = decayed_sums(query, key, dt * v, log_decay.expand_as(key)) + layer.D[:, None] * v
    out = out.flatten(2) * silu(z)  # the gate comes before the norm
    out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return out @ layer.out_proj.weight.T


@pytest.mark.parametrize("length", [1, 3, 7, 131])
@pytest.mark.parametrize(
    "options", [{}, {"expand": 1, "conv_width": 2}], ids=["default", "options"]
)
def test_by_hand(options, length):
    layer, x = perturbed(**options), torch.randn(2, length, 12).double()
    assert_close("output", layer(x), by_hand(layer, x))


def test_constant_step_is_a_decay_per_head():
    layer, x = perturbed(), torch.randn(2, 70, 12).double()
    with torch.no_grad():
        layer.in_proj.weight[-3:] = 0
    assert_close("output", layer(x), by_hand(layer, x, dt=softplus(layer.dt_bias)))


@pytest.mark.parametrize("logit", [-1e3, 1e3])
def test_extreme_steps(logit):
    """No step leaves D x; a huge one forgets all but the present."""
    layer, x = perturbed(), torch.randn(1, 131, 12).double()
    with torch.no_grad():
        layer.dt_bias.fill_(logit)
        layer.A_log.fill_(2.0)
    y = layer(x)
    if logit < 0:
        assert_close("output", y, by_hand(layer, x, dt=torch.zeros(3).double()))
    else:
        alone = torch.cat([layer(x[:, t - 3 : t + 1])[:, -1:] for t in range(3, 131)], 1)
        assert_close("output", y[:, 3:], alone)  # the convolution sees three positions back
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_initial_values():
    layer = Mamba2(64, 128, qk_dim=4)
    decay, dt = layer.A_log.exp(), softplus(layer.dt_bias)
    assert 1 <= decay.min() < 2
    assert 15 < decay.max() <= 16.001
    assert 0.999e-3 <= dt.min() < 1.5e-3
    assert 0.07 < dt.max() <= 0.1001
    assert 0.005 < dt.median() < 0.02  # log-uniform: near 0.01
    assert (layer.D == 1).all()
    assert 0.12 < layer.in_proj.weight.abs().max() <= 64**-0.5
    first = {name: p.clone() for name, p in layer.named_parameters()}
    layer.reset_parameters()
    same = {name for name, p in layer.named_parameters() if torch.equal(p, first[name])}
    assert same == {"D", "norm.weight"}


def test_published_sizes():
    layer = Mamba2(128, 4)
    assert (layer.v_dim, layer.qk_dim, layer.conv.width) == (64, 128, 4)
    assert layer.state_size() == 4 * 64 * 128 + 3 * (256 + 2 * 128)
    assert layer.in_proj.weight.shape == (2 * 256 + 2 * 128 + 4, 128)


def test_decay_step_and_skip_have_no_weight_decay():
    layer = Mamba2(12, 3)
    free = {id(p) for p in parameter_groups(layer)[1]["params"]}
    assert {id(layer.A_log), id(layer.D), id(layer.dt_bias)} <= free
    assert id(layer.in_proj.weight) not in free


def test_errors():
    with pytest.raises(ValueError, match=r"Mamba2: num_heads must divide expand \* dim.*got"):
        Mamba2(12, 5)
    with pytest.raises(ValueError, match="Mamba2: num_heads must divide"):
        Mamba2(12, 3, qk_dim=0)
