"""Arrow pointing: does the ray of the arrow hit the circle?

The task needs long-range interactions: arrow and circle are small and far apart, and the
extrapolation sets put shapes of the same size on larger canvases, at distances never seen in
training.
"""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from tasks.arrow_errors import arrow_errors
from tasks.arrow_scenes import Scene, check_placement, sample_scenes, unit
from tasks.data import chosen_seed
from tasks.drawn import DrawnData

HEAD_LENGTH = 1 / 2.5  # of the head strokes, relative to the arrow
HEAD_ANGLE = 0.5  # radians between a head stroke and the shaft


def draw_arrows(
    seed: int,
    index: Tensor,
    *,
    image_size: int,
    padding: float,
    radius: tuple[float, float],
    arrow_length: tuple[float, float],
    line_width: tuple[float, float],
    placement: str = "balanced",
) -> tuple[Tensor, Tensor]:
    """Draw the images of one split.

    Example: label 1 for an arrow in the lower left that points at a disc in the upper right.

    Args:
        seed: Seed of the split.
        index: Image indices, (B,) integers; even indices have label 1.
        image_size: Side of the square canvas in pixels.
        padding: Minimum distance of shape centres from the border in pixels.
        radius: Smallest and largest radius of the circle in pixels.
        arrow_length: Smallest and largest length of the arrow in pixels.
        line_width: Smallest and largest stroke width in pixels.
        placement: "balanced" or "published", see `tasks.arrow_scenes.sample_scenes`.

    Returns:
        Images (B, 1, image_size, image_size), 1 for ink and 0 for background, and labels (B,).

    Source: arXiv 2506.11997, the arrow-pointing extrapolation task.
    """
    shapes = {"radius": radius, "arrow_length": arrow_length, "line_width": line_width}
    where = {"image_size": image_size, "padding": padding, "placement": placement}
    scene = sample_scenes(seed, index, **where, **shapes)
    return render(scene, image_size, **shapes), scene.label


def render(
    scene: Scene,
    image_size: int,
    *,
    radius: tuple[float, float],
    arrow_length: tuple[float, float],
    line_width: tuple[float, float],
) -> Tensor:
    """Render scenes with antialiasing, on their device; arguments as in `draw_arrows`.

    Only a window around each shape is computed; outside, it has no ink.
    """
    arrow, circle, r, angle, length, width = (x.float() for x in scene[1:])
    images = r.new_zeros(len(r), image_size, image_size)
    x, y, place = _window(circle, radius[1], image_size)
    images[place] = _ink(r[:, None, None] - (x.square() + y.square()).sqrt())

    x, y, place = _window(arrow, (arrow_length[1] + line_width[1]) / 2, image_size)
    tip = unit(angle) * length[:, None] / 2  # from the centre of the arrow
    strokes = [2 * tip]
    for side in (-HEAD_ANGLE, HEAD_ANGLE):
        strokes.append(unit(angle + side) * (length * HEAD_LENGTH)[:, None])
    distance = torch.stack([_distance_to_segment(x, y, tip, back) for back in strokes]).amin(0)
    depth = width[:, None, None] / 2 - distance
    images[place] = torch.maximum(images[place], _ink(depth))
    return images[:, None]


