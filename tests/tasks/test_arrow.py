import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from benchmarks.leaks import accuracies
from tasks.arrow import ArrowData, draw_arrows, render
from tasks.arrow_scenes import PLACEMENTS, sample_scenes
from tasks.data import SPLITS
from tasks.draws import uniform
from tests.helpers import assert_close

SHAPES = {"padding": 5, "radius": (3, 5), "arrow_length": (6, 9), "line_width": (1, 2)}
SIZES = [32, 64]
sizes = pytest.mark.parametrize("image_size", SIZES)
placements = pytest.mark.parametrize("placement", PLACEMENTS)


def scenes(image_size, count=4000, seed=7, **kwargs):
    return sample_scenes(seed, torch.arange(count), image_size=image_size, **SHAPES, **kwargs)


def data(**kwargs):
    small = {"image_size": 32, "extrapolation_sizes": (48, 64), "batch_size": 8}
    return ArrowData(
        **{**SHAPES, **small, "train_size": 20, "val_size": 12, "test_size": 10, **kwargs}
    )


@placements
@sizes
def test_labels_are_balanced(image_size, placement):
    assert scenes(image_size, count=1000, placement=placement).label.sum() == 500


@placements
@sizes
def test_sizes_are_in_their_ranges(image_size, placement):
    scene = scenes(image_size, placement=placement)
    names = {"radius": "radius", "length": "arrow_length", "width": "line_width"}
    for field, argument in names.items():
        drawn, (low, high) = getattr(scene, field), SHAPES[argument]
        assert low <= drawn.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn.max() <= high
        middle, deviation = (low + high) / 2, (high - low) / 12**0.5
        assert abs(drawn.mean() - middle) < 5 * deviation / len(drawn) ** 0.5


@placements
@sizes
def test_centres_are_apart_and_inside(image_size, placement):
    scene, padding = scenes(image_size, placement=placement), SHAPES["padding"]
    for centre in (scene.arrow, scene.circle):
        assert centre.min() >= padding
        assert centre.max() <= image_size - padding
        assert centre.std(0).min() > 0.24 * (image_size - 2 * padding)  # all over the square
    apart = (scene.circle - scene.arrow).abs()
    if placement == "published":
        assert (apart >= 2 * scene.radius[:, None] - 1e-9).all()
    else:
        least = torch.maximum(2 * scene.radius, scene.radius + 9 / 2)
        assert (apart.norm(dim=1) >= least - 1e-9).all()
        assert (apart.norm(dim=1) < least + 0.5).any()


@placements
@sizes
def test_labels_say_whether_the_ray_hits(image_size, placement):
    scene = scenes(image_size, placement=placement)
    heading = torch.stack([scene.angle.cos(), scene.angle.sin()], -1)
    to_circle = scene.circle - scene.arrow
    ahead = (heading * to_circle).sum(-1)  # along the ray; behind the arrow it is the start
    miss = (to_circle - ahead.clamp(min=0)[:, None] * heading).norm(dim=-1)
    hit = scene.label == 1
    assert (miss[hit] <= scene.radius[hit] / 1.2 + 1e-9).all()
    assert (miss[~hit] >= scene.radius[~hit] * 1.2 - 1e-9).all()
    # Close calls on both sides do occur.
    share = miss / scene.radius
    assert share[hit].max() > 0.8
    assert share[~hit].min() < 1.4


@placements
@sizes
def test_arrow_turns_all_ways(image_size, placement):
    """On the canvas, and where it misses also as seen from the circle, ahead and behind."""
    scene = scenes(image_size, placement=placement)
    to_circle = scene.circle - scene.arrow
    turn = scene.angle - torch.atan2(to_circle[:, 1], to_circle[:, 0])
    negatives = scene.label == 0
    for angle in (scene.angle[negatives], scene.angle[~negatives]):
        assert torch.stack([angle.cos(), angle.sin()]).mean(1).norm() < 0.1
    assert turn[negatives].sin().mean().abs() < 0.1  # either side alike
    assert (turn[negatives].cos() < -0.99).any()
    assert turn[~negatives].sin().mean().abs() < 0.1
    assert (turn[~negatives].cos() > 0).all()


