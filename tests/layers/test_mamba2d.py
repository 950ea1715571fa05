import pytest
import torch

from plstm.layers.mamba2d import Mamba2D
from plstm.ops.mamba2d import mamba2d
from tests.helpers import assert_close


def make(**kwargs):
    torch.manual_seed(0)
    layer = Mamba2D(8, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def test_published_initial_values():
    layer = Mamba2D(40, expand=2, state_dim=5)
    rates = torch.arange(1.0, 6).repeat(80)
    for log_rate in (layer.A_left_log, layer.A_top_log):
        assert_close("A", log_rate.exp(), rates, 1e-6)
    for proj in (layer.dt_left_proj, layer.dt_top_proj):
        assert proj.in_features == 3  # 40 / 16, rounded up
        dt = torch.nn.functional.softplus(proj.bias)
        assert (dt > 0.99e-3).all()
        assert (dt < 0.101).all()
        assert dt.log().std() > 0.5
    assert torch.equal(layer.D, torch.ones(80))


def test_one_position_by_hand():
    """h = dt_L B_L u, whatever A is: y = W_out gelu((C . B_L) dt_L u + D u)."""
    layer, x = make(expand=2, state_dim=3), torch.randn(1, 1, 1, 8).double()
    gelu = torch.nn.functional.gelu
    u = gelu(layer.in_proj(x))
    rank, _, b, _, c = layer.scan_proj(u).split(layer.sizes, -1)
    dt = (layer.dt_left_proj(rank).exp() + 1).log()
    want = layer.out_proj(gelu((c * b).sum(-1, keepdim=True) * dt * u + layer.D * u))
    assert_close("output", layer(x), want)


def test_a_channel_decays_by_its_own_rates():
    """With constant steps dt along a row, the impulse response is sum_n C_n B_n exp(-A_n dt k)."""
    layer = make(state_dim=3)
    u = torch.zeros(1, 1, 4, 8).double()
    u[0, 0, 0] = 1.0
    a = -layer.A_left_log.exp().view(8, 3)
    ones, vectors = torch.ones_like(u), torch.ones(1, 1, 4, 3).double()
    out = mamba2d(u, ones, ones, a, a, vectors, vectors, vectors)[0, 0]
    want = torch.stack([(k * a).exp().sum(-1) for k in range(4)])
    assert_close("response", out, want)


def test_corners_are_half_a_turn_apart():
    x = torch.randn(2, 3, 5, 8).double()
    turned = make()(x.rot90(2, (1, 2))).rot90(2, (1, 2))
    assert_close("turned", make(corner="bottom_right")(x), turned)


def test_local_path_by_hand():
    """Position by position, of the neighbors that there are; the border is zero."""
    layer, x = make(local_width=3), torch.randn(1, 3, 4, 8).double()
    plain = make()
    plain.load_state_dict(layer.state_dict(), strict=False)
    local, want = layer.local, torch.zeros_like(x)
    (norm_weight, norm_bias), kernel = local.norm.parameters(), local.conv.weight[:, 0]
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    u = (normed * norm_weight + norm_bias) @ local.in_proj.weight.T
    assert u.shape[-1] == 16
    u = local.in_activation.scale * u.clamp(min=0) ** 2 + local.in_activation.shift
    for i in range(3):
        for j in range(4):
            total = torch.zeros(16).double()
            for m in range(max(i - 1, 0), min(i + 2, 3)):
                for n in range(max(j - 1, 0), min(j + 2, 4)):
                    total += kernel[:, m - i + 1, n - j + 1] * u[0, m, n]
            total = local.out_activation.scale * total.clamp(min=0) ** 2
            want[0, i, j] = (total + local.out_activation.shift) @ local.out_proj.weight.T
    assert_close("local path", layer(x) - plain(x), want, 1e-9)


def test_local_path_reaches_its_width():
    layer = make(local_width=3)
    plain = make()
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(1, 5, 6, 8).double()
    moved = x.clone()
    moved[0, 2, 3, :4] += 1  # all channels alike would be lost in the layer norm
    local = [layer(z) - plain(z) for z in (x, moved)]
    changed = (local[1] - local[0])[0].norm(dim=-1) > 1e-12
    want = torch.zeros(5, 6, dtype=torch.bool)
    want[1:4, 2:5] = True
    assert torch.equal(changed, want)


def test_rates_get_no_weight_decay():
    named = dict(Mamba2D(8).named_parameters())
    assert all(named[name].ndim == 1 for name in ("A_left_log", "A_top_log", "D"))


@pytest.mark.parametrize("wrong", [{"local_width": 2}, {"state_dim": 0}, {"dt_rank": 0}], ids=str)
def test_size_errors(wrong):
    with pytest.raises(ValueError, match="Mamba2D: dim, expand, state_dim and dt_rank must be"):
        Mamba2D(8, **wrong)


def test_unknown_corner():
    with pytest.raises(ValueError, match="Mamba2D: corner must be one of"):
        Mamba2D(8, corner="top_right")
