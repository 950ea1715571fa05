import pytest
import torch

from plstm import DeltaNet
from tests.helpers import assert_close


def perturbed(**kwargs):
    layer = DeltaNet(12, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def by_hand(layer, x):
    """The recurrence, head by head; x (L, dim)."""
    mixed = layer.conv(layer.qkv_proj(x)[None])[0][0]
    parts = [
        part.chunk(layer.num_heads, -1)
        for part in (mixed * mixed.sigmoid()).split(layer.qkv_sizes, -1)
    ]
    beta, heads = layer.beta_proj(x).sigmoid(), []
    for h, (q, k, v) in enumerate(zip(*parts, strict=True)):
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        state, outs = x.new_zeros(q.shape[1], v.shape[1]), []
        for t in range(len(x)):
            state = state + beta[t, h] * torch.outer(k[t], v[t] - state.T @ k[t])
            outs.append(state.T @ q[t] / q.shape[1] ** 0.5)
        out = torch.stack(outs)
        heads.append(out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight)
    y = torch.cat(heads, -1)
    if layer.gate_proj is not None:
        gate = layer.gate_proj(x)
        y = y * gate * gate.sigmoid()
    return layer.out_proj(y)


@pytest.mark.parametrize("output_gate", [False, True])
def test_by_hand(output_gate):
    layer = perturbed(qk_dim=3, v_dim=5, output_gate=output_gate)
    x = torch.randn(7, 12).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x))


def test_keys_have_norm_one():
    q, k, _, _ = perturbed()._qkv(torch.randn(2, 5, 12).double(), None)
    for name, x in (("q", q), ("k", k)):
        assert_close(name, x.norm(dim=-1), torch.ones(2, 5, 2), 1e-3)


def test_zero_input_is_finite():
    layer = DeltaNet(12, 2)
    x = torch.zeros(1, 3, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_same_key_twice_returns_the_last_value():
    """With beta = 1 a constant key is overwritten by every value."""
    layer = perturbed(negative_eigenvalues=True)
    with torch.no_grad():
        layer.beta_proj.weight.zero_()  # 2 sigmoid(0) = 1
        layer.conv.conv.weight[:24, :, :3] = 0  # q and k of the current position only
        layer.qkv_proj.weight[12:24, 1:] = 0  # k has a constant direction
    x = torch.randn(1, 6, 12).double()
    x[..., 0] = 1.0
    _, state = layer(x, return_state=True)
    _, k, v, _ = layer._qkv(x, None)
    assert torch.allclose(k, k[:, :1]) and not torch.allclose(v, v[:, :1])
    found = torch.einsum("bhkv,bhk->bhv", state.memory, k[:, -1])
    assert_close("value", found, v[:, -1], 1e-4)  # the norm of k is 1 up to its epsilon


def test_negative_eigenvalues_double_beta():
    plain, doubled = perturbed(), perturbed(negative_eigenvalues=True)
    doubled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 12).double()
    memory, twice = (layer(x, return_state=True)[1].memory for layer in (plain, doubled))
    assert_close("first state", twice, 2 * memory)


def test_initial_values():
    layer = DeltaNet(256, 4)
    for linear in (layer.qkv_proj, layer.out_proj):
        assert linear.bias is None
        assert 0.019 < linear.weight.std() < 0.021
    assert layer.conv.conv.bias is None
    assert torch.equal(layer.norm.weight, torch.ones(64))  # one scale for all heads


def test_backends_agree():
    layer, x = perturbed(), torch.randn(2, 70, 12).double()
    y = layer(x)
    layer.backend = "naive"
    assert_close("output", layer(x), y)


def test_errors():
    with pytest.raises(ValueError, match="DeltaNet: dim must be divisible by num_heads"):
        DeltaNet(12, 5)
