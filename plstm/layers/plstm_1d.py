"""pLSTM layer for sequences."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_positive, check_shapes, without_autocast
from plstm.modules.block_diagonal import BlockDiagonal
from plstm.modules.conv import CausalConv1d
from plstm.modules.init import constant_gate_, small_init_
from plstm.modules.norm import HeadRMSNorm, RMSNorm
from plstm.ops.packed import CuSeqlens, Packing, as_packing
from plstm.ops.plstm_1d import plstm_1d


class PLSTM1dState(NamedTuple):
    """What the layer carries from one position to the next."""

    memory: Tensor  # (B, H, K, V), or (B, H, K, V, J) with lanes
    window: Tensor  # last inputs of the convolution, (B, conv_width - 1, width)


class PLSTM1d(nn.Module):
    """Linear recurrent mixer along a sequence, causal, linear in its length.

        u, z = W_up x,   c = silu(conv(u)),   q, k, v = blockdiagonal(c)
        r_t = scale * (M_t C_{t-1}^T q_t + D_t (q_t . k_t) v_t),   C_t = T_t C_{t-1} + S_t k_t v_t^T
        y = W_out (norm(headnorm(r) + skip * c) * silu(z))

    with S, M, D = sigmoid and T = tanh(5 z) of linear maps of c. With `lanes` = J > 1 the values
    of a head are split over J lanes, S, M and D are J x J, and T_t = U_t diag(tanh(5 z_t)) W_t with
    U and W orthogonal (matrix exponentials of skew-symmetric maps of c): the form that can track
    state. `expansion` = 0 is the plain layer, y = W_out headnorm(r) with dense maps of x to q, k
    and v, where the convolution reaches q, k and the gates.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        expansion: Width of u and z over dim; 0 for the plain layer.
        qk_dim: Key width per head, v_dim if None.
        v_dim: Value width per head, all lanes together; expansion * dim / num_heads if None.
        lanes: States per edge, J.
        conv_width: Width of the causal depthwise convolution; 0 leaves it out.
        block_width: Channels of c in one diagonal block of the maps to q, k and v.
        source_bias: Logit of the source gate at the start.
        mark_bias: Logit of the mark gate at the start.
        direct_bias: Logit of the direct gate at the start.
        transition_bias: z at the start; of the first and the last head with evenly spaced values
            between, or one number for all heads.
        backend: See `plstm.ops.plstm_1d`.

    Raises:
        ValueError: widths do not divide.

    Source: arXiv 2506.11997; state tracking after arXiv 2404.08819. Beyond its appendix v comes
    from c as q and k do, the sum with the skip is normalised again, and the transitions are spread
    over the heads: at z = 1, T starts at 0.9999 and hardly moves.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expansion: int = 2,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        lanes: int = 1,
        conv_width: int = 4,
        block_width: int = 4,
        source_bias: float = 0.0,
        mark_bias: float = 0.0,
        direct_bias: float = -5.0,
        transition_bias: float | tuple[float, float] = (0.2, 0.6),
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.lanes, self.backend = dim, num_heads, lanes, backend
        self.expanded = expansion > 0
        inner = max(expansion, 1) * dim
        if num_heads < 1 or expansion < 0 or (v_dim is None and inner % num_heads):
            raise ValueError(
                "PLSTM1d: num_heads must divide expansion * dim (dim for expansion=0), got "
                f"num_heads={num_heads}, expansion={expansion} and dim={dim}; change one or give "
                "v_dim"
            )
        self.v_dim = inner // num_heads if v_dim is None else v_dim
        self.qk_dim = self.v_dim if qk_dim is None else qk_dim
        check_positive("PLSTM1d", dim=dim, qk_dim=self.qk_dim, v_dim=self.v_dim)
        if lanes < 1 or self.v_dim % lanes:
            raise ValueError(
                f"PLSTM1d: lanes must divide the value width per head, got lanes={lanes} and "
                f"v_dim={self.v_dim}; change one of them"
            )
        values, keys = num_heads * self.v_dim, num_heads * self.qk_dim
        width = values if self.expanded else dim  # of what the gates see
        self.conv = CausalConv1d(width, conv_width) if conv_width else None
        if self.expanded:
            self.up_proj = nn.Linear(dim, 2 * values, bias=False)
            self.skip = nn.Parameter(torch.empty(values))
            self.inner_norm = RMSNorm(values)
            self.q_proj, self.k_proj, self.v_proj = (
                BlockDiagonal(values, size, block_width) for size in (keys, keys, values)
            )
        else:
            self.q_proj, self.k_proj, self.v_proj = (
                nn.Linear(dim, size) for size in (keys, keys, values)
            )
        self.out_proj = nn.Linear(values, dim, bias=False)
        # source, mark, direct and transition in one product
        self.gate_sizes = [num_heads * lanes**2] * 3 + [num_heads * lanes]
        self.gate_proj = nn.Linear(width, sum(self.gate_sizes))
        self.rotation_proj = nn.Linear(width, 2 * num_heads * lanes**2) if lanes > 1 else None
        self.norm = HeadRMSNorm(num_heads, self.v_dim)
        self.biases = (source_bias, mark_bias, direct_bias)
        one = isinstance(transition_bias, int | float)
        self.transition_bias = (transition_bias, transition_bias) if one else transition_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        small_init_(self.out_proj)
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(proj.weight, std=math.sqrt(2 / (5 * self.dim)))
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if self.expanded:
            small_init_(self.up_proj)
            nn.init.ones_(self.skip)
            self.inner_norm.reset_parameters()
        constant_gate_(self.gate_proj)
        *gates, transition = self.gate_proj.bias.split(self.gate_sizes)
        for part, bias in zip(gates, self.biases, strict=True):
            nn.init.constant_(part, bias)
        spread = torch.linspace(*self.transition_bias, self.num_heads)
        with torch.no_grad():
            transition.copy_(spread.repeat_interleave(self.lanes))
        if self.rotation_proj is not None:
            constant_gate_(self.rotation_proj)
            nn.init.normal_(self.rotation_proj.bias)  # lanes must differ, or they stay alike
        if self.conv is not None:
            self.conv.reset_parameters()
        self.norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: PLSTM1dState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, PLSTM1dState]:
        """Map x (B, L, dim) to the same shape, from `state` on; return the next on request.

        Packed sequences, x (1, total, dim) with cu_seqlens, have one state each: S in place of B.
        """
        check_shapes("PLSTM1d", x=(x, f"B L {self.dim}"))
        packing = as_packing("PLSTM1d", cu_seqlens, x)
        x, gate = self.up_proj(x).chunk(2, -1) if self.expanded else (x, None)
        mixed, window = self._mixed(x, state.window if state is not None else None, packing)
        y, memory = plstm_1d(
            *self._inputs(x, mixed),
            state=state.memory if state is not None else None,
            return_state=True,
            backend=self.backend,
            cu_seqlens=packing,
        )
        y = self.norm(y.flatten(3) if self.lanes > 1 else y)
        if self.expanded:
            y = self.inner_norm(torch.addcmul(y, self.skip.to(y.dtype), mixed))
            y = y * nn.functional.silu(gate)
        y = self.out_proj(y)
        if window is None:  # without a convolution
            window = x.new_empty(memory.shape[0], 0, x.shape[2])
        return (y, PLSTM1dState(memory, window)) if return_state else y

    def step(self, x: Tensor, state: PLSTM1dState | None = None) -> tuple[Tensor, PLSTM1dState]:
        """Decode one position x (B, dim); the same numbers as forward, in constant time."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Numbers carried per sequence."""
        memory = self.num_heads * self.qk_dim * self.v_dim
        return memory + (self.conv.window_size() if self.conv is not None else 0)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Activated source, transition, mark and direct of x (B, L, dim), as in the op."""
        if self.expanded:
            x = self.up_proj(x).chunk(2, -1)[0]
        return self._inputs(x, self._mixed(x, None)[0])[3:]

    def _mixed(
        self, x: Tensor, window: Tensor | None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What q, k and the gates are computed from, and the next window."""
        if self.conv is None:
            return x, window
        mixed, window = self.conv(x, window, packing)
        return nn.functional.silu(mixed) if self.expanded else mixed, window

    def _inputs(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and the activated gates in the shapes of the op."""
        q, k = (
            rearrange(proj(mixed), "b l (h k) -> b l h k", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj)
        )
        v = self.v_proj(mixed if self.expanded else x)
        logits = self.gate_proj(mixed)
        logits = logits.to(accumulation_dtype(logits))  # bfloat16 cannot tell 0.999 from 1
        source, mark, direct, transition = logits.split(self.gate_sizes, -1)
        source, mark, direct = (torch.sigmoid(logits) for logits in (source, mark, direct))
        transition = torch.tanh(5 * transition)
        if self.lanes == 1:
            v = rearrange(v, "b l (h v) -> b l h v", h=self.num_heads)
            return q, k, v, source, transition, mark, direct
        shape = {"h": self.num_heads, "i": self.lanes}
        v = rearrange(v, "b l (h v i) -> b l h v i", **shape)
        source, mark, direct = (
            rearrange(x, "b l (h j i) -> b l h j i", **shape) for x in (source, mark, direct)
        )
        return q, k, v, source, self._lane_transition(mixed, transition), mark, direct

    def _lane_transition(self, mixed: Tensor, decay: Tensor) -> Tensor:
        """U diag(decay) W with orthogonal U and W, (B, L, H, J, J); spectral norm at most 1."""
        shape = {"h": self.num_heads, "i": self.lanes}
        # Rounded angles would turn the lanes of a long product.
        with without_autocast(mixed.device):
            free = self.rotation_proj(mixed.to(self.rotation_proj.weight.dtype))
            free = free.to(accumulation_dtype(free))
            free = rearrange(free, "b l (two h j i) -> two b l h j i", two=2, **shape)
            u, w = torch.matrix_exp(((free - free.mT) / 2).contiguous())
        decay = rearrange(decay, "b l (h i) -> b l h 1 i", **shape).to(u.dtype)
        return (u * decay) @ w
