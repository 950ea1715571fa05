"""Random augmentation of images, each with its own random numbers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.draws import uniform

AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # of erased rectangles: share of the area, height / width
DRAWS = 8  # random numbers per image: one to flip, two to shift, the others to erase


class Augmentation(NamedTuple):
    """Augmentations of training images, applied in this order.

    Source: arXiv 1708.04896, random erasing.
    """

    flip: bool = False  # flip horizontally with probability 1/2
    max_shift: int = 0  # shift by up to this many pixels along both axes, replicating the border
    erase: float = 0.0  # probability to fill a rectangle with the training mean

    def __call__(self, images: Tensor, index: Tensor, *, mean: Tensor, seed: int) -> Tensor:
        """Augment images (B, C, Y, X).

        Args:
            images: The images.
            index: Index of every image, (B,), different in every epoch.
            mean: Value of erased rectangles, (C,).
            seed: Seed of the augmentations.
        """
        draws = uniform(seed, index, DRAWS)
        if self.flip:
            images = torch.where(draws[:, :1, None, None] < 0.5, images.flip(-1), images)
        if self.max_shift:
            by = (draws[:, 1:3] * (2 * self.max_shift + 1)).long() - self.max_shift
            images = shifted(images, by)
        if self.erase:
            inside = rectangles(draws[:, 4:], *images.shape[-2:])
            inside &= draws[:, 3, None, None] < self.erase
            images = torch.where(inside[:, None], mean[:, None, None], images)
        return images


def shifted(images: Tensor, by: Tensor) -> Tensor:
    """Shift images (B, C, Y, X) by whole pixels (B, 2), down and right, replicating the border."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = (torch.arange(size) - by[:, axis - 2, None]).clamp(0, size - 1)  # (B, size)
        index = place[:, None, :, None] if axis == 2 else place[:, None, None]
        images = images.take_along_dim(index, axis)
    return images


def rectangles(draws: Tensor, rows: int, columns: int) -> Tensor:
    """Masks of rectangles (B, rows, columns), True inside, from uniform numbers (B, 4)."""
    area = (AREA[0] + draws[:, 0] * (AREA[1] - AREA[0])) * rows * columns
    low, high = map(math.log, RATIO)
    ratio = (low + draws[:, 1] * (high - low)).exp()
    height, width = (area * ratio).sqrt(), (area / ratio).sqrt()
    down, right = (
        _interval(side, draw, size)
        for side, draw, size in ((height, draws[:, 2], rows), (width, draws[:, 3], columns))
    )
    return down[:, :, None] & right[:, None]


def _interval(side: Tensor, draw: Tensor, size: int) -> Tensor:
    """Masks (B, size) of randomly placed intervals of the given lengths."""
    side = side.round().clamp(1, size)
    start = (draw * (size - side + 1)).floor()
    place = torch.arange(size)
    return (place >= start[:, None]) & (place < (start + side)[:, None])
