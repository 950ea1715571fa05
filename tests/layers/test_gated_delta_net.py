import pytest
import torch

from plstm import DeltaNet, GatedDeltaNet
from tests.helpers import assert_close


def perturbed(**kwargs):
    layer = GatedDeltaNet(16, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def fix_step(layer, logit):
    with torch.no_grad():
        layer.decay.dt_proj.weight.zero_()
        layer.decay.dt_proj.bias.fill_(logit)


def test_without_decay_it_is_delta_net():
    layer, x = perturbed(), torch.randn(2, 9, 16).double()
    plain = DeltaNet(16, 2, qk_dim=6, v_dim=12, output_gate=True).double()
    plain.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if not k.startswith("decay")}
    )
    fix_step(layer, -1000.0)  # softplus = 0: the gate is 1
    assert_close("output", layer(x), plain(x))
    fix_step(layer, 0.0)
    assert (layer(x) - plain(x)).norm() > 1e-2 * plain(x).norm()


def test_strong_decay_forgets_all_but_the_convolution():
    layer, x = perturbed(conv_width=3), torch.randn(1, 8, 16).double().requires_grad_()
    fix_step(layer, 1000.0)
    y = layer(x)
    (grad,) = torch.autograd.grad(y[:, 6].sum(), x)
    assert (grad.norm(dim=-1)[0] > 0).tolist() == [False] * 4 + [True] * 3 + [False]
    assert grad.isfinite().all()


def test_decay_comes_before_the_read():
    """Second state by hand: the correction sees the decayed state."""
    layer, x = perturbed(), torch.randn(1, 2, 16).double()
    _, k, v, _ = layer._qkv(x, None)
    beta, decay = layer.beta_proj(x).sigmoid(), layer.decay(x).exp()
    assert ((decay > 0) & (decay < 1)).all()
    _, state = layer(x, return_state=True)
    for h in range(2):
        k0, k1, v0, v1 = k[0, 0, h], k[0, 1, h], v[0, 0, h], v[0, 1, h]
        memory = decay[0, 1, h] * beta[0, 0, h] * torch.outer(k0, v0)
        memory = memory + beta[0, 1, h] * torch.outer(k1, v1 - memory.T @ k1)
        assert_close(f"head {h}", state.memory[0, h], memory)


def test_published_widths():
    layer = GatedDeltaNet(1024, 3)
    assert (layer.qk_dim, layer.v_dim) == (256, 512)


def test_initial_values():
    layer = GatedDeltaNet(1024, 256)
    rate = layer.decay.A_log.exp()
    assert 0 < rate.min() < 1 < 15 < rate.max() <= 16
    step = torch.nn.functional.softplus(layer.decay.dt_proj.bias.double())
    assert 0.001 - 1e-6 <= step.min() < 0.0013 and 0.08 < step.max() <= 0.1 + 1e-6
    assert abs(step.log().mean() - torch.tensor([0.001, 0.1]).log().mean()) < 0.3
    for linear in (layer.qkv_proj, layer.gate_proj, layer.decay.dt_proj, layer.out_proj):
        assert 0.019 < linear.weight.std() < 0.021


@pytest.mark.parametrize(("num_heads", "dim"), [(5, 16), (0, 16), (2, 15)])
def test_errors(num_heads, dim):
    with pytest.raises(ValueError, match="GatedDeltaNet: 3/4 of dim must be divisible"):
        GatedDeltaNet(dim, num_heads)
