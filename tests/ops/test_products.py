import pytest
import torch

from plstm.ops.products import transition_products
from tests.helpers import assert_close, gradients

LENGTHS = [0, 1, 2, 3, 7, 31]


def products_by_loop(transition: torch.Tensor) -> torch.Tensor:
    size = transition.shape[-1] + 1
    rows = []
    for t in range(size):
        row = [transition[..., s:t].prod(-1) for s in range(t + 1)]
        row += [torch.zeros_like(row[0])] * (size - 1 - t)
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def factors(kind: str, length: int) -> torch.Tensor:
    x = 2 * torch.rand(2, 3, length, dtype=torch.float64) - 1  # both signs
    if kind == "zeros":
        x[..., ::2] = 0
    elif kind == "all_zero":
        x = torch.zeros_like(x)
    elif kind == "tiny":
        x = 1e-300 * x
    elif kind == "one_tiny":
        x[..., length // 2 :][..., :1] *= 1e-300
    return x.requires_grad_()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["signs", "zeros", "all_zero", "tiny", "one_tiny"])
def test_equals_loop(kind, length):
    x = factors(kind, length)
    got, want = transition_products(x), products_by_loop(x)
    # Entry by entry: a relative error, also where products are tiny.
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    got, want = (gradients(y, {"transition": x})["transition"] for y in (got, want))
    assert_close("gradient", got, want, 1e-12)


def test_tiny_float32():
    x = torch.full((5,), 1e-30, requires_grad=True)
    got = transition_products(x)
    assert_close("below the diagonal", got.diagonal(-1), x, 1e-7)
    assert (got.diagonal(-2) == 0).all()  # 1e-60 underflows
    (grad,) = torch.autograd.grad(got.sum(), x)
    assert_close("gradient", grad, torch.ones(5), 1e-6)


def test_is_inverse():
    x = factors("signs", 6)
    inverse = torch.linalg.inv(torch.eye(7, dtype=x.dtype) - torch.diag_embed(x, -1))
    assert_close("inverse", transition_products(x), inverse)


@pytest.mark.parametrize("kind", ["signs", "zeros"])
def test_gradcheck(kind):
    assert torch.autograd.gradcheck(transition_products, factors(kind, 5))


def test_gradgradcheck():
    assert torch.autograd.gradgradcheck(transition_products, factors("zeros", 4))
