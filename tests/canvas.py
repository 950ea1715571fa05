"""Images of different sizes on one canvas, for the tests of masks."""

import torch

CANVAS = 4, 6
# Rows and columns of every image, and where its first token lies: in each corner, and in none.
SIZES = [(1, 1), (3, 2), (2, 6), (4, 3), (2, 3)]
PLACES = [(0, 0), (1, 0), (0, 0), (0, 3), (1, 2)]


def regions():
    """What every image covers of the canvas."""
    return [
        (slice(y, y + rows), slice(x, x + columns))
        for (rows, columns), (y, x) in zip(SIZES, PLACES, strict=True)
    ]


def valid_tokens():
    """(images, *CANVAS), True where a token is."""
    valid = torch.zeros(len(SIZES), *CANVAS, dtype=torch.bool)
    for image, region in enumerate(regions()):
        valid[(image, *region)] = True
    return valid


def on_canvas(valid, x, fill=torch.nan):
    """x (images, *CANVAS, ...), `fill` where no token is; a leaf that requires gradients."""
    empty = ~valid.view(*valid.shape, *[1] * (x.ndim - valid.ndim))
    return x.detach().masked_fill(empty, fill).requires_grad_()
