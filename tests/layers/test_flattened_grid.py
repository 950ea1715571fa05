from functools import partial

import pytest
import torch

from plstm import PLSTM1d, SoftmaxAttention, VisionModel
from plstm.layers.flattened_grid import FlattenedGrid
from tests.helpers import assert_close

CAUSAL = partial(PLSTM1d, num_heads=2, conv_width=3)


def make(corner="top_left", mixer=CAUSAL):
    torch.manual_seed(0)
    layer = FlattenedGrid(8, mixer, corner).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def seen(layer, shape, position):
    """Which positions of the output change with one of the input."""
    x = torch.randn(1, *shape, 8).double()
    moved = x.clone()
    moved[0, *position] += 1
    return (layer(moved) - layer(x))[0].norm(dim=-1).flatten() > 1e-12


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 5)], ids=str)
def test_from_the_top_left_is_the_sequence(shape):
    layer, x = make(), torch.randn(2, *shape, 8).double()
    want = torch.stack([layer.mixer(torch.cat(list(one))[None])[0] for one in x])
    assert_close("output", layer(x), want.view_as(x))


def test_the_corners_are_half_a_turn_apart():
    x = torch.randn(2, 3, 5, 8).double()
    turned = make()(x.rot90(2, (1, 2))).rot90(2, (1, 2))
    assert_close("turned", make("bottom_right")(x), turned)


@pytest.mark.parametrize("corner", ["top_left", "bottom_right"])
def test_reading_order(corner):
    """Position 7 of 15 moves itself and what is read after it."""
    after = torch.arange(15) >= 7 if corner == "top_left" else torch.arange(15) <= 7
    assert torch.equal(seen(make(corner), (3, 5), (1, 2)), after)


def test_two_directions_see_everything():
    layers = torch.nn.Sequential(make(), make("bottom_right"))
    for position in [(0, 0), (1, 2), (2, 4)]:
        assert seen(layers, (3, 5), position).all()


def test_any_number_of_axes_and_mixers_without_order():
    layer = make(mixer=partial(SoftmaxAttention, num_heads=2))
    x = torch.randn(1, 2, 3, 4, 8).double()
    assert_close("attention", layer(x), layer.mixer(x))


def test_in_a_vision_model():
    mixers = [partial(FlattenedGrid, mixer=CAUSAL, corner=c) for c in ("top_left", "bottom_right")]
    net = VisionModel(3, 5, dim=8, depth=4, patch_size=4, mixers=mixers)
    assert [block.mixer.corner for block in net.blocks] == ["top_left", "bottom_right"] * 2
    assert net(torch.randn(2, 3, 8, 12)).shape == (2, 5)


def test_unknown_corner():
    with pytest.raises(ValueError, match="FlattenedGrid: corner must be one of 'top_left'"):
        FlattenedGrid(8, CAUSAL, "top_right")
