"""DeltaNet: the delta rule with normalized keys."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_shapes
from plstm.modules.conv import CausalConv1d
from plstm.modules.norm import RMSNorm
from plstm.modules.widths import head_widths
from plstm.ops.delta_rule import delta_rule
from plstm.ops.packed import CuSeqlens, Packing, as_packing


class DeltaNetState(NamedTuple):
    """Recurrent state of the layer."""

    memory: Tensor  # (B, H, K, V)
    window: Tensor  # last q, k and v before the convolution, (B, conv_width - 1, H (2 K + V))


class DeltaNet(nn.Module):
    """Causal mixer that corrects its state towards the current value, linear in the length.

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,   y_t = W_o norm(S_t^T q_t / sqrt(K))

    q and k are silu(conv(x W)) scaled to Euclidean norm 1, v = silu(conv(x W_v)), and beta =
    sigmoid(x W_b) per head. The RMS norm is per head, with one scale for all heads. Linear maps
    have no bias. The state has H K V elements plus the convolution window; a position costs
    O(H K V).

    Args:
        dim: Model width.
        num_heads: Number of heads.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, dim / num_heads if None.
        conv_width: Width of the causal depthwise convolutions of q, k and v.
        output_gate: Multiply the normalized heads by silu(x W_g).
        negative_eigenvalues: Double beta, which allows eigenvalues in (-1, 1).
        backend: See `plstm.ops.delta_rule`.

    Raises:
        ValueError: widths do not divide.

    Source: arXiv 2406.06484; negative eigenvalues: arXiv 2411.12537. Initialization: linear maps
    N(0, 0.02^2), convolutions PyTorch's default.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        conv_width: int = 4,
        output_gate: bool = False,
        negative_eigenvalues: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.negative_eigenvalues = negative_eigenvalues
        widths = head_widths(type(self).__name__, dim, num_heads, qk_dim, v_dim)
        self.qk_dim, self.v_dim = widths
        self.qkv_sizes = [num_heads * width for width in (self.qk_dim, self.qk_dim, self.v_dim)]
        self.qkv_proj = nn.Linear(dim, sum(self.qkv_sizes), bias=False)
        self.conv = CausalConv1d(sum(self.qkv_sizes), conv_width, bias=False)
        self.beta_proj = nn.Linear(dim, num_heads, bias=False)
        inner = num_heads * self.v_dim
        self.gate_proj = nn.Linear(dim, inner, bias=False) if output_gate else None
        self.norm = RMSNorm(self.v_dim)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
            else:
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: DeltaNetState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, DeltaNetState]:
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes(type(self).__name__, x=(x, f"B L {self.out_proj.out_features}"))
        packing = as_packing(type(self).__name__, cu_seqlens, x)
        memory, window = state if state is not None else (None, None)
        q, k, v, window = self._qkv(x, window, packing)
        beta = torch.sigmoid(self.beta_proj(x))
        y, memory = delta_rule(
            q,
            k,
            v,
            2 * beta if self.negative_eigenvalues else beta,
            self._log_decay(x),
            state=memory,
            return_state=True,
            backend=self.backend,
            cu_seqlens=packing,
        )
        y = self.norm(y).flatten(2)
        if self.gate_proj is not None:
            y = y * nn.functional.silu(self.gate_proj(x))
        y = self.out_proj(y)
        return (y, DeltaNetState(memory, window)) if return_state else y

    def step(self, x: Tensor, state: DeltaNetState | None = None) -> tuple[Tensor, DeltaNetState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * self.v_dim + self.conv.window_size()

    def _qkv(
        self, x: Tensor, window: Tensor | None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v (B, L, H, width), q and k of norm 1, and the new window."""
        qkv, window = self.conv(self.qkv_proj(x), window, packing)
        q, k, v = (
            rearrange(part, "b l (h w) -> b l h w", h=self.num_heads)
            for part in nn.functional.silu(qkv).split(self.qkv_sizes, -1)
        )
        return _unit(q), _unit(k), v, window

    def _log_decay(self, x: Tensor) -> Tensor | None:
        """Logarithm of the decay, (B, L, H); this layer has none."""
        return None


def _unit(x: Tensor) -> Tensor:
    """x divided by its Euclidean norm over the last axis, float32 or wider; finite at 0."""
    x = x.to(accumulation_dtype(x))
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
