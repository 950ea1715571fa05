"""Arrow pointing: does the ray of the arrow meet the circle?

The answer needs long range: arrow and circle are small and far apart, and the extrapolation sets
put the same shapes on larger canvases, farther apart than any training image.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.data import DataModule, ShuffledSampler

CLEAR = 1.2  # nothing is drawn between hits of a circle of radius r / CLEAR and misses of CLEAR * r
HEAD_LENGTH = 1 / 2.5  # of the head strokes over that of the arrow
HEAD_ANGLE = 0.5  # radians between head strokes and shaft
SPLITS = ("train", "val", "test")


def uniform(seed: int, index: Tensor, draws: int) -> Tensor:
    """Random numbers in [0, 1) that depend on (seed, index, draw) only, (B, draws) in float64.

    A counter-based generator (the finaliser of SplitMix64), so a whole batch is drawn at once.
    """
    draw = torch.arange(draws, device=index.device)
    golden = _signed(0x9E3779B97F4A7C15)
    x = _mix(torch.full_like(index, seed) * golden + golden)[:, None]
    x = _mix(_mix(x + index[:, None] * golden) + draw * golden)
    return _shift(x, 11).double() / 2**53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


class Scene(NamedTuple):
    """What is drawn, in pixels; B images."""

    label: Tensor  # 1 where the ray of the arrow meets the circle, (B,)
    arrow: Tensor  # centre of the arrow, (B, 2): x, y
    circle: Tensor  # centre of the circle, (B, 2)
    radius: Tensor  # (B,)
    angle: Tensor  # heading of the arrow in radians, from x towards y, (B,)
    length: Tensor  # (B,)
    width: Tensor  # of the strokes, (B,)


def sample_scenes(
    seed: int,
    index: Tensor,
    *,
    image_size: int,
    padding: float,
    radius: tuple[float, float],
    arrow_length: tuple[float, float],
    line_width: tuple[float, float],
) -> Scene:
    """Place the shapes of images; arguments as in `draw_arrows`."""
    u = uniform(seed, index, 8)
    label = (index % 2 == 0).long()
    r, length, width = (
        low + (high - low) * u[:, i]
        for i, (low, high) in enumerate((radius, arrow_length, line_width))
    )
    side = image_size - 2 * padding
    arrow = side * u[:, 3:5]
    offset = 2 * r[:, None] + (side - 4 * r[:, None]) * u[:, 5:7]
    circle = (arrow + offset) % side
    delta = circle - arrow
    distance = delta.norm(dim=1)
    direction = torch.atan2(delta[:, 1], delta[:, 0])
    hit = torch.asin(r / CLEAR / distance)
    miss = torch.asin((CLEAR * r / distance).clamp(max=1))
    turn = torch.where(
        label == 1,
        (2 * u[:, 7] - 1) * hit,
        miss + (2 * torch.pi - 2 * miss) * u[:, 7],
    )
    return Scene(label, arrow + padding, circle + padding, r, direction + turn, length, width)


def draw_arrows(
    seed: int, index: Tensor, *, image_size: int, **shapes: tuple[float, float] | float
) -> tuple[Tensor, Tensor]:
    """Draw the images of one split.

    Example: label 1 is an arrow in the lower left that points at a disc in the upper right.

    Args:
        seed: Seed of the split.
        index: Which images, (B,) integers; even indices have label 1.
        image_size: Side of the square canvas in pixels.
        padding: Pixels between the centres of the shapes and the border, at least.
        radius: Least and greatest radius of the circle in pixels.
        arrow_length: Least and greatest length of the arrow in pixels.
        line_width: Least and greatest width of its strokes in pixels.

    Returns:
        Images (B, 1, image_size, image_size), 1 on white and 0 on black, and labels (B,).

    Source: arXiv 2506.11997, the arrow-pointing extrapolation task.
    """
    scene = sample_scenes(seed, index, image_size=image_size, **shapes)
    return _render(image_size, scene), scene.label


def _render(size: int, scene: Scene) -> Tensor:
    """Anti-aliased shapes from their distances to every pixel centre."""
    arrow, circle, r, angle, length, width = (x.float() for x in scene[1:])
    centres = torch.arange(size, device=r.device, dtype=torch.float32) + 0.5
    pixels = torch.stack(
        torch.meshgrid(centres, centres, indexing="xy"), -1
    )  # (size, size, 2): x, y
    ink = r[:, None, None] - (pixels - circle[:, None, None]).norm(dim=-1)
    heading = _unit(angle)
    tip = arrow + heading * length[:, None] / 2
    strokes = [arrow - heading * length[:, None] / 2]
    for side in (-HEAD_ANGLE, HEAD_ANGLE):
        strokes.append(tip - _unit(angle + side) * (length * HEAD_LENGTH)[:, None])
    for start in strokes:
        ink = torch.maximum(
            ink, width[:, None, None] / 2 - _distance_to_segment(pixels, start, tip)
        )
    return 1 - (ink + 0.5).clamp(0, 1)[:, None]


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def _distance_to_segment(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance of every pixel to B segments, (B, size, size)."""
    along = (end - start)[:, None, None]
    away = pixels - start[:, None, None]
    share = ((away * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
    return (away - share[..., None] * along).norm(dim=-1)


class ArrowDataset(Dataset):
    """Images drawn when asked for, a whole batch at once; a pure function of (seed, index)."""

    def __init__(self, seed: int, size: int, **drawing: object) -> None:
        self.seed, self.size, self.drawing = seed, size, drawing

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return draw_arrows(self.seed, torch.tensor(indices), **self.drawing)


class FreshSampler(ShuffledSampler):
    """The next `size` indices in every epoch, so that no image comes twice."""

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.size, (self.epoch + 1) * self.size)


class ArrowData(DataModule):
    """Arrow-pointing images: train at one size, validate and test there and at larger sizes.

    Args:
        image_size: Side of the training canvas in pixels.
        extrapolation_sizes: Sides of further validation and test canvases; shapes keep their pixel
            size.
        padding: Pixels between the centres of the shapes and the border, at least.
        radius: Least and greatest radius of the circle in pixels.
        arrow_length: Least and greatest length of the arrow in pixels.
        line_width: Least and greatest width of its strokes in pixels.
        train_size: Images of an epoch.
        fresh: Draw new images in every epoch instead of the same ones in another order.
        val_size: Validation images of every size.
        test_size: Test images of every size.
        batch_size: Images of a batch.
        num_workers: Processes that draw.
        seed: Seed of the data; the splits and sizes of one seed share no image.

    Raises:
        ValueError: the shapes do not fit on a canvas.
    """

    def __init__(
        self,
        image_size: int = 192,
        extrapolation_sizes: tuple[int, ...] = (384,),
        padding: float = 30.0,
        radius: tuple[float, float] = (15.0, 30.0),
        arrow_length: tuple[float, float] = (15.0, 30.0),
        line_width: tuple[float, float] = (2.0, 4.0),
        train_size: int = 100_000,
        fresh: bool = False,
        val_size: int = 5_000,
        test_size: int = 10_000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.sizes = [image_size, *extrapolation_sizes]
        room = min(self.sizes) - 2 * padding
        if room <= 4 * radius[1]:
            raise ValueError(
                f"ArrowData: the padded square must be wider than four radii, got {room} pixels "
                f"for a radius up to {radius[1]}; use larger images or smaller shapes"
            )

    @property
    def in_dim(self) -> int:
        return 1

    @property
    def out_dim(self) -> int:
        return 2

    @property
    def eval_names(self) -> list[str]:
        return ["", *(f"@{size}" for size in self.sizes[1:])]

    def dataset(self, split: str, image_size: int) -> ArrowDataset:
        """Images of a split at one size."""
        h = self.hparams
        number = SPLITS.index(split)
        return ArrowDataset(
            # One stream of random numbers per (seed, size, split).
            seed=(h.seed * 2**16 + image_size) * len(SPLITS) + number,
            size=(h.train_size, h.val_size, h.test_size)[number],
            image_size=image_size,
            padding=h.padding,
            radius=h.radius,
            arrow_length=h.arrow_length,
            line_width=h.line_width,
        )

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train", self.hparams.image_size)
        sampler_class = FreshSampler if self.hparams.fresh else ShuffledSampler
        sampler = sampler_class(len(dataset), self.hparams.seed, self.train_epoch())
        return self._loader(dataset, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._loader(self.dataset("val", size)) for size in self.sizes]

    def test_dataloader(self) -> list[DataLoader]:
        return [self._loader(self.dataset("test", size)) for size in self.sizes]

    def _loader(self, dataset: ArrowDataset, **options: object) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.hparams.batch_size,
            num_workers=self.hparams.num_workers,
            persistent_workers=self.hparams.num_workers > 0,
            collate_fn=_as_is,
            **options,
        )


def _as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`__getitems__` returns whole batches."""
    return batch
