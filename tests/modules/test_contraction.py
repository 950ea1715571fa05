import pytest
import torch
from torch.autograd import gradcheck

from plstm.modules.contraction import contraction
from tests.helpers import assert_close


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_norm_is_at_most_1(lanes):
    norms = torch.linalg.matrix_norm(contraction(torch.randn(200, lanes, lanes).double()), 2)
    assert norms.max() <= 1 + 1e-12
    assert norms.min() > 1 - 1e-4


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_orthogonal_matrices_stay(scale):
    orthogonal = torch.linalg.qr(torch.randn(20, 4, 4).double()).Q
    assert_close("result", contraction(scale * orthogonal), orthogonal, 1e-4)


def test_gradient():
    z = torch.randn(3, 3, 3).double().requires_grad_()
    assert gradcheck(contraction, z)


def test_zeros():
    z = torch.zeros(2, 3, 3, requires_grad=True)
    contraction(z).sum().backward()
    assert contraction(z).abs().max() == 0
    assert z.grad.isfinite().all()
