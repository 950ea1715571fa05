import pytest
import torch
from torch.nn.functional import elu

from plstm import LinearAttention
from plstm.layers.linear_attention import _features
from tests.helpers import assert_close


def perturbed(**kwargs):
    layer = LinearAttention(12, 3, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def by_hand(layer, x):
    """Weights and their sum, head by head; x (L, dim)."""
    q, k, v = (p(x).chunk(layer.num_heads, -1) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    heads = []
    for q_h, k_h, v_h in zip(q, k, v, strict=True):
        weights = (elu(q_h) + 1) @ (elu(k_h) + 1).T
        weights = weights.tril() if layer.causal else weights
        heads.append(weights @ v_h / (weights.sum(-1, keepdim=True) + layer.eps))
    return layer.out_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 131])
@pytest.mark.parametrize("widths", [{}, {"qk_dim": 5, "v_dim": 2}], ids=["equal", "unequal"])
def test_sequence_by_hand(widths, length, causal):
    layer, x = perturbed(causal=causal, eps=0.3, **widths), torch.randn(length, 12).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x))


@pytest.mark.parametrize("axes", [(3, 4), (2, 3, 2)], ids=["2 axes", "3 axes"])
def test_several_axes_by_hand(axes):
    layer, x = perturbed(causal=False), torch.randn(1, *axes, 12).double()
    want = by_hand(layer, x.flatten(0, -2)).unflatten(0, axes)
    assert_close("output", layer(x)[0], want)


def recurrence(causal, v, **kwargs):
    """Normalized sums over v (1, L, 3, V) for random q and k."""
    layer = perturbed(causal=causal, eps=0.0, **kwargs)
    q, k = torch.randn(2, 1, v.shape[1], 3, 5).double().unbind()
    return layer._attend(q, k, v, None, None)[0]


@pytest.mark.parametrize("causal", [True, False])
def test_weights_are_shares(causal):
    length = 70
    v = torch.eye(length).double()[None, :, None].expand(1, -1, 3, -1)
    weights = recurrence(causal, v)[0].movedim(1, 0)  # (H, t, s)
    assert (weights >= 0).all()
    assert_close("row sums", weights.sum(-1), torch.ones(3, length).double())
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    assert (weights[:, future] == 0).all() == causal


@pytest.mark.parametrize("causal", [True, False])
def test_constant_values_are_returned(causal):
    v = torch.randn(1, 1, 3, 4).double().expand(-1, 70, -1, -1)
    assert_close("output", recurrence(causal, v), v, 1e-14)


def test_last_causal_output_is_the_one_over_all():
    layer, x = perturbed(causal=True), torch.randn(2, 70, 12).double()
    causal = layer(x)
    layer.causal = False
    assert_close("last", causal[:, -1], layer(x)[:, -1])
    assert not torch.allclose(causal[:, 0], layer(x)[:, 0])


def test_order_does_not_matter_unless_causal():
    layer, x = perturbed(causal=False), torch.randn(1, 6, 12).double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert_close("output", layer(x[:, order]), layer(x)[:, order])


def test_features_are_positive():
    x = torch.linspace(-5, 5, 101).double()
    assert_close("features", _features(x), elu(x) + 1)
    far = torch.tensor([-40.0, 40.0], requires_grad=True)
    assert elu(far)[0] + 1 == 0  # what the plain formula gives in float32
    assert _features(far)[0] > 0
    assert torch.autograd.grad(_features(far).sum(), far)[0].isfinite().all()


def test_tiny_weights_and_no_eps():
    """A sum of weights near 1e-14 still divides."""
    layer = perturbed(eps=0.0).float()
    with torch.no_grad():
        layer.q_proj.bias -= 30
    x = torch.randn(1, 9, 12)
    layer.double()
    want = layer(x.double())
    assert_close("output", layer.float()(x), want, 1e-4)


def test_state_size():
    layer = LinearAttention(12, 3, qk_dim=5, v_dim=2)
    _, state = layer(torch.randn(2, 4, 12), return_state=True)
    assert state.memory.shape == (2, 3, 5, 3)  # sums of v, and of the weights
    assert layer.state_size() == 45


def test_initial_values():
    layer = LinearAttention(100, 4)
    layer.reset_parameters()
    for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
        for parameter in linear.parameters():  # uniform up to 1 / sqrt(fan in)
            assert 0.09 < parameter.abs().max() <= 0.1


def test_errors():
    with pytest.raises(ValueError, match="LinearAttention: states need causal=True"):
        LinearAttention(12, 3)(torch.zeros(1, 2, 3, 12))
    with pytest.raises(ValueError, match="LinearAttention: states need causal=True"):
        LinearAttention(12, 3, causal=False)(torch.zeros(1, 5, 12), return_state=True)
    with pytest.raises(ValueError, match="LinearAttention: dim must be divisible by num_heads"):
        LinearAttention(12, 5)
