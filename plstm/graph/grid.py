"""Regular grids with any number of axes as graphs, and the indices of their gates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GridIndex(NamedTuple):
    """Edges and pairs of a grid, and the indices of their gates.

    Edges are in the order of the source gates (nodes, N) and pairs in that of the transitions
    (nodes, N, N) [out, in], row-major, without those that leave the grid.
    """

    edge_index: Tensor  # (2, E)
    line_index: Tensor  # (2, A)
    edge_level: Tensor  # (E,) steps from the corner to src
    source: Tensor  # (E,) index into (nodes N): src and direction of the edge
    transition: Tensor  # (A,) index into (nodes N N): node in the middle
    mark: Tensor  # (E,) index into (nodes N): dst
    in_tree: Tensor  # (A,) whether the pair belongs to the multitree: see `LineGraph.grid`


def grid_index(
    shape: Sequence[int], signs: Sequence[int] | None = None, num_graphs: int = 1
) -> GridIndex:
    """Index the edges and pairs of equal grids; arguments as for `LineGraph.grid`."""
    shape, signs = tuple(shape), (1,) * len(shape) if signs is None else tuple(signs)
    _check(shape, signs, num_graphs)
    axes, num_nodes = len(shape), num_graphs * math.prod(shape)
    # Direction g is along axis N - 1 - g.
    sizes, sign = torch.tensor(shape[::-1]), torch.tensor(signs[::-1])
    strides = torch.tensor([math.prod(shape[axis + 1 :]) for axis in range(axes)]).flip(0)
    node = torch.arange(num_nodes)[:, None]
    steps = node // strides % sizes  # (nodes, N)
    steps = torch.where(sign > 0, steps, sizes - 1 - steps)
    leaves, enters = steps < sizes - 1, steps > 0

    number = leaves.flatten().cumsum(0).view_as(leaves) - 1
    source = leaves.flatten().nonzero()[:, 0]
    src, direction = source // axes, source % axes
    dst = src + (sign * strides)[direction]
    transition = (leaves[:, :, None] & enters[:, None, :]).flatten().nonzero()[:, 0]
    middle, out, into = transition // axes**2, transition // axes % axes, transition % axes
    before = middle - (sign * strides)[into]
    return GridIndex(
        edge_index=torch.stack([src, dst]),
        line_index=torch.stack([number[before, into], number[middle, out]]),
        edge_level=steps.sum(1)[src],
        source=source,
        transition=transition,
        mark=dst * axes + direction,
        in_tree=out <= into,
    )


def grid_gates(
    source: Tensor, transition: Tensor, mark: Tensor, signs: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates of one corner for a batch of grids, in the order of `LineGraph.grid`.

    Args:
        source: Factor from a node to its edge along each of N directions, (B, *grid, H, N).
            Direction 0 is along the last axis of the grid, direction N - 1 along the first.
        transition: Factor from the incoming to the outgoing edge, (B, *grid, H, N, N) [out, in].
        mark: Factor from the incoming edge to the output of a node, (B, *grid, H, N).
        signs: As for `LineGraph.grid`.

    Returns:
        Source (E, H), transition (A, H) and mark (E, H) for `plstm_dag` on
        `LineGraph.grid(grid, signs, num_graphs=B)`; a direct gate and q, k and v flatten to (B
        *grid, ...).
    """
    batch, *shape, heads, _ = source.shape
    index = grid_index(shape, signs, batch)
    return (
        source.movedim(-2, -1).reshape(-1, heads)[index.source.to(source.device)],
        transition.movedim(-3, -1).reshape(-1, heads)[index.transition.to(source.device)],
        mark.movedim(-2, -1).reshape(-1, heads)[index.mark.to(source.device)],
    )


def _check(shape: tuple[int, ...], signs: tuple[int, ...], num_graphs: int) -> None:
    if not shape or min(*shape, num_graphs) < 1:
        raise ValueError(
            "LineGraph.grid: shape must have an axis, and all axes and num_graphs must be 1 or "
            f"more, got shape {shape} and num_graphs={num_graphs}; pass (Y, X) for an image"
        )
    if len(signs) != len(shape) or not set(signs) <= {-1, 1}:
        raise ValueError(
            f"LineGraph.grid: signs must be 1 or -1 for each of the {len(shape)} axes, got "
            f"{signs}; 1 scans along an axis and -1 against it"
        )
