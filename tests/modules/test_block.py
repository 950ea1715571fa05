import pytest
import torch

from plstm.modules.block import DropPath


def test_drop_path_of_everything():
    x = torch.randn(5, 2, 3).requires_grad_()
    drop = DropPath(1.0)
    y = drop(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(y))
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_keeps_the_mean():
    x = torch.ones(10000, 1)
    y = DropPath(0.25)(x)
    assert torch.allclose(y.unique(), torch.tensor([0, 4 / 3]))
    assert abs(y.mean().item() - 1) < 0.03


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_drop_path_rate(rate):
    with pytest.raises(ValueError, match=r"DropPath: rate must lie in 0\.\.1, got"):
        DropPath(rate)