@placements
def test_what_parts_of_a_scene_tell(placement):
    """Trees know no better than chance, but for the arrow of the published placement."""
    train, test = (scenes(32, count=8000, seed=seed, placement=placement) for seed in (7, 8))
    told = accuracies(train, test)
    chance = 0.5 + 5 * 0.5 / 8000**0.5
    assert told.pop("everything") > 0.98  # trees that could not see anything would prove nothing
    if placement == "published":
        assert told.pop("arrow only") > 0.9
    assert max(told.values()) < chance, told


def test_balanced_scenes_are_a_function_of_seed_and_index():
    """However many candidates the others of the batch need."""
    whole, order = scenes(32, count=500), torch.randperm(500)
    shuffled = sample_scenes(7, order, image_size=32, **SHAPES)
    assert all(torch.equal(a, b[order]) for a, b in zip(shuffled, whole, strict=True))


def test_image_shows_the_scene():
    """Where the circle and the arrow are drawn, at a scale where they do not touch."""
    shapes = {"padding": 20, "radius": (10, 12), "arrow_length": (30, 40), "line_width": (2, 3)}
    index = torch.arange(24)
    images, labels = draw_arrows(3, index, image_size=200, **shapes)
    scene = sample_scenes(3, index, image_size=200, **shapes)
    assert images.shape == (24, 1, 200, 200)
    assert images.min() == 0
    assert images.max() == 1
    assert torch.equal(labels, scene.label)
    centres = torch.arange(200) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    pixels = torch.stack([x, y], -1)
    checked = 0
    for n in index.tolist():
        ink = images[n, 0]
        circle, arrow, r = scene.circle[n], scene.arrow[n], scene.radius[n]
        distance = (pixels - circle).norm(dim=-1)
        assert (ink[distance < r - 1] == 1).all()
        from_arrow = (pixels - arrow).norm(dim=-1)
        assert (ink[(distance > r + 1) & (from_arrow > 25)] == 0).all()
        if (circle - arrow).norm() < r + 27:
            continue  # shapes overlap
        checked += 1
        disc = ink * (distance < r + 2)
        assert abs(disc.sum() - torch.pi * r**2) < 0.02 * torch.pi * r**2
        assert_close("centre", (disc[..., None] * pixels).sum((0, 1)) / disc.sum(), circle, 1e-3)
        # The head is heavier than the tail: the centre of mass lies ahead of the arrow's centre.
        strokes = ink * (from_arrow < 25)
        mass = (strokes[..., None] * (pixels - arrow)).sum((0, 1)) / strokes.sum()
        cos, sin = scene.angle[n].cos(), scene.angle[n].sin()
        assert mass[0] * cos + mass[1] * sin > 0.1 * scene.length[n]
        assert abs(mass[1] * cos - mass[0] * sin) < 0.5  # and not beside it
    assert checked > 12


def test_images_are_a_function_of_seed_and_index():
    index = torch.tensor([5, 0, 12, 5])
    images, labels = draw_arrows(3, index, image_size=32, **SHAPES)
    for n, i in enumerate(index):
        image, label = draw_arrows(3, i[None], image_size=32, **SHAPES)
        assert torch.equal(image[0], images[n])
        assert label[0] == labels[n]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(draw_arrows(4, index, image_size=32, **SHAPES)[0], images)


def test_shapes_cross_the_border():
    """Without padding: what lies outside the canvas is cut off, the rest is the same image."""
    index, shapes = torch.arange(64), SHAPES | {"radius": (2, 9), "line_width": (1, 8)}
    scene = sample_scenes(3, index, image_size=40, **shapes | {"padding": 0})
    shapes.pop("padding")
    inner = render(scene, 40, **shapes)
    moved = scene._replace(arrow=scene.arrow + 15, circle=scene.circle + 15)
    outer = render(moved, 70, **shapes)
    torch.testing.assert_close(inner, outer[..., 15:55, 15:55], rtol=0, atol=2e-5)
    assert outer.count_nonzero() > inner.count_nonzero()