def _window(
    centre: Tensor, reach: float, image_size: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Coordinates and indices of the pixels within `reach`, plus edge blur, of centres (B, 2).

    Returns:
        x (B, 1, W) and y (B, W, 1) relative to the centre, and an index of the pixels (B, W, W).
    """
    side = min(2 * math.ceil(reach + 1), image_size)
    start = (centre.round() - side // 2).clamp(0, image_size - side).long()
    pixels = start[..., None] + torch.arange(side, device=centre.device)  # (B, 2, W)
    x, y = (pixels + 0.5 - centre[..., None]).unbind(1)
    image = torch.arange(len(centre), device=centre.device)[:, None, None]
    return x[:, None], y[:, :, None], (image, pixels[:, 1, :, None], pixels[:, 0, None])


def _ink(depth: Tensor) -> Tensor:
    """Coverage: 0 at half a pixel outside a shape, 1 at half a pixel inside."""
    return (depth + 0.5).clamp(0, 1)


def _distance_to_segment(x: Tensor, y: Tensor, tip: Tensor, back: Tensor) -> Tensor:
    """Distance of pixels (B, W, W) to B segments from tip - back to `tip`."""
    (back_x, back_y), (tip_x, tip_y) = (p[..., None, None].unbind(1) for p in (back, tip))
    x, y = x - tip_x, y - tip_y
    share = (x * back_x + y * back_y) / back.square().sum(-1)[:, None, None]
    share = share.clamp(-1, 0)
    return ((x - share * back_x).square() + (y - share * back_y).square()).sqrt()


class Drawing:
    """Images that can be rendered on another device; until then a few parameters each.

    Not a tuple or dataclass, whose values Lightning would round to the precision of the net.
    """

    def __init__(self, scene: Scene, image_size: int, **shapes: tuple[float, float]) -> None:
        # float32 suffices for rendering, and some devices do not support float64.
        self.scene = Scene(scene.label, *(x.float() for x in scene[1:]))
        self.image_size, self.shapes = image_size, shapes

    def to(self, device: torch.device | str) -> "Drawing":
        """The same images, to be rendered on `device`."""
        scene = Scene(*(x.to(device) for x in self.scene))
        return Drawing(scene, self.image_size, **self.shapes)

    def draw(self) -> Tensor:
        """Images (B, 1, image_size, image_size)."""
        return render(self.scene, self.image_size, **self.shapes)


class ArrowDataset(Dataset):
    """Drawings and labels of a batch at a time, as a function of (seed, index)."""

    def __init__(
        self,
        seed: int,
        size: int,
        image_size: int,
        padding: float,
        placement: str,
        **shapes: tuple[float, float],
    ) -> None:
        self.seed, self.size, self.image_size, self.shapes = seed, size, image_size, shapes
        self.where = {"image_size": image_size, "padding": padding, "placement": placement}

    def __len__(self) -> int:
        return self.size

    def scenes(self, indices: Tensor) -> Scene:
        """Scenes of the images (B,)."""
        return sample_scenes(self.seed, indices, **self.where, **self.shapes)

    def __getitems__(self, indices: list[int]) -> tuple[Drawing, Tensor]:
        scene = self.scenes(torch.tensor(indices))
        return Drawing(scene, self.image_size, **self.shapes), scene.label


class ArrowData(DrawnData):
    """Arrow-pointing images: train at one size, validate and test there and at larger sizes.

    With a trainer, loaders return drawings: the trainer moves them to the device of the net and
    calls `on_after_batch_transfer`, which renders them. Without a trainer they return images.

    Args:
        image_size: Side of the training canvas in pixels.
        extrapolation_sizes: Sides of further validation and test canvases; shapes keep their pixel
            size.
        padding: Minimum distance of shape centres from the border in pixels.
        radius: Smallest and largest radius of the circle in pixels.
        arrow_length: Smallest and largest length of the arrow in pixels.
        line_width: Smallest and largest stroke width in pixels.
        placement: "balanced", where no part of an image alone determines the label, or "published",
            where the arrow alone determines most labels (see `tasks.arrow_scenes.sample_scenes`).
        train_size: Images per epoch.
        fresh: Draw new images in every epoch, instead of shuffling the same ones.
        val_size: Validation images per size.
        test_size: Test images per size.
        batch_size: Images per batch.
        seed: Seed of the data; splits and sizes of one seed share no image. If None, that of
            `seed_everything`.

    Raises:
        ValueError: the shapes do not fit on a canvas; a range is invalid; seed is out of range;
            placement is unknown.
    """

    def __init__(
        self,
        image_size: int = 192,
        extrapolation_sizes: tuple[int, ...] = (384,),
        padding: float = 30.0,
        radius: tuple[float, float] = (15.0, 30.0),
        arrow_length: tuple[float, float] = (15.0, 30.0),
        line_width: tuple[float, float] = (2.0, 4.0),
        placement: str = "balanced",
        train_size: int = 100_000,
        fresh: bool = False,
        val_size: int = 5_000,
        test_size: int = 10_000,
        batch_size: int = 128,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = chosen_seed(seed)
        self.save_hyperparameters(logger=False)
        ranges = {"radius": radius, "arrow_length": arrow_length, "line_width": line_width}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(
                    f"ArrowData: {name} must be the least and the greatest number of pixels, both "
                    f"above 0, got {low} and {high}"
                )
        self.check_settings()
        check_placement(min(self.sizes), padding, radius[1], arrow_length[1], placement)

    @property
    def in_dim(self) -> int:
        return 1

    @property
    def out_dim(self) -> int:
        return 2

    @property
    def class_names(self) -> list[str]:
        return ["misses", "meets"]

    @property
    def sizes(self) -> list[int]:
        return [self.hparams.image_size, *self.hparams.extrapolation_sizes]

    @property
    def size_name(self) -> str:
        return "image size in pixels"

    def dataset(self, split: str, size: int) -> ArrowDataset:
        """Images of a split at one size."""
        h = self.hparams
        return ArrowDataset(
            seed=self.split_seed(split, size),
            size=self.split_size(split),
            image_size=size,
            padding=h.padding,
            placement=h.placement,
            radius=h.radius,
            arrow_length=h.arrow_length,
            line_width=h.line_width,
        )

    def collate(
        self, batch: tuple[Drawing, Tensor]
    ) -> tuple[Drawing, Tensor] | tuple[Tensor, Tensor]:
        """Collate a batch: drawings with a trainer, otherwise images."""
        return batch if self.trainer is not None else self.on_after_batch_transfer(batch, 0)

    def on_after_batch_transfer(
        self, batch: tuple[Drawing, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Render a batch on the device of the net, in its precision."""
        drawing, labels = batch
        images = drawing.draw()
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """The plot `arrow_errors`: accuracy against the geometry of the images."""
        results = {}
        for name, size in zip(self.eval_names, self.sizes, strict=True):
            scene = self.dataset("test", size).scenes(torch.arange(len(predictions[name])))
            results[f"{size} pixels"] = scene, predictions[name].argmax(-1) == scene.label
        return {"arrow_errors": arrow_errors(results)}
