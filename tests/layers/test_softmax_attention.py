import math

import pytest
import torch

from plstm import SoftmaxAttention
from plstm.modules.rotary import rotate_positions
from tests.helpers import assert_close


def perturbed(**kwargs):
    layer = SoftmaxAttention(12, 3, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def by_hand(layer, x, causal):
    """softmax(q k^T / sqrt(K)) v, head by head; x (L, dim)."""
    q, k, v = (p(x).chunk(layer.num_heads, -1) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    heads = []
    for q_h, k_h, v_h in zip(q, k, v, strict=True):
        weights = (q_h @ k_h.T / q_h.shape[-1] ** 0.5).exp()
        weights = weights.tril() if causal else weights
        heads.append(weights / weights.sum(-1, keepdim=True) @ v_h)
    return layer.out_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("widths", [{}, {"qk_dim": 5, "v_dim": 2}], ids=["equal", "unequal"])
def test_sequence_by_hand(widths, causal):
    layer, x = perturbed(causal=causal, **widths), torch.randn(7, 12).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x, causal))


def test_grid_by_hand():
    layer, x = perturbed(), torch.randn(3, 4, 12).double()
    want = by_hand(layer, x.flatten(0, 1), causal=False).unflatten(0, (3, 4))
    assert_close("output", layer(x[None])[0], want)


def test_without_rotary_order_does_not_matter():
    layer, x = perturbed(), torch.randn(1, 6, 12).double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert_close("output", layer(x[:, order]), layer(x)[:, order])


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=["sequence", "grid"])
def test_with_rotary_order_matters(shape):
    layer, x = perturbed(rotary=True), torch.randn(1, *shape, 12).double()
    assert not torch.allclose(layer(x.flip(1)).flip(1)[0, 0], layer(x)[0, 0])


@pytest.mark.parametrize("axes", [1, 2])
def test_rotation_depends_on_differences_only(axes):
    q, k = torch.randn(2, 1, 1, 5, 8).double().unbind()
    positions, other = torch.randint(50, (2, 5, axes)).unbind()

    def scores(shift):
        moved = (positions + shift, other + shift)
        turned = [rotate_positions(x, p) for x, p in zip((q, k), moved, strict=True)]
        return turned[0] @ turned[1].mT

    # Angles are float32: positions up to 80 leave 1e-6 of a turn.
    assert_close("shifted", scores(torch.tensor([30, 11][:axes])), scores(0), 1e-5)
    assert not torch.allclose(scores(0), q @ k.mT, rtol=1e-2)


@pytest.mark.parametrize("axes", [1, 2])
def test_rotation_keeps_lengths(axes):
    x = torch.randn(2, 3, 5, 8).double()
    turned = rotate_positions(x, torch.randint(50, (5, axes)))
    assert_close("length", turned.norm(dim=-1), x.norm(dim=-1), 1e-6)
    assert not torch.allclose(turned, x)


def test_rotation_at_the_origin_is_none():
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(rotate_positions(x, torch.zeros(1, 2)), x)


def test_rotation_by_hand():
    """With width 2, the pair is rotated by the position in radians."""
    turned = rotate_positions(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[2]]))
    want = torch.tensor([math.cos(2), math.sin(2)])
    assert_close("turned", turned.flatten(), want, 1e-6)


def test_state_keeps_all_keys():
    layer = perturbed(causal=True, rotary=True, qk_dim=4, v_dim=2)
    _, state = layer(torch.randn(2, 5, 12).double(), return_state=True)
    _, state = layer.step(torch.randn(2, 12).double(), state)
    assert state.k.shape == (2, 6, 3, 4)
    assert state.v.shape == (2, 6, 3, 2)


@pytest.mark.parametrize(
    ("layer", "shape", "options"),
    [
        ({"causal": True}, (2, 3), {}),
        ({"causal": False}, (5,), {"return_state": True}),
    ],
    ids=["causal-on-a-grid", "state-without-causal"],
)
def test_state_errors(layer, shape, options):
    with pytest.raises(ValueError, match="states need causal=True"):
        perturbed(**layer)(torch.zeros(1, *shape, 12).double(), **options)


def test_width_errors():
    with pytest.raises(ValueError, match="SoftmaxAttention: dim must be divisible by num_heads"):
        SoftmaxAttention(12, 5)
    with pytest.raises(ValueError, match="divisible by 4 for 2 position axes, got 6"):
        SoftmaxAttention(12, 2, rotary=True)(torch.zeros(1, 2, 2, 12))
