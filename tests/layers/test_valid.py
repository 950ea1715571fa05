"""Layers and models on images of different sizes in one batch are what they are on each alone."""

from functools import partial

import pytest
import torch

from plstm import PLSTM2d, SoftmaxAttention, VisionModel
from plstm.modules.block import Block
from tests.canvas import CANVAS, SIZES, on_canvas, regions, valid_tokens
from tests.helpers import assert_close

MIXERS = {
    "P": partial(PLSTM2d, num_heads=2, mode="P"),
    "D": partial(PLSTM2d, num_heads=2, mode="D", norm="all"),
    "attention": partial(SoftmaxAttention, num_heads=2),
    "rotary": partial(SoftmaxAttention, num_heads=2, rotary=True),
}
ROTARY = 1e-6  # its angles are float32, and those of another place
mixers = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def moved(module):
    """The module in float64 with parameters that all matter."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def assert_same_as_alone(module, batch, out, alone, rtol):
    """Outputs of a batch, and gradients by it and parameters, against those of a list of inputs."""
    parameters = list(module.parameters())
    cotangents = [torch.randn_like(y) for y in out]
    grad, *got = torch.autograd.grad(out, [batch, *parameters], cotangents)
    assert grad.isfinite().all()
    want = [module(x) for x in alone]
    for image, pair in enumerate(zip(out, want, strict=True)):
        assert_close(f"output {image}", *pair, rtol)
    grads = torch.autograd.grad(want, [*alone, *parameters], cotangents)
    for n, x in enumerate(got):
        assert_close(f"gradient of parameter {n}", x, grads[len(alone) + n], rtol)
    return grad, grads[: len(alone)]


@mixers
def test_layer(mixer):
    module, valid = moved(mixer(8)), valid_tokens()
    x = on_canvas(valid, torch.randn(*valid.shape, 8, dtype=torch.float64))
    alone = [
        x.detach()[(slice(n, n + 1), *region)].requires_grad_()
        for n, region in enumerate(regions())
    ]

    y = module(x, valid=valid)
    assert (y[~valid] == 0).all()
    out = [y[(slice(n, n + 1), *region)] for n, region in enumerate(regions())]
    rtol = ROTARY if mixer is MIXERS["rotary"] else 1e-9
    grad, grads = assert_same_as_alone(module, x, out, alone, rtol)
    for n, region in enumerate(regions()):
        assert_close(f"gradient of image {n}", grad[(n, *region)], grads[n][0], rtol)
    assert (grad[~valid] == 0).all()


def test_causal_attention_with_holes():
    """Positions that are not valid might as well be left out."""
    module = moved(SoftmaxAttention(8, 2, causal=True))
    valid = torch.tensor([[False, True, True, False, True], [True, False, False, False, True]])
    x = on_canvas(valid, torch.randn(2, 5, 8, dtype=torch.float64))
    y = module(x, valid=valid)
    assert (y[~valid] == 0).all()
    for n in range(2):
        assert_close("output", y[n, valid[n]], module(x[n : n + 1, valid[n]])[0])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *module.parameters()])


def test_attention_without_a_token():
    module, x = moved(SoftmaxAttention(8, 2)), torch.randn(1, 3, 8, dtype=torch.float64)
    x.requires_grad_()
    y = module(x, valid=torch.zeros(1, 3, dtype=torch.bool))
    assert (y == 0).all()
    y.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize(
    "options",
    [{"return_state": True}, {"cu_seqlens": torch.tensor([0, 1, 3])}],
    ids=["state", "packed"],
)
def test_attention_takes_no_state_and_no_packing_with_it(options):
    module, x = SoftmaxAttention(8, 2, causal=True), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="SoftmaxAttention: valid cannot be combined with states"):
        module(x, valid=torch.ones(1, 3, dtype=torch.bool), **options)


@pytest.mark.parametrize("pooling", ["corners", "mean", "max"])
@mixers
def test_model(mixer, pooling):
    options = {"dim": 8, "depth": 2, "patch_size": 2, "mixers": [mixer], "pooling": pooling}
    module, valid = moved(VisionModel(3, 5, **options)), valid_tokens()
    pixels = valid.repeat_interleave(2, 1).repeat_interleave(2, 2)
    size = len(SIZES), 2 * CANVAS[0], 2 * CANVAS[1], 3
    images = on_canvas(pixels, torch.randn(size, dtype=torch.float64))
    patches = [[slice(2 * s.start, 2 * s.stop) for s in region] for region in regions()]
    alone = [
        images.detach()[(slice(n, n + 1), *region)].movedim(-1, 1).requires_grad_()
        for n, region in enumerate(patches)
    ]

    out = module(images.movedim(-1, 1), valid).split(1)
    rtol = ROTARY if mixer is MIXERS["rotary"] else 1e-9
    grad, grads = assert_same_as_alone(module, images, out, alone, rtol)
    for n, region in enumerate(patches):
        assert_close(f"gradient of image {n}", grad[(n, *region)], grads[n][0].movedim(0, -1), rtol)
    assert (grad[~pixels] == 0).all()


def test_corners_of_an_image_that_is_no_rectangle():
    """A corner of its rectangle that is no token of the image counts as zeros."""
    net = VisionModel(3, 5, dim=8, depth=1, patch_size=2, mixers=[MIXERS["P"]])
    valid = torch.tensor([[[False, True, False], [True, True, False], [False, False, False]]])
    seen = []
    net.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.randn(1, 3, 6, 6), valid)
    corners = seen[0].view(4, 8).any(-1)
    assert corners.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": (4,), "patch_size": 4}, "VisionModel: valid needs patches that do not overlap"),
        ({"position_grid": (2, 2)}, "VisionModel: valid needs patches .* no position encodings"),
        ({"valid": torch.ones(1, 4, 4)}, r"VisionModel: valid must be a torch.bool tensor \(1, "),
        ({"mixers": [torch.nn.Identity]}, "Block: the mixer Identity takes no valid"),
    ],
    ids=["stem", "position", "dtype", "mixer"],
)
def test_errors(options, message):
    options = {"mixers": [MIXERS["P"]], "patch_size": 4} | options
    valid = options.pop("valid", torch.ones(1, 4, 4, dtype=torch.bool))
    net = VisionModel(3, 5, dim=8, depth=1, **options)
    with pytest.raises(ValueError, match=message):
        net(torch.randn(1, 3, 16, 16), valid)


def test_unknown_argument_of_a_block():
    with pytest.raises(ValueError, match="Block: the mixer PLSTM2d takes no graph"):
        Block(8, MIXERS["P"])(torch.zeros(1, 2, 2, 8), graph=None)
