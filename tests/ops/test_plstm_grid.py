"""The definition on grids of one, two and three axes; it is what other forms are tested against."""

from itertools import product

import pytest
import torch

from plstm.ops import plstm_1d, plstm_2d
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d.corners import SIGNS
from plstm.ops.plstm_2d.naive import plstm_grid_naive
from tests.helpers import assert_close
from tests.ops.inputs import grid_inputs, sequence_inputs


def volume_inputs(*grid, corners=1):
    """q, k, v and gates of a grid of any number of axes."""
    axes, nodes = len(grid), (2, *grid, 2)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64)

    gates = Gates(
        source=normal(corners, *nodes, axes),
        transition=normal(corners, *nodes, axes, axes),
        mark=normal(corners, *nodes, axes),
        direct=normal(*nodes),
    )
    return normal(*nodes, 3), normal(*nodes, 3), normal(*nodes, 4), gates


@pytest.mark.parametrize("sign", [1, -1])
def test_one_axis_is_a_sequence(sign):
    inputs = sequence_inputs(5, with_state=False)
    q, k, v, source, transition, mark, direct = inputs.values()
    gates = Gates(
        source[None, ..., None], transition[None, ..., None, None], mark[None, ..., None], direct
    )
    got = plstm_grid_naive(q, k, v, gates, [(sign,)], 0.3)
    turned = {name: x if sign > 0 else x.flip(1) for name, x in inputs.items()}
    want = plstm_1d(**turned, scale=0.3, backend="naive")
    assert_close("output", got, want if sign > 0 else want.flip(1))


@pytest.mark.parametrize("corners", [*((corner,) for corner in SIGNS), tuple(SIGNS)], ids="+".join)
def test_two_axes_are_plstm_2d(corners):
    inputs = grid_inputs(3, 4, len(corners))
    q, k, v, *gates = inputs.values()
    got = plstm_grid_naive(q, k, v, Gates(*gates), [SIGNS[corner] for corner in corners], 0.3)
    assert_close("output", got, plstm_2d(**inputs, corners=corners, scale=0.3, backend="rows"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_node_drops_out(axis):
    grid = [3, 4]
    grid.insert(axis, 1)
    q, k, v, gates = volume_inputs(*grid, corners=2)
    signs = [(1, 1, -1), (-1, 1, 1)]
    got = plstm_grid_naive(q, k, v, gates, signs, 1.0)
    left = [g for g in range(3) if g != 2 - axis]  # directions count from the last axis
    source, transition, mark = (x.squeeze(2 + axis)[..., left] for x in gates[:3])
    flat = Gates(source, transition[..., left, :], mark, gates.direct.squeeze(1 + axis))
    signs = [of_axes[:axis] + of_axes[axis + 1 :] for of_axes in signs]
    want = plstm_grid_naive(*(x.squeeze(1 + axis) for x in (q, k, v)), flat, signs, 1.0)
    assert_close("output", got.squeeze(1 + axis), want)


@pytest.mark.parametrize("sign", list(product((1, -1), repeat=3)), ids=str)
def test_three_axes_are_the_sum_over_paths(sign):
    q, k, v, gates = volume_inputs(2, 3, 2)
    got = plstm_grid_naive(q, k, v, gates, [sign], 1.0)
    scores = torch.einsum("btyxhk,bsrwhk->btyxsrwh", q, k)
    want = torch.einsum("btyxsrwh,btyxsrwh,bsrwhv->btyxhv", by_paths(gates, sign), scores, v)
    assert_close("output", got, want)


def by_paths(gates, sign):
    """The gating matrix (B, to, from, H): walk along every path from every node."""
    batch, *grid, heads = gates.direct.shape
    source, transition, mark = (x[0] for x in gates[:3])
    matrix = torch.zeros(batch, *grid, *grid, heads, dtype=torch.float64)

    def walk(start, node, g, weight):
        axis = len(grid) - 1 - g
        node = tuple(n + sign[a] * (a == axis) for a, n in enumerate(node))
        if not 0 <= node[axis] < grid[axis]:
            return
        at = (slice(None), *node)
        matrix[(*at, *start)] += mark[at][..., g] * weight
        for onward in range(len(grid)):
            walk(start, node, onward, transition[at][..., onward, g] * weight)

    for start in product(*map(range, grid)):
        at = (slice(None), *start)
        matrix[(*at, *start)] += gates.direct[at]
        for g in range(len(grid)):
            walk(start, start, g, source[at][..., g])
    return matrix
