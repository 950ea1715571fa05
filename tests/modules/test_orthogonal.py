import pytest
import torch

from plstm.modules.orthogonal import _operator, orthogonal
from tests.helpers import assert_close


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_nearest_orthogonal_matrix(lanes):
    z = torch.randn(200, lanes, lanes).double()
    u, sizes, v = torch.linalg.svd(z)
    regular = sizes[:, -1] > 0.02 * sizes[:, 0]
    assert_close("result", orthogonal(z)[regular], (u @ v)[regular], 1e-3)
    assert torch.linalg.matrix_norm(orthogonal(z), 2).max() <= 1 + 1e-12


def test_blocks_and_batch_axes(monkeypatch):
    z = torch.randn(2, 3, 5, 4, 4).double()
    want = orthogonal(z.flatten(0, 2)).view_as(z)
    monkeypatch.setattr("plstm.modules.orthogonal.BLOCK", 7)
    assert_close("result", orthogonal(z), want)
    assert orthogonal(z[:0]).shape == (0, 3, 5, 4, 4)


def test_one_operator_of_a_compiled_graph():
    torch.library.opcheck(_operator, (torch.eye(3).expand(2, 3, 3) / 2,))
    z = torch.randn(2, 9, 3, 3, requires_grad=True)
    compiled = torch.compile(orthogonal, backend="aot_eager", fullgraph=True)
    assert_close("result", compiled(z), orthogonal(z))


def test_scale_does_not_matter():
    z = torch.randn(20, 4, 4).double()
    for scale in (1e-10, 1e10):
        assert_close("result", orthogonal(scale * z), orthogonal(z))


def test_gradient_is_that_of_the_scaled_matrix():
    z, cotangent = torch.randn(2, 5, 3, 3).double()
    z.requires_grad_()
    scaled = 3**0.5 * z / z.flatten(1).norm(dim=1)[:, None, None]
    (want,) = torch.autograd.grad(scaled, z, cotangent)
    (got,) = torch.autograd.grad(orthogonal(z), z, cotangent)
    assert_close("gradient", got, want)


def test_training_turns_a_reflection_into_a_rotation():
    z = torch.diag(torch.tensor([1.0, 1.0, -0.5])).requires_grad_()
    assert orthogonal(z).det() < -0.99
    optimizer = torch.optim.SGD([z], 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (orthogonal(z) - torch.eye(3)).square().sum().backward()
        optimizer.step()
    assert_close("result", orthogonal(z), torch.eye(3), 1e-3)


def test_zeros():
    z = torch.zeros(2, 3, 3, requires_grad=True)
    orthogonal(z).sum().backward()
    assert orthogonal(z).abs().max() == 0
    assert z.grad.isfinite().all()
