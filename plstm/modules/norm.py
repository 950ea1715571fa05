"""RMS norms, and a batch norm for batches of any size."""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from plstm.checks import accumulation_dtype
from plstm.ops.derivatives import transformed


class RMSNorm(nn.RMSNorm):
    """RMS norm over the last axis, with its scale cast to the dtype of the input.

    y = x / sqrt(mean(x^2) + eps) * weight.

    Args:
        dim: Width of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x over its last axis."""
        return rms_norm(x, self.weight, self.eps)


class HeadRMSNorm(nn.Module):
    """RMS norm per head, with a scale per head and channel.

    y = x / sqrt(mean(x^2) + eps) * weight, the mean over the channels of one head.

    Args:
        num_heads: Number of heads H.
        width: Channels per head W.
        eps: Added to the mean square.
    """

    def __init__(self, num_heads: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_heads, self.width, self.eps = num_heads, width, eps
        self.weight = nn.Parameter(torch.empty(num_heads * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., H, W) and merge the heads: (..., H * W)."""
        return rms_norm(x, self.weight.view(self.num_heads, self.width), self.eps).flatten(-2)


class MergedRMSNorm(RMSNorm):
    """RMS norm over all heads, which keeps their relative size.

    Args:
        num_heads: Number of heads H.
        width: Channels per head W.
        eps: Added to the mean square.
    """

    def __init__(self, num_heads: int, width: int, eps: float = 1e-5) -> None:
        super().__init__(num_heads * width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Merge the heads of x (..., H, W) and normalize: (..., H * W)."""
        return super().forward(x.flatten(-2))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that uses its running statistics for a batch of one row."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, dim) over N."""
        if x.shape[0] > 1 or not self.training:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis, in the dtype of x.

    Args:
        x: Any input, (..., W).
        weight: Scale, (W,), or with leading axes that broadcast to x.
        eps: Added to the mean square.
    """
    weight = weight.to(x.dtype)
    if x.is_cpu and not torch.compiler.is_compiling() and not transformed():
        # Without torch.compile there is no fused kernel: autograd would save several temporaries.
        return _RMSNorm.apply(x, weight, eps)
    return _plain_rms_norm(x, weight, eps)


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    fused = weight if weight.ndim == 1 else None
    y = nn.functional.rms_norm(x, x.shape[-1:], fused, eps)
    return y if weight.ndim == 1 else y * weight


class _RMSNorm(torch.autograd.Function):
    """Saves only its input and one factor per row."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        dtype = accumulation_dtype(x)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        factor = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        ctx.eps = eps
        return (x * factor).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives, which need out-of-place operations
            _, gradients = torch.func.vjp(lambda *t: _plain_rms_norm(*t, ctx.eps), x, weight)
            return *gradients(grad), None
        # y = x f w with df/dx = -f^3 x / W
        product = (grad * factor).mul_(x)
        grad_weight = product.sum_to_size(weight.shape)
        along = product.mul_(weight).sum(-1, keepdim=True) * factor.square() / x.shape[-1]
        grad_x = product.copy_(grad).mul_(factor).mul_(weight).addcmul_(x, along, value=-1)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None
