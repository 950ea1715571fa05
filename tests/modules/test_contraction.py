import pytest
import torch
from torch.autograd import gradcheck

from plstm.modules.contraction import contraction
from tests.helpers import assert_close


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 9])
def test_norm_is_at_most_1(lanes):
    norms = torch.linalg.matrix_norm(contraction(torch.randn(200, lanes, lanes).double()), 2)
    assert norms.max() <= 1 + 1e-12
    assert norms.min() > 0.1


def test_one_direction_alone_stays_bounded():
    """The largest singular value there is, 2 before the step."""
    only = torch.zeros(4, 4).double()
    only[1, 2] = 3.0
    assert_close("norm", torch.linalg.matrix_norm(contraction(only), 2), torch.ones(()).double())


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_orthogonal_matrices_stay(scale):
    orthogonal = torch.linalg.qr(torch.randn(20, 4, 4).double()).Q
    assert_close("result", contraction(scale * orthogonal), orthogonal)


@pytest.mark.parametrize("lanes", [5, 7, 8, 16, 33])
def test_many_lanes_come_near_orthogonal(lanes):
    orthogonal = torch.linalg.qr(torch.randn(20, lanes, lanes).double()).Q
    assert_close("result", contraction(orthogonal), orthogonal, 2e-3)


def test_gradient():
    z = torch.randn(3, 3, 3).double().requires_grad_()
    assert gradcheck(contraction, z)


def test_zeros():
    z = torch.zeros(2, 3, 3, requires_grad=True)
    contraction(z).sum().backward()
    assert contraction(z).abs().max() == 0
    assert z.grad.isfinite().all()
