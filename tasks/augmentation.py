"""Pictures changed at random, every one by numbers of its own."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.draws import uniform

AREA, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # of an erased rectangle: share of all, height over width
DRAWS = 8  # random numbers of a picture: one for flipping, two for moving, the others for erasing


class Augmentation(NamedTuple):
    """What may happen to a training picture, in this order.

    Source: arXiv 1708.04896, random erasing.
    """

    flip: bool = False  # mirror it, left for right, every other time
    max_shift: int = 0  # move it by up to so many pixels along both axes; its border is repeated
    erase: float = 0.0  # probability to fill a rectangle with the mean of the training set

    def __call__(self, images: Tensor, index: Tensor, *, mean: Tensor, seed: int) -> Tensor:
        """Changed images (B, C, Y, X).

        Args:
            images: The images.
            index: Number of every image, (B,), another one in every epoch.
            mean: What an erased rectangle is filled with, (C,).
            seed: Seed of all changes.
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
    """Images (B, C, Y, X) moved by whole pixels (B, 2), down and right; the border is repeated."""
    for axis in (2, 3):
        size = images.shape[axis]
        place = (torch.arange(size) - by[:, axis - 2, None]).clamp(0, size - 1)  # (B, size)
        index = place[:, None, :, None] if axis == 2 else place[:, None, None]
        images = images.take_along_dim(index, axis)
    return images


def rectangles(draws: Tensor, rows: int, columns: int) -> Tensor:
    """Rectangles (B, rows, columns), true inside, of random numbers (B, 4) in [0, 1)."""
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
    """Which of `size` places (B, size) lie in an interval of a length, anywhere in them."""
    side = side.round().clamp(1, size)
    start = (draw * (size - side + 1)).floor()
    place = torch.arange(size)
    return (place >= start[:, None]) & (place < (start + side)[:, None])
