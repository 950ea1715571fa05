"""Mamba-2, the state-space duality layer."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_shapes
from plstm.modules.conv import CausalConv1d
from plstm.modules.init import step_size_bias_
from plstm.modules.norm import RMSNorm
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens, as_packing

A_RANGE = (1.0, 16.0)  # initial -A, uniform


class Mamba2State(NamedTuple):
    """Recurrent state of the layer."""

    memory: Tensor  # (B, H, K, V)
    window: Tensor  # last inputs of the convolution, (B, conv_width - 1, expand dim + 2 K)


class Mamba2(nn.Module):
    """Causal state-space layer with a data-dependent step size per head.

    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T,   y_t = S_t^T C_t + D x_t
    out_t = W_o norm(y_t * silu(z_t)),   dt = softplus(dt~ + dt_bias),   A = -exp(A_log)

    (z, x, B, C, dt~) is one linear map of the input; a causal depthwise convolution and silu act on
    (x, B, C). x and z have width expand * dim, split over the heads, which share B and C, the keys
    and queries. The RMS norm is over all heads. A_log, D and dt_bias are vectors and get no weight
    decay. Cost O(L H K V); the state has H K V elements plus the convolution window.

    Args:
        dim: Model width.
        num_heads: Number of heads; published models use heads of width 64.
        qk_dim: Width of B and C (state size of the paper).
        expand: Width of x relative to dim.
        conv_width: Width of the convolution.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: the heads do not divide expand * dim; widths are not positive.

    Source: arXiv 2405.21060, section 7; initialization as in its code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_dim: int = 128,
        expand: int = 2,
        conv_width: int = 4,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if min(dim, num_heads, qk_dim, expand) < 1 or expand * dim % num_heads:
            raise ValueError(
                "Mamba2: num_heads must divide expand * dim, all positive, got "
                f"num_heads={num_heads}, expand={expand}, dim={dim}, qk_dim={qk_dim}; change one"
            )
        self.num_heads, self.qk_dim, self.backend = num_heads, qk_dim, backend
        inner = expand * dim
        self.v_dim = inner // num_heads
        self.sizes = [inner, inner + 2 * qk_dim, num_heads]  # z; x, B and C; dt
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = CausalConv1d(inner + 2 * qk_dim, conv_width)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for module in (self.in_proj, self.conv.conv, self.norm, self.out_proj):
            module.reset_parameters()
        self.A_log.uniform_(*A_RANGE).log_()
        step_size_bias_(self.dt_bias)
        nn.init.ones_(self.D)

    def forward(
        self,
        x: Tensor,
        state: Mamba2State | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, Mamba2State]:
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("Mamba2", x=(x, f"B L {self.out_proj.out_features}"))
        packing = as_packing("Mamba2", cu_seqlens, x)
        z, mixed, dt = self.in_proj(x).split(self.sizes, -1)
        mixed, window = self.conv(mixed, state.window if state is not None else None, packing)
        v, k, q = nn.functional.silu(mixed).split([self.sizes[0], self.qk_dim, self.qk_dim], -1)
        v = rearrange(v, "b l (h v) -> b l h v", h=self.num_heads)
        q, k = (part[:, :, None].expand(-1, -1, self.num_heads, -1) for part in (q, k))
        dtype = accumulation_dtype(dt)
        dt = nn.functional.softplus(dt.to(dtype) + self.dt_bias)
        out, memory = gated_linear_attention(
            q,
            k,
            dt[..., None] * v,
            -dt * self.A_log.to(dtype).exp(),
            state=state.memory if state is not None else None,
            return_state=True,
            scale=1.0,
            backend=self.backend,
            cu_seqlens=packing,
        )
        out = (out + self.D[:, None] * v).flatten(2) * nn.functional.silu(z)
        y = self.out_proj(self.norm(out.to(z.dtype)))
        return (y, Mamba2State(memory, window)) if return_state else y

    def step(self, x: Tensor, state: Mamba2State | None = None) -> tuple[Tensor, Mamba2State]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * self.v_dim + self.conv.window_size()