def test_window_wider_than_the_canvas():
    shapes = {"radius": (2, 3), "arrow_length": (20, 30), "line_width": (1, 2)}
    where = {"image_size": 14, "padding": 0, "placement": "published"}
    scene = sample_scenes(3, torch.arange(8), **where, **shapes)
    moved = scene._replace(arrow=scene.arrow + 30, circle=scene.circle + 30)
    want = render(moved, 80, **shapes)[..., 30:44, 30:44]
    torch.testing.assert_close(render(scene, 14, **shapes), want, rtol=0, atol=2e-5)


def test_dataset_gives_what_is_drawn():
    dataset = data().dataset("val", 48)
    drawing, labels = dataset.__getitems__([3, 8])
    want = draw_arrows(dataset.seed, torch.tensor([3, 8]), image_size=48, **SHAPES)
    assert len(dataset) == 12
    assert torch.equal(drawing.to("cpu").draw(), want[0])
    assert torch.equal(labels, want[1])
    assert drawing.to("meta").draw().is_meta


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_trainer_draws_in_its_precision(precision):
    """The net gets images of its dtype; the places of their shapes are not rounded."""

    class Keep(BoringModel):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            kept.append(batch)

    kept = []
    arrows = data(batch_size=12, extrapolation_sizes=())
    options = {"logger": False, "barebones": True, "accelerator": "cpu"}
    Trainer(precision=precision, **options).test(Keep(), datamodule=arrows, verbose=False)
    ((images, labels),) = kept
    dataset = arrows.dataset("test", 32)
    want = draw_arrows(dataset.seed, torch.arange(10), image_size=32, **SHAPES)
    assert torch.equal(
        images, want[0].to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    )
    assert torch.equal(labels, want[1])


def test_splits_sizes_and_seeds_share_no_stream():
    seeds = [
        data(seed=seed).dataset(split, size).seed
        for seed in (0, 1, 2)
        for split in SPLITS
        for size in (32, 48, 64)
    ]
    assert len(set(seeds)) == len(seeds)
    drawn = uniform(seeds[0], torch.arange(100), 8)
    for seed in seeds[1:]:
        assert not torch.isin(uniform(seed, torch.arange(100), 8), drawn).any()


def test_loaders_give_whole_batches():
    arrows = data()
    assert [images.shape for images, _ in arrows.train_dataloader()] == [
        (8, 1, 32, 32)
    ] * 2  # the rest is dropped
    for loaders, count in ((arrows.val_dataloader(), 12), (arrows.test_dataloader(), 10)):
        for size, loader in zip((32, 48, 64), loaders, strict=True):
            images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
            assert images.shape == (count, 1, size, size)
            assert labels.tolist() == [1, 0] * (count // 2)
    assert arrows.eval_names == ["", "@48", "@64"]
    assert (arrows.in_dim, arrows.out_dim) == (1, 2)


def test_train_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = data(seed=seed).train_dataloader().batch_sampler.sampler
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(20))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize(
    "kwargs",
    [
        {"image_size": 30},
        {"extrapolation_sizes": (30,)},
        {"padding": 6},
        {"radius": (3, 6)},
        {"arrow_length": (6, 12)},
        {"radius": (3, 6), "placement": "published"},
    ],
    ids=str,
)
def test_shapes_must_fit(kwargs):
    with pytest.raises(ValueError, match="ArrowData: the padded square must be wider than twice"):
        data(**kwargs)


def test_unknown_placement():
    with pytest.raises(ValueError, match=r"ArrowData: placement must be one of .*got 'fair'"):
        data(placement="fair")


def test_unknown_shape():
    with pytest.raises(TypeError, match="colour"):
        draw_arrows(0, torch.arange(2), image_size=32, **SHAPES, colour=1)


def test_fresh_epochs_share_no_image():
    sampler = data(train_size=6, batch_size=2, fresh=True).train_dataloader().batch_sampler.sampler
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs += sampler
    assert epochs == list(range(18))
