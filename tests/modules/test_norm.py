import pytest
import torch

from plstm.modules.norm import HeadRMSNorm, MergedRMSNorm, RMSNorm
from tests.helpers import TOLERANCE, assert_close, gradients

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def definition(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 1, 7), (4, 0, 3)], ids=str)
@pytest.mark.parametrize("heads", [None, 1, 3], ids=lambda heads: f"heads={heads}")
def test_equals_definition(heads, shape, dtype):
    *axes, width = shape
    norm = RMSNorm(width, eps=1e-2) if heads is None else HeadRMSNorm(heads, width, eps=1e-2)
    weight = torch.randn(norm.weight.shape, dtype=dtype)
    norm.weight.data.copy_(weight)  # the parameter stays in float32
    x = torch.randn(*axes, *([] if heads is None else [heads]), width, dtype=dtype)
    x[:1] *= 1e-3  # rows where eps counts
    inputs = {"x": x.requires_grad_(), "weight": norm.weight}
    exact = {"x": x.detach().double(), "weight": norm.weight.detach().double()}
    exact = {name: y.requires_grad_() for name, y in exact.items()}
    scale = exact["weight"] if heads is None else exact["weight"].view(heads, width)
    got, want = norm(x), definition(exact["x"], scale, 1e-2)
    want = want if heads is None else want.flatten(-2)
    assert got.dtype == dtype
    rtol, grad_rtol = TOLERANCE[dtype]
    assert_close("output", got, want, rtol)
    got, want = gradients(got, inputs), gradients(want, exact)
    assert_close("gradient of x", got["x"], want["x"], grad_rtol)
    float32 = TOLERANCE[torch.float32][1]  # of the parameter, whatever the input
    assert_close("gradient of weight", got["weight"], want["weight"], max(grad_rtol, float32))


def test_merged_norm_is_that_of_all_heads():
    norm, x = MergedRMSNorm(3, 4, eps=1e-2), torch.randn(2, 5, 3, 4)
    norm.weight.data.normal_()
    assert_close("output", norm(x), definition(x.flatten(-2), norm.weight, 1e-2), 1e-6)
    silent = x * torch.tensor([1.0, 1e-3, 1.0])[:, None]
    ratio = norm(silent)[..., 4:8].norm() / norm(silent)[..., :4].norm()
    assert ratio < 1e-1  # a head that says little stays quiet
    norm = HeadRMSNorm(3, 4, eps=0.0)
    assert_close("heads", norm(silent)[..., 4:8], norm(x)[..., 4:8], 1e-5)


def test_gradcheck():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    norm = HeadRMSNorm(3, 4).double()
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight))
