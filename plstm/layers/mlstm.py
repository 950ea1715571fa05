"""mLSTM layer of xLSTM."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import check_shapes
from plstm.modules.block_diagonal import BlockDiagonal
from plstm.modules.conv import CausalConv1d
from plstm.modules.init import small_init_
from plstm.ops.mlstm import MLSTMState, mlstm
from plstm.ops.packed import CuSeqlens, Packing, as_packing


class MLSTMLayerState(NamedTuple):
    """Recurrent state of the layer."""

    memory: Tensor  # (B, H, K, K)
    normalizer: Tensor  # (B, H, K)
    stabilizer: Tensor  # (B, H)
    window: Tensor  # last inputs of the convolution, (B, conv_width - 1, expansion dim)


class MLSTMCore(nn.Module):
    """Shared part of mLSTM layers: everything but the convolution, which subclasses set.

    Args:
        layer: Name of the layer for messages.
        dim: Model width.
        num_heads: Number of heads.
        expansion: Width of u and z relative to dim.
        block_width: Width of the diagonal blocks of the maps to q, k and v.
        num_blocks: Number of blocks of the model.
        bias: Biases of the linear maps and of the norm.
        backend: See `plstm.ops.mlstm`.

    Raises:
        ValueError: expansion * dim is not divisible by the heads and by the block width.
    """

    conv: nn.Module

    def __init__(
        self,
        layer: str,
        dim: int,
        num_heads: int,
        expansion: int,
        block_width: int,
        num_blocks: int,
        bias: bool,
        backend: str,
    ) -> None:
        super().__init__()
        inner = expansion * dim
        if min(dim, num_heads, expansion, block_width, num_blocks) < 1 or (
            inner % num_heads or inner % block_width
        ):
            raise ValueError(
                f"{layer}: num_heads and block_width must divide expansion * dim, all positive, "
                f"got num_heads={num_heads}, block_width={block_width}, expansion={expansion} and "
                f"dim={dim}; change one of them"
            )
        self.dim, self.inner, self.num_heads = dim, inner, num_heads
        self.num_blocks, self.backend = num_blocks, backend
        self.up_proj = nn.Linear(dim, 2 * inner, bias)
        self.q_proj, self.k_proj, self.v_proj = (
            BlockDiagonal(inner, inner, block_width, bias) for _ in range(3)
        )
        self.gate_proj = nn.Linear(3 * inner, 2 * num_heads)  # input and forget gates
        self.norm = HeadLayerNorm(num_heads, inner // num_heads, bias)
        self.skip = nn.Parameter(torch.empty(inner))
        self.down_proj = nn.Linear(inner, dim, bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        small_init_(self.up_proj)
        self.conv.reset_parameters()
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(proj.weight, std=math.sqrt(2 / (5 * self.dim)))
        nn.init.zeros_(self.gate_proj.weight)
        input_bias, forget_bias = self.gate_proj.bias.chunk(2)
        nn.init.normal_(input_bias, std=0.1)
        forget_bias.copy_(torch.linspace(3, 6, self.num_heads))
        nn.init.ones_(self.norm.weight)
        for part in (self.q_proj, self.k_proj, self.v_proj, self.norm, self.down_proj):
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        nn.init.ones_(self.skip)
        nn.init.normal_(self.down_proj.weight, std=2 / (self.num_blocks * math.sqrt(self.dim)))

    def mix(
        self,
        u: Tensor,
        z: Tensor,
        convolved: Tensor,
        state: MLSTMState | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, MLSTMState]:
        """Output and new state from u, z and the convolution of u, (B, L, inner)."""
        mixed = nn.functional.silu(convolved)
        qkv = [self.q_proj(mixed), self.k_proj(mixed), self.v_proj(u)]
        h, cell = mlstm(
            *(rearrange(part, "b l (h k) -> b l h k", h=self.num_heads) for part in qkv),
            *self.gate_proj(torch.cat(qkv, -1)).chunk(2, -1),
            state=state,
            return_state=True,
            backend=self.backend,
            cu_seqlens=packing,
        )
        y = self.norm(h) + self.skip.to(mixed.dtype) * mixed
        return self.down_proj(y * nn.functional.silu(z)), cell


class MLSTM(MLSTMCore):
    """Matrix LSTM with exponential input gates, causal, linear in the length.

    (u, z) = W_up x,   c = silu(conv(u)),   q, k = blockdiagonal(c),   v = blockdiagonal(u)
    C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t
    h_t = C_t^T q_t / max(|n_t . q_t|, 1),   y = W_down ((norm(h) + skip * c) * silu(z))

    with k divided by sqrt(K), i = exp and f = sigmoid of a linear map of (q, k, v), and a layer
    norm per head without bias. This is the published pre-up-projection block without its first norm
    and its residual sum, which `plstm.modules.block.Block` adds; published models have no other
    feed-forward part (feed_forward_ratio 0). The state has H (K^2 + K + 1) elements, K = expansion
    * dim / H, plus the convolution window; a position costs O(H K^2 + expansion dim^2).

    Args:
        dim: Model width.
        num_heads: Number of heads.
        expansion: Width of u and z relative to dim.
        conv_width: Width of the causal depthwise convolution before q and k.
        block_width: Width of the diagonal blocks of the maps to q, k and v.
        num_blocks: Number of blocks of the model; scales the initial W_down.
        backend: See `plstm.ops.mlstm`.

    Raises:
        ValueError: expansion * dim is not divisible by the heads and by the block width.

    Source: arXiv 2405.04517, figure 11. Initialization: W_up, q, k, v N(0, 2 / (5 dim)), W_down
    N(0, 4 / (num_blocks^2 dim)), gate weights 0, forget bias 3 to 6 across the heads, input bias
    N(0, 0.1^2), skip 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expansion: int = 2,
        conv_width: int = 4,
        block_width: int = 4,
        num_blocks: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            "MLSTM", dim, num_heads, expansion, block_width, num_blocks, False, backend
        )
        self.conv = CausalConv1d(self.inner, conv_width)
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: MLSTMLayerState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, MLSTMLayerState]:
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("MLSTM", x=(x, f"B L {self.dim}"))
        packing = as_packing("MLSTM", cu_seqlens, x)
        u, z = self.up_proj(x).chunk(2, -1)
        convolved, window = self.conv(u, state.window if state is not None else None, packing)
        before = MLSTMState(*state[:3]) if state is not None else None
        y, cell = self.mix(u, z, convolved, before, packing)
        return (y, MLSTMLayerState(*cell, window)) if return_state else y

    def step(
        self, x: Tensor, state: MLSTMLayerState | None = None
    ) -> tuple[Tensor, MLSTMLayerState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        width = self.inner // self.num_heads
        return self.num_heads * (width**2 + width + 1) + self.conv.window_size()


class HeadLayerNorm(nn.Module):
    """Layer norm per head, with a scale per head and channel.

    Args:
        num_heads: Number of heads H.
        width: Channels per head W.
        bias: Add a learned bias per head and channel.
    """

    def __init__(self, num_heads: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(num_heads * width))
        self.bias = nn.Parameter(torch.zeros(num_heads * width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., H, W) and merge the heads: (..., H * W)."""
        normed = nn.functional.layer_norm(x, (self.width,)).flatten(-2) * self.weight.to(x.dtype)
        return normed if self.bias is None else normed + self.bias.to(x.dtype)
