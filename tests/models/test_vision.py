import copy
from functools import partial

import pytest
import torch
from torch.export import Dim

from plstm import PLSTM2d, SoftmaxAttention, VisionModel
from plstm.modules.position import LearnedPosition2d
from plstm.ops import native
from plstm.ops.plstm_2d import gates
from tests.helpers import assert_close
from tests.models.nets import GRID

all_mixers = pytest.mark.parametrize("mixers", GRID.values(), ids=GRID)


def model(mixers=GRID["plstm"], **kwargs):
    options = {"dim": 8, "depth": 2, "patch_size": 4} | kwargs
    return VisionModel(3, 5, mixers=mixers, **options)


@all_mixers
@pytest.mark.parametrize("pooling", ["corners", "mean", "max"])
@pytest.mark.parametrize("size", [(4, 4), (4, 12), (16, 8)], ids=str)
def test_any_size(size, pooling, mixers):
    net = model(mixers, pooling=pooling, position_grid=(2, 3))
    logits = net(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_mixers_cycle_over_the_depth():
    mixers = [*GRID["plstm"], *GRID["attention"]]
    blocks = model(mixers, depth=5).blocks
    assert [type(b.mixer) for b in blocks] == [PLSTM2d, PLSTM2d, SoftmaxAttention, PLSTM2d, PLSTM2d]
    assert [blocks[i].mixer.mode for i in (0, 1, 3, 4)] == ["P", "D", "P", "D"]


def tokens_before_head(net, images):
    """Patches after the last norm, (B, Y, X, dim)."""
    kept = []
    hook = net.norm.register_forward_hook(lambda module, args, out: kept.append(out))
    net(images)
    hook.remove()
    return kept[0]


@pytest.mark.skipif(not native.available(gates.SOURCE), reason="needs a C++ compiler")
def test_exports_with_free_sizes():
    net = model().double()
    sizes = {0: Dim("batch"), 2: 4 * Dim("rows"), 3: 4 * Dim("columns")}
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    program = torch.export.export(net, (images,), dynamic_shapes=(sizes,))
    for size in ((3, 3, 8, 20), (2, 3, 28, 8)):
        images = torch.randn(size, dtype=torch.float64)
        assert_close("logits", program.module()(images), net(images))


POOLED = {
    "corners": lambda x: torch.cat([x[:, 0, 0], x[:, 0, 3], x[:, 2, 0], x[:, 2, 3]], -1),
    "mean": lambda x: x.sum((1, 2)) / 12,
    "max": lambda x: x.flatten(1, 2).max(1).values,
}


@pytest.mark.parametrize("pooling", POOLED)
def test_pooling(pooling):
    net, images = model(pooling=pooling), torch.randn(2, 3, 12, 16)
    x = tokens_before_head(net, images)
    assert x.shape == (2, 3, 4, 8)
    assert_close("logits", net(images), net.head(POOLED[pooling](x)), 1e-6)


@pytest.mark.parametrize(
    ("stem", "patch_size", "sight"), [((6,), 4, 7), ((5, 6), 8, 15), ((5, 6), 4, 11)]
)
def test_stem(stem, patch_size, sight):
    """As many tokens as patches; each has a receptive field of `sight` pixels."""
    net = model(GRID["attention"], stem=stem, patch_size=patch_size)
    for block in net.blocks:
        torch.nn.init.zeros_(block.mixer.out_proj.weight)
    images = torch.randn(1, 3, 4 * patch_size, 5 * patch_size, requires_grad=True)
    x = tokens_before_head(net, images)
    assert x.shape == (1, 4, 5, 8)
    (seen,) = torch.autograd.grad(x[0, 2, 2].sum(), images)
    rows, columns = (seen[0].abs().amax((0, axis)).nonzero().flatten() for axis in (2, 1))
    end = 3 * patch_size + (sight - 2 * patch_size + 1) // 2 * (len(stem) > patch_size // 4)
    assert rows.tolist() == columns.tolist() == list(range(end - sight, end))


def test_without_biases_black_stays_black():
    silent = [partial(mixer, bias=False) for mixer in GRID["plstm"]]
    net = model(silent, stem=(6,), pooling="max", bias=False)
    images = torch.zeros(1, 3, 24, 24)
    images[..., 5:10, 9:14] = torch.rand(3, 5, 5)
    ink = tokens_before_head(net, images)[0].any(-1)
    assert ink[1:3, 2:4].all()
    assert ink.sum() <= 9  # of the 36 tokens those that see ink themselves


def test_without_biases_a_black_margin_is_not_seen():
    """So the size of the canvas has no effect."""
    silent = [partial(mixer, bias=False) for mixer in GRID["plstm"]]
    net = model(silent, stem=(6,), pooling="max", bias=False).double()
    images = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    images[..., 5:10, 5:11] = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    framed = torch.nn.functional.pad(images, (8, 12, 4, 16))
    assert_close("logits", net(framed), net(images), 1e-9)
    with_biases = model(GRID["plstm"], stem=(6,), pooling="max").double()
    assert not torch.allclose(with_biases(framed), with_biases(images), rtol=1e-4)


def test_patches_are_rows_then_columns():
    """A change in one patch changes only its token, with blocks that do not mix tokens."""
    net = model(GRID["attention"])
    for block in net.blocks:
        torch.nn.init.zeros_(block.mixer.out_proj.weight)
    images = torch.randn(1, 3, 12, 16)
    moved = images.clone()
    moved[:, :, 4:8, 12:16] += 1
    changed = (tokens_before_head(net, moved) != tokens_before_head(net, images)).any(-1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_position_encoding_at_its_own_size():
    position, x = LearnedPosition2d(8, 2, 3), torch.randn(2, 2, 3, 8)
    assert_close("sum", position(x), x + position.code[0].permute(1, 2, 0), 1e-6)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)], ids=str)
