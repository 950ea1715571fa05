import pytest
import torch

from plstm.modules.lrpe import apply_lrpe
from plstm.modules.rotary import coordinates, rotate_positions
from tests.helpers import assert_close


def scores(form, positions, shift=0):
    q, k = torch.randn(2, len(positions), 1, 6, generator=torch.Generator().manual_seed(0)).double()
    q, k = (apply_lrpe(x, positions + shift, form)[:, 0] for x in (q, k))
    return q @ k.mT


def test_cosine_inner_product():
    """<P_n(x), P_m(y)> = sum_i x_i y_i cos(theta_i (n - m)), theta_i = 10000^(-2 i / W)."""
    x, y = torch.randn(2, 5, 2, 6).double()
    n, m = torch.tensor([[3], [0], [7], [1], [20]]), torch.tensor([[5], [2], [0], [1], [4]])
    theta = 10_000.0 ** (-2 * torch.arange(6).double() / 6)
    want = (x * y * torch.cos((n - m)[..., None] * theta)).sum(-1)
    got = (apply_lrpe(x, n, "cosine") * apply_lrpe(y, m, "cosine")).sum(-1)
    assert_close("inner product", got, want)


def test_rotate_in_one_dimension_is_the_rotary_code():
    x, positions = torch.randn(2, 5, 3, 8).double(), torch.arange(5)[:, None]
    want = rotate_positions(x.transpose(1, 2), positions).transpose(1, 2)
    assert_close("turned", apply_lrpe(x, positions, "rotate"), want, 1e-6)  # its angles are float32


@pytest.mark.parametrize("form", ["cosine", "rotate"])
@pytest.mark.parametrize("sizes", [(6,), (2, 3), (2, 1, 3)], ids=str)
def test_only_differences_count(form, sizes):
    positions = coordinates(sizes, torch.device("cpu"))
    shift = torch.tensor([30, 11, 5][: len(sizes)])
    assert_close("shifted", scores(form, positions, shift), scores(form, positions))
    assert not torch.allclose(scores(form, 2 * positions), scores(form, positions), rtol=1e-2)


@pytest.mark.parametrize("form", ["cosine", "rotate"])
def test_every_axis_counts(form):
    """Two positions that differ along one axis have other scores than the same position twice."""
    for axis in range(2):
        there = torch.zeros(2, 2).long()
        there[1, axis] = 1
        assert not torch.allclose(scores(form, there), scores(form, 0 * there), rtol=1e-3)


def test_axes_share_the_first_frequencies():
    """Width 3 and two axes, cosine: angles (n_1, n_1 theta_1, n_2)."""
    coded = apply_lrpe(torch.ones(1, 1, 3).double(), torch.tensor([[2, 5]]), "cosine").flatten()
    angles = torch.tensor([2.0, 2.0 * 10_000 ** (-2 / 3), 5.0]).double()
    assert_close("code", coded, torch.cat([angles.cos(), angles.sin()]), 1e-7)
