"""Mamba2D: a selective state-space scan over a grid."""

import math

import torch
from torch import Tensor, nn

from plstm.checks import check_choice, check_shapes
from plstm.layers.flattened_grid import STARTS
from plstm.modules.init import step_size_bias_
from plstm.modules.separable_conv import SeparableConv
from plstm.ops.mamba2d import mamba2d


class Mamba2D(nn.Module):
    """Selective state-space model whose states run along both axes of a grid at once.

    u = gelu(W_in x),   y = W_out gelu(scan(u) + D u) (+ local(x))

    The scan is `plstm.ops.mamba2d`. u gives B_L, B_T and C, shared by all channels, and through a
    low-rank map the step sizes dt_L = softplus(W_L r_L + b_L), and dt_T likewise. Initially A_L and
    A_T are -(1, 2, ..., state_dim) in every channel. Cost O(Y X D N) in Y + X - 1 steps. One scan
    sees only nodes above and to the left; alternate the corners between blocks.

    The local path, `plstm.modules.separable_conv.SeparableConv`, runs parallel to the whole branch.

    Args:
        dim: Model width.
        expand: Width of u relative to dim.
        state_dim: States N per channel.
        dt_rank: Rank of the step sizes, dim / 16, rounded up, if None.
        corner: Where the scan starts, "top_left" or "bottom_right".
        local_width: Side of the depthwise convolution of the local path, odd; published models use
            3; 0 omits the path.
        backend: Backend of mamba2d.

    Raises:
        ValueError: unknown corner; sizes not positive; local_width even.

    Source: arXiv 2412.16146; step sizes and A as in Mamba, arXiv 2312.00752.
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 1,
        state_dim: int = 16,
        dt_rank: int | None = None,
        corner: str = "top_left",
        local_width: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("Mamba2D", "corner", corner, STARTS)
        inner = expand * dim
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(dim, expand, state_dim, dt_rank) < 1 or (local_width and local_width % 2 == 0):
            raise ValueError(
                "Mamba2D: dim, expand, state_dim and dt_rank must be positive and local_width odd "
                f"or 0, got {dim}, {expand}, {state_dim}, {dt_rank} and {local_width}"
            )
        self.corner, self.state_dim, self.backend = corner, state_dim, backend
        self.sizes = [dt_rank, dt_rank, state_dim, state_dim, state_dim]
        self.in_proj = nn.Linear(dim, inner)
        self.scan_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_left_proj = nn.Linear(dt_rank, inner)
        self.dt_top_proj = nn.Linear(dt_rank, inner)
        # Flattened, since vectors get no weight decay; used as (inner, state_dim).
        self.A_left_log = nn.Parameter(torch.empty(inner * state_dim))
        self.A_top_log = nn.Parameter(torch.empty(inner * state_dim))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, dim)
        self.local = SeparableConv(dim, local_width) if local_width else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for linear in (self.in_proj, self.scan_proj, self.out_proj):
            linear.reset_parameters()
        if self.local is not None:
            self.local.reset_parameters()
        for proj in (self.dt_left_proj, self.dt_top_proj):
            bound = proj.in_features**-0.5
            nn.init.uniform_(proj.weight, -bound, bound)
            step_size_bias_(proj.bias)
        rates = torch.arange(1, self.state_dim + 1, device=self.D.device).repeat(len(self.D))
        for log_rate in (self.A_left_log, self.A_top_log):
            log_rate.copy_(rates.log())
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, Y, X, dim) to the same shape."""
        check_shapes("Mamba2D", x=(x, f"B Y X {self.out_proj.out_features}"))
        turned = x if self.corner == "top_left" else torch.flip(x, [1, 2])
        u = nn.functional.gelu(self.in_proj(turned))
        rank_left, rank_top, b_left, b_top, c = self.scan_proj(u).split(self.sizes, -1)
        dt = [
            nn.functional.softplus(proj(rank))
            for proj, rank in ((self.dt_left_proj, rank_left), (self.dt_top_proj, rank_top))
        ]
        a = [
            -log_rate.exp().unflatten(0, (-1, self.state_dim))
            for log_rate in (self.A_left_log, self.A_top_log)
        ]
        out = mamba2d(u, *dt, *a, b_left, b_top, c, backend=self.backend)
        y = self.out_proj(nn.functional.gelu(out + self.D.to(u.dtype) * u))
        if self.corner == "bottom_right":
            y = torch.flip(y, [1, 2])
        return y if self.local is None else y + self.local(x)

    def extra_repr(self) -> str:
        return f"state_dim={self.state_dim}, corner={self.corner!r}"
