import math

import pytest
import torch
from torch.nn.functional import silu

from plstm import RetNet
from tests.helpers import assert_close
from tests.layers.quadratic import decayed_sums


def perturbed(**kwargs):
    layer = RetNet(12, 3, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return layer


def turned(x):
    """x (B, L, H, W) with channels i and i + W / 2 as a complex number, turned by t / 10000^i."""
    first, second = x.chunk(2, -1)
    width = first.shape[-1]
    rates = 10_000.0 ** (-torch.arange(width).double() / width)
    angles = torch.arange(x.shape[1]).double()[:, None, None] * rates
    number = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([number.real, number.imag], -1)


def heads(layer, x):
    """q, k and v of a layer, (B, L, H, width), q and k turned."""
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    q, k, v = (proj(x).unflatten(-1, (layer.num_heads, -1)) for proj in projections)
    return (turned(q), turned(k), v) if layer.rotary else (q, k, v)


def finish(layer, out, x, eps=1e-5):
    """What follows the recurrence; out (B, L, H, V)."""
    out = out / (out.square().mean(-1, keepdim=True) + eps).sqrt()
    return layer.out_proj(out.flatten(2) * silu(layer.gate_proj(x)))


@pytest.mark.parametrize("length", [1, 7, 131])
@pytest.mark.parametrize(
    "options", [{}, {"rotary": False, "qk_dim": 5, "v_dim": 2}], ids=["rotary", "plain-unequal"]
)
def test_by_hand(options, length):
    layer, x = perturbed(**options), torch.randn(2, length, 12).double()
    q, k, v = heads(layer, x)
    out = decayed_sums(q, k, v, layer.log_decay[:, None].expand_as(k)) / layer.qk_dim**0.5
    # Angles are float32: positions up to 130 leave 1e-5 of a turn.
    assert_close("output", layer(x), finish(layer, out, x), 1e-4 if layer.rotary else 1e-10)


def test_decays():
    want = [0.96875, 0.984375, 0.9921875, 0.99609375]
    assert_close("decays", RetNet(8, 4).log_decay.exp(), torch.tensor(want), 1e-6)


def test_score_normalizations_of_the_paper_change_nothing():
    """1 / sqrt(K), rows of the decay that have length 1, and rows of scores that sum to at most 1.

    Each scales a row of a head, which the norm takes out again.
    """
    layer, x = perturbed(rotary=False), torch.randn(1, 40, 12).double()
    with torch.no_grad():
        layer.v_proj.weight *= 1e4  # far above eps
    q, k, v = heads(layer, x)
    steps = torch.arange(40)[:, None] - torch.arange(40)
    decay = (layer.log_decay[:, None, None] * steps).exp().tril()  # (H, t, s)
    decay = decay / decay.sum(-1, keepdim=True).sqrt()
    scores = torch.einsum("bthk,bshk->bhts", q, k) / layer.qk_dim**0.5 * decay
    scores = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)
    out = torch.einsum("bhts,bshv->bthv", scores, v)
    assert_close("output", layer(x), finish(layer, out, x), 1e-8)


def test_only_distances_matter():
    """A state from far along the sequence differs by the rotation of its memory only."""
    layer, x = perturbed(), torch.randn(1, 9, 12).double()
    want, state = layer(x, return_state=True)
    assert state.seen.tolist() == [9]
    empty = state._replace(memory=torch.zeros_like(state.memory), seen=torch.tensor([1000]))
    got, state = layer(x, empty, return_state=True)
    assert state.seen.tolist() == [1009]
    # Angles are float32: positions near 1000 leave 1e-4 of a turn.
    assert_close("output", got, want, 1e-3)


def test_wrong_position_would_show():
    layer, x = perturbed(), torch.randn(1, 9, 12).double()
    _, state = layer(x[:, :5], return_state=True)
    right, wrong = (layer(x[:, 5:], state._replace(seen=torch.tensor([n]))) for n in (5, 0))
    assert_close("halves", right, layer(x)[:, 5:])
    assert not torch.allclose(right, wrong, rtol=1e-2)


def test_decays_are_no_weights():
    assert "log_decay" not in RetNet(12, 3).state_dict()


def test_widths_and_initial_values():
    layer = RetNet(64, 4)
    assert (layer.qk_dim, layer.v_dim) == (16, 32)
    assert layer.state_size() == 4 * 16 * 32
    for name in ("q", "k", "v", "gate", "out"):
        linear, gain = getattr(layer, f"{name}_proj"), 1 if name == "out" else 2**-2.5
        assert linear.bias is None
        bound = gain * math.sqrt(6 / sum(linear.weight.shape))
        assert 0.98 * bound < linear.weight.abs().max() <= bound


def test_errors():
    with pytest.raises(ValueError, match="RetNet: dim must be divisible by num_heads"):
        RetNet(12, 5)
    with pytest.raises(ValueError, match="width per head must be divisible by 2"):
        RetNet(12, 4)(torch.zeros(1, 2, 12))
