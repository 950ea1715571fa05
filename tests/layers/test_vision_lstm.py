import pytest
import torch

from plstm import MLSTM, VisionLSTM
from tests.helpers import assert_close
from tests.layers.mlstm_by_hand import mix_by_hand


def make(**kwargs):
    torch.manual_seed(0)
    layer = VisionLSTM(8, 2, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def by_hand(layer, x):
    """The grid x (Y, X, dim) from the top left; the convolution pixel by pixel."""
    u, z = (x @ layer.up_proj.weight.T + layer.up_proj.bias).chunk(2, -1)
    kernel, rows, columns = layer.conv.weight[:, 0], *x.shape[:2]
    reach = kernel.shape[-1] // 2
    convolved = layer.conv.bias.expand_as(u).clone()
    for i in range(rows):
        for j in range(columns):
            for m in range(max(i - reach, 0), min(i + reach + 1, rows)):
                for n in range(max(j - reach, 0), min(j + reach + 1, columns)):
                    convolved[i, j] += kernel[:, m - i + reach, n - j + reach] * u[m, n]
    return mix_by_hand(layer, *(part.flatten(0, 1) for part in (u, z, convolved))).view_as(x)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 2)], ids=str)
@pytest.mark.parametrize("width", [3, 5])
def test_by_hand(shape, width):
    layer, x = make(conv_width=width), torch.randn(*shape, 8).double()
    assert_close("output", layer(x[None])[0], by_hand(layer, x))


def test_a_row_with_a_kernel_that_looks_back_is_the_sequence():
    layer, sequence = make(), MLSTM(8, 2, conv_width=2).double()
    with torch.no_grad():
        layer.conv.weight[..., 1, 2] = 0
        for part in ("up_proj", "q_proj", "k_proj", "v_proj", "norm", "down_proj"):
            getattr(layer, part).bias.zero_()
    state = layer.state_dict()
    state["conv.conv.weight"] = state.pop("conv.weight")[:, :, 1, :2]
    state["conv.conv.bias"] = state.pop("conv.bias")
    sequence.load_state_dict({name: state[name] for name in sequence.state_dict()})
    x = torch.randn(2, 7, 8).double()
    assert_close("output", layer(x[:, None])[:, 0], sequence(x))


def test_corners_are_half_a_turn_apart():
    x = torch.randn(2, 3, 5, 8).double()
    turned = make()(x.rot90(2, (1, 2))).rot90(2, (1, 2))
    assert_close("turned", make(corner="bottom_right")(x), turned)


def test_a_position_is_seen_by_all_neighbors_and_by_what_is_read_later():
    layer, x = make(), torch.randn(1, 5, 6, 8).double()
    moved = x.clone()
    moved[0, 2, 3] += 1
    changed = (layer(moved) - layer(x))[0].norm(dim=-1) > 1e-12
    # The neighbors above hand on what they see: all after the first of them changes.
    assert torch.equal(changed.flatten(), torch.arange(30) >= 1 * 6 + 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corner": "top_right"}, "corner must be one of"),
        ({"conv_width": 2}, "conv_width must be odd, got 2"),
        ({"block_width": 5}, "num_heads and block_width must divide"),
    ],
    ids=str,
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=f"^VisionLSTM: {message}"):
        VisionLSTM(8, 2, **wrong)
