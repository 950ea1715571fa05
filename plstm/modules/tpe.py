"""Toeplitz position encoding."""

import torch
from torch import Tensor, nn

from plstm.modules.norm import RMSNorm
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens


class ToeplitzPosition(nn.Module):
    """Toeplitz position encoding (MD-TPE): decaying sums over earlier positions along every axis.

    y = x + sum over the axes of W norm(s)
    s_i = (q_h . k_h) sum_{m<=i} sigmoid(theta_h)^(i-m) x_m

    per head h of channels. Each axis has its own sum and parameters. Causal along every axis, and
    linear in the number of positions. Published models apply it once, to the embedding.

    Args:
        dim: Model width; divisible by num_heads.
        num_heads: Groups of channels, each with its own decay.
        axes: Number of position axes.

    Source: arXiv 2405.21022; parameters and their initialization, q, k and theta ~ N(0, 1), as in
    its author's code. The paper does not say how it is applied; we add it to x.
    """

    def __init__(self, dim: int, num_heads: int, axes: int) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.q, self.k = (
            nn.Parameter(torch.empty(axes, num_heads, dim // num_heads)) for _ in range(2)
        )
        self.theta = nn.Parameter(torch.empty(axes * num_heads))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(axes))
        self.projs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(axes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for parameter in (self.q, self.k, self.theta):
            nn.init.normal_(parameter)
        for norm, proj in zip(self.norms, self.projs, strict=True):
            norm.reset_parameters()
            nn.init.normal_(proj.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding to x (B, *positions, dim)."""
        y = x
        for axis in range(len(self.norms)):
            code, _ = self._code(x.movedim(axis + 1, -2), axis)
            y = y + code.movedim(-2, axis + 1)
        return y

    def forward_with_state(
        self, x: Tensor, state: Tensor | None, cu_seqlens: CuSeqlens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Like forward, for a sequence; takes and returns the sums (B, H, 1, dim / H)."""
        code, state = self._code(x, 0, state, cu_seqlens)
        return x + code, state

    def scan(
        self,
        x: Tensor,
        axis: int,
        state: Tensor | None = None,
        cu_seqlens: CuSeqlens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sums s along the positions of x (B, L, dim), and the last one without q . k."""
        gain = (self.q[axis] * self.k[axis]).sum(-1)
        log_decay = nn.functional.logsigmoid(self.theta.view(-1, self.num_heads)[axis])
        shape = (*x.shape[:2], self.num_heads)
        gain, log_decay = gain.expand(shape), log_decay.expand(shape)
        values = x.unflatten(-1, (self.num_heads, -1))
        sums, state = gated_linear_attention(
            gain[..., None],
            torch.ones_like(gain)[..., None],
            values,
            log_decay,
            state=state,
            return_state=True,
            scale=1.0,
            cu_seqlens=cu_seqlens,
        )
        return sums.flatten(2), state

    def _code(
        self,
        x: Tensor,
        axis: int,
        state: Tensor | None = None,
        cu_seqlens: CuSeqlens | None = None,
    ) -> tuple[Tensor, Tensor]:
        """W norm(s) along the last position axis of x (B, *positions, dim)."""
        sums, state = self.scan(x.flatten(0, -3), axis, state, cu_seqlens)
        return self.projs[axis](self.norms[axis](sums)).view(x.shape), state
