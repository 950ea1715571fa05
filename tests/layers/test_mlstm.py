import math

import pytest
import torch

from plstm import MLSTM
from plstm.modules.block_diagonal import BlockDiagonal
from tests.helpers import assert_close
from tests.layers.mlstm_by_hand import mix_by_hand


def perturbed(**kwargs):
    layer = MLSTM(12, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def fix_gate(layer, name, logit):
    """The same logit everywhere."""
    part = ["input", "forget"].index(name)
    with torch.no_grad():
        layer.gate_proj.weight.chunk(2)[part].zero_()
        layer.gate_proj.bias.chunk(2)[part].fill_(logit)


def by_hand(layer, x):
    """The layer on x (L, dim)."""
    u, z = (x @ layer.up_proj.weight.T).chunk(2, -1)
    return mix_by_hand(layer, u, z, layer.conv(u[None])[0][0])


@pytest.mark.parametrize(
    "kwargs", [{}, {"expansion": 1, "conv_width": 2, "block_width": 3}], ids=str
)
def test_by_hand(kwargs):
    layer, x = perturbed(**kwargs), torch.randn(7, 12).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x))


def test_block_diagonal():
    proj = BlockDiagonal(6, 6, 3)
    torch.nn.init.normal_(proj.weight)
    x = torch.randn(2, 5, 6)
    assert_close("output", proj(x), x @ torch.block_diag(*proj.weight).T, 1e-6)


def test_closed_forget_gate_leaves_the_convolution():
    layer, x = perturbed(conv_width=3), torch.randn(1, 8, 12).double().requires_grad_()
    fix_gate(layer, "forget", -1000.0)
    y = layer(x)
    (grad,) = torch.autograd.grad(y[:, 6].sum(), x)
    assert (grad.norm(dim=-1)[0] > 1e-12).tolist() == [False] * 4 + [True] * 3 + [False]
    assert grad.isfinite().all()


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_extreme_input_gates_are_finite(logit):
    layer, x = perturbed().float(), torch.randn(1, 8, 12)
    fix_gate(layer, "input", logit)
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_initial_values():
    layer = MLSTM(256, 4, num_blocks=3)
    small = math.sqrt(2 / (5 * 256))
    for linear in (layer.up_proj, layer.q_proj, layer.k_proj, layer.v_proj):
        assert abs(linear.weight.std() / small - 1) < 0.1
    assert abs(layer.down_proj.weight.std() / (2 / 3 / 16) - 1) < 0.05
    assert not layer.gate_proj.weight.any()
    input_bias, forget_bias = layer.gate_proj.bias.detach().chunk(2)
    assert forget_bias.tolist() == [3, 4, 5, 6]
    assert 0 < input_bias.abs().max() < 0.5
    for ones in (layer.skip, layer.norm.weight):
        assert torch.equal(ones, torch.ones(512))


def test_backends_agree():
    layer, x = perturbed(), torch.randn(2, 70, 12).double()
    y = layer(x)
    layer.backend = "naive"
    assert_close("output", layer(x), y)


@pytest.mark.parametrize(
    "kwargs", [{"num_heads": 5}, {"block_width": 5}, {"expansion": 0}, {"num_blocks": 0}], ids=str
)
def test_errors(kwargs):
    with pytest.raises(ValueError, match="MLSTM: num_heads and block_width must divide"):
        MLSTM(12, **{"num_heads": 2} | kwargs)