def test_position_encoding_at_other_sizes(size):
    """Encodings that increase along columns keep increasing, constant ones stay constant."""
    position, x = LearnedPosition2d(2, 3, 4), torch.zeros(1, *size, 2)
    with torch.no_grad():
        position.code[:, 0] = torch.arange(4.0)
        position.code[:, 1] = 7.0
        code = position(x)
    assert_close("constant", code[..., 1], torch.full_like(code[..., 1], 7.0), 1e-5)
    assert_close("rows alike", code[..., 0], code[:, :1, :, 0].expand_as(code[..., 0]), 1e-5)
    assert (code[..., 0].diff(dim=2) > 0).all()
    assert_close("middle", code[..., 0].mean(), torch.tensor(1.5), 1e-5)


def test_position_encoding_tells_places_apart():
    images = torch.zeros(1, 3, 8, 8)
    for grid, alike in ((None, True), ((2, 2), False)):
        x = tokens_before_head(model(GRID["attention"], position_grid=grid), images)
        assert torch.allclose(x[:, 0, 0], x[:, 1, 1], atol=1e-6) == alike


def test_layer_scale_zero_leaves_the_embedding():
    net, images = model(layer_scale=0.0), torch.randn(2, 3, 8, 8)
    want = net.norm(net.embed(images).movedim(1, -1))
    assert_close("tokens", tokens_before_head(net, images), want, 1e-6)


def test_layer_scale_is_learned():
    net = model(layer_scale=1e-4)
    scales = [p for name, p in net.named_parameters() if ".scales." in name]
    assert len(scales) == 4  # two blocks of two branches
    assert all((p == 1e-4).all() for p in scales)
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in scales)


def test_drop_path():
    net, images = model(depth=3, drop_path=0.5), torch.randn(2, 3, 8, 8)
    assert [block.drop_path.rate for block in net.blocks] == [0.0, 0.25, 0.5]
    first, second = net(images), net(images)
    assert not torch.allclose(first, second)
    net.eval()
    assert torch.equal(net(images), net(images))
    twin = model(depth=3).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(images), net(images))


def test_drop_path_drops_samples_and_keeps_the_mean():
    block = model(drop_path=0.25, depth=2).blocks[1]
    x = torch.ones(4000, 2, 2, 1)
    y = block.drop_path(x)
    per_sample = y.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample[:, 0].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(y.mean() - 1) < 0.05  # seven standard deviations


def test_dropout_in_training_only():
    net, images = model(dropout=0.5), torch.randn(2, 3, 8, 8)
    assert not torch.allclose(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_without_feed_forward():
    net = model(feed_forward_ratio=0.0)
    assert not any("feed_forward" in name for name, _ in net.named_parameters())
    assert net(torch.randn(1, 3, 4, 4)).isfinite().all()


@all_mixers
def test_deepcopy_and_state_dict(mixers):
    net, other, images = model(mixers), model(mixers), torch.randn(1, 3, 8, 8)
    assert torch.equal(copy.deepcopy(net)(images), net(images))
    assert not torch.equal(other(images), net(images))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images), net(images))


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 8, 7), (1, 3, 0, 8), (1, 1, 8, 8), (3, 8, 8)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_image_errors(shape):
    with pytest.raises(ValueError, match=r"VisionModel: images must have shape \(B, 3, .*got \("):
        model()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pooling": "sum"}, "pooling must be one of 'corners', 'mean', 'max', got 'sum'"),
        ({"stem": (6,), "patch_size": 8}, r"ConvStem: patch_size must be .* got 8 and \[6\]"),
        ({"depth": 0}, "need depth >= 1 and at least one mixer, got depth=0"),
        ({"mixers": []}, "got depth=2 and 0 mixers"),
    ],
    ids=["pooling", "stem", "depth", "mixers"],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model(**kwargs)
