"""Positions of arrow and circle in an arrow-pointing image, and whether the arrow hits.

Everything is a pure function of (seed, index), computed for a batch at a time.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from plstm.checks import check_choice
from tasks.draws import uniform

CLEAR = 1.2  # margin: hits pass within r / CLEAR of the centre, misses beyond CLEAR * r
PLACEMENTS = ("balanced", "published")
CANDIDATES = 16  # balanced placements drawn per image; about one in five is accepted
FIRST_CANDIDATE = 8  # number of draws before the candidates


class Scene(NamedTuple):
    """Geometry of B images, in pixels."""

    label: Tensor  # 1 if the ray of the arrow hits the circle, (B,)
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
    placement: str = "balanced",
) -> Scene:
    """Place the shapes of images; even indices have label 1.

    A ray that hits the circle passes its centre within r / 1.2, a ray that misses it at 1.2 r or
    more. Other arguments as in `draw_arrows`.

    Args:
        seed: Seed of the split.
        index: Image indices, (B,) integers.
        placement: How shapes are placed.

            "balanced": the arrow at A, a circle at C1 and a direction phi2 are uniform. With the
            distance d and the direction phi1 from A to C1, C2 lies at the distance d from A in
            direction phi2. The arrow points at C1 within asin(r / 1.2 / d); label 1 shows the
            circle at C1, label 0 at C2. Candidates are drawn until C2 is in the padded square,
            d >= max(2 r, r + longest arrow / 2), and phi1 and phi2 are at least
            asin(r / 1.2 / d) + asin(1.2 r / d) apart. phi1 and phi2 are exchangeable, so neither
            the arrow nor the circle nor both positions tell the label.

            "published": the circle lies at an offset of at least 2 r per axis from the arrow,
            wrapped around inside the padded square, and the arrow points at it or, uniformly, past
            it. The arrow alone determines most labels (`python -m benchmarks leaks`).

    Raises:
        ValueError: placement is unknown; the shapes do not fit on the canvas.

    Source: arXiv 2506.11997, the arrow-pointing extrapolation task, for "published".
    """
    check_placement(image_size, padding, radius[1], arrow_length[1], placement)
    u = uniform(seed, index, FIRST_CANDIDATE)
    label = (index % 2 == 0).long()
    r, length, width = (
        low + (high - low) * u[:, i]
        for i, (low, high) in enumerate((radius, arrow_length, line_width))
    )
    side = image_size - 2 * padding
    if placement == "balanced":
        apart = least_distance(r, arrow_length[1])
        arrow, circle, angle = _balanced(seed, index, label, r, apart, side)
    else:
        arrow, circle, angle = _published(u[:, 3:], label, r, side)
    return Scene(label, arrow + padding, circle + padding, r, angle, length, width)


def check_placement(
    image_size: int, padding: float, radius: float, arrow_length: float, placement: str
) -> None:
    """Raise a ValueError unless the placement exists and the largest shapes fit on the canvas."""
    check_choice("ArrowData", "placement", placement, PLACEMENTS)
    room, least = image_size - 2 * padding, 2 * radius
    if placement == "balanced":
        least = float(least_distance(torch.tensor(radius), arrow_length))
    if room <= 2 * least:
        raise ValueError(
            "ArrowData: the padded square must be wider than twice the minimum distance of arrow "
            f"and circle, {least:g} pixels, got {room:g}; use larger images or smaller shapes"
        )


def least_distance(radius: Tensor, longest_arrow: float) -> Tensor:
    """Minimum distance of the centres in a balanced placement, where the shapes do not touch."""
    return radius + radius.clamp(min=longest_arrow / 2)


def _balanced(
    seed: int, index: Tensor, label: Tensor, r: Tensor, apart: Tensor, side: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arrow, circle and heading; each image takes its first accepted candidate."""
    placed = r.new_empty(len(r), 5)
    left, drawn = torch.arange(len(r), device=r.device), FIRST_CANDIDATE
    while len(left):
        u = uniform(seed, index[left], 6 * CANDIDATES, drawn).unflatten(1, (CANDIDATES, 6))
        candidates, accepted = _candidates(u, r[left, None], apart[left, None], side, label[left])
        found = accepted.any(1)
        first = accepted.long().argmax(1)[found]
        placed[left[found]] = candidates[found, first]
        left, drawn = left[~found], drawn + 6 * CANDIDATES
    return placed[:, :2], placed[:, 2:4], placed[:, 4]


def _candidates(
    u: Tensor, r: Tensor, apart: Tensor, side: float, label: Tensor
) -> tuple[Tensor, Tensor]:
    """Placements (B, CANDIDATES, 5) from random numbers, and which are accepted."""
    arrow, first = side * u[..., :2], side * u[..., 2:4]
    delta = first - arrow
    distance = delta.norm(dim=-1)
    to_first = torch.atan2(delta[..., 1], delta[..., 0])
    to_second = 2 * math.pi * u[..., 4]
    second = arrow + distance[..., None] * unit(to_second)
    hit = torch.asin((r / CLEAR / distance).clamp(max=1))
    miss = torch.asin((CLEAR * r / distance).clamp(max=1))
    between = (to_second - to_first + math.pi) % (2 * math.pi) - math.pi
    inside = ((second >= 0) & (second <= side)).all(-1)
    accepted = inside & (distance >= apart) & (between.abs() >= hit + miss)
    circle = torch.where(label[:, None, None] == 1, first, second)
    heading = to_first + (2 * u[..., 5] - 1) * hit
    return torch.cat([arrow, circle, heading[..., None]], -1), accepted


def _published(u: Tensor, label: Tensor, r: Tensor, side: float) -> tuple[Tensor, Tensor, Tensor]:
    """Arrow, circle and heading."""
    arrow = side * u[:, :2]
    offset = 2 * r[:, None] + (side - 4 * r[:, None]) * u[:, 2:4]
    circle = (arrow + offset) % side
    delta = circle - arrow
    distance = delta.norm(dim=1)
    direction = torch.atan2(delta[:, 1], delta[:, 0])
    hit = torch.asin(r / CLEAR / distance)
    miss = torch.asin((CLEAR * r / distance).clamp(max=1))
    turn = torch.where(
        label == 1,
        (2 * u[:, 4] - 1) * hit,
        miss + (2 * torch.pi - 2 * miss) * u[:, 4],
    )
    return arrow, circle, direction + turn


def unit(angle: Tensor) -> Tensor:
    """Unit vectors (..., 2) at angles in radians, from x towards y."""
    return torch.stack([angle.cos(), angle.sin()], -1)
