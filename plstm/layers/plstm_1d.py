"""pLSTM layer for sequences."""

import math
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_positive, check_shapes, without_autocast
from plstm.modules.block_diagonal import BlockDiagonal
from plstm.modules.conv import CausalConv1d
from plstm.modules.init import constant_gate_, small_init_
from plstm.modules.norm import HeadRMSNorm, RMSNorm
from plstm.modules.orthogonal import orthogonal
from plstm.ops.packed import CuSeqlens, Packing, as_packing
from plstm.ops.plstm_1d import plstm_1d


class PLSTM1dState(NamedTuple):
    """Recurrent state of the layer."""

    memory: Tensor  # (B, H, K, V), or (B, H, K, V, J) with lanes
    window: Tensor  # last inputs of the convolution, (B, conv_width - 1, width)


class PLSTM1d(nn.Module):
    """Causal linear recurrent mixer for sequences, linear in the length.

        u, z = W_up x,   c = silu(conv(u)),   q, k, v = blockdiagonal(c)
        r_t = scale * (M_t C_{t-1}^T q_t + D_t (q_t . k_t) v_t),   C_t = T_t C_{t-1} + S_t k_t v_t^T
        y = W_out (norm(headnorm(r) + skip * c) * silu(z))

    with S, M, D = sigmoid and T = tanh(5 z) of linear maps of c. `expansion` = 0 selects the plain
    layer, y = W_out headnorm(r) with dense maps of x to q, k and v, where the convolution applies
    to the inputs of q, k and the gates.

    With `lanes` = J > 1, for state tracking, the values of a head are split over J lanes that a
    matrix mixes:

        T_t = tanh(5 z_t) O_t
        r_t = scale * (M_t C_t^T q_t + D_t (q_t . k_t) v_t)

    O_t is the orthogonal matrix nearest to a J x J linear map of c, with a straight-through
    gradient, see `plstm.modules.orthogonal`: a rotation or a reflection. The memory starts at a
    learned k_0 v_0^T, since rotation leaves zeros unchanged, and is read after the update.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        expansion: Width of u and z relative to dim; 0 for the plain layer.
        qk_dim: Key width per head, v_dim if None; 0 for q = k = 1, a memory without keys.
        v_dim: Value width per head, over all lanes; expansion * dim / num_heads if None.
        lanes: States per edge, J.
        conv_width: Width of the causal depthwise convolution; 0 for none.
        block_width: Channels of c in one diagonal block of the maps to q, k and v.
        source_bias: Initial logit of the source gate.
        mark_bias: Initial logit of the mark gate.
        direct_bias: Initial logit of the direct gate.
        transition_bias: Initial z: the values of the first and the last head, evenly spaced in
            between, or one value for all heads.
        backend: See `plstm.ops.plstm_1d`.

    Raises:
        ValueError: widths do not divide.

    Source: arXiv 2506.11997; state tracking as in arXiv 2404.08819. Unlike its appendix, v comes
    from c like q and k, the sum with the skip is normalized again, and the initial transitions are
    spread over the heads: with z = 1, T starts at 0.9999 and hardly changes.
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
        check_positive("PLSTM1d", dim=dim, v_dim=self.v_dim)
        if self.qk_dim < 0:
            raise ValueError(
                f"PLSTM1d: qk_dim must be 0 or more, got {self.qk_dim}; 0 means no keys"
            )
        if lanes < 1 or self.v_dim % lanes:
            raise ValueError(
                f"PLSTM1d: lanes must divide the value width per head, got lanes={lanes} and "
                f"v_dim={self.v_dim}; change one of them"
            )
        values, keys = num_heads * self.v_dim, num_heads * self.qk_dim
        width = values if self.expanded else dim  # input width of the gates
        self.conv = CausalConv1d(width, conv_width) if conv_width else None
        linear = nn.Linear
        if self.expanded:
            self.up_proj = nn.Linear(dim, 2 * values, bias=False)
            self.skip = nn.Parameter(torch.empty(values))
            self.inner_norm = RMSNorm(values)
            linear = partial(BlockDiagonal, block_width=block_width)
        self.v_proj = linear(width, values)
        self.q_proj, self.k_proj = (linear(width, keys) if keys else None for _ in range(2))
        self.out_proj = nn.Linear(values, dim, bias=False)
        # source, mark, direct and transition in one product
        self.gate_proj = nn.Linear(width, 4 * num_heads)
        if lanes > 1:
            self.mixing_proj = nn.Linear(width, num_heads * lanes**2)
            self.first_key = nn.Parameter(torch.empty(num_heads, max(self.qk_dim, 1), 1, 1))
            self.first_value = nn.Parameter(torch.empty(num_heads, 1, self.v_dim // lanes, lanes))
        self.norm = HeadRMSNorm(num_heads, self.v_dim)
        self.biases = (source_bias, mark_bias, direct_bias)
        one = isinstance(transition_bias, int | float)
        self.transition_bias = (transition_bias, transition_bias) if one else transition_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        small_init_(self.out_proj)
        for proj in filter(None, (self.q_proj, self.k_proj, self.v_proj)):
            nn.init.normal_(proj.weight, std=math.sqrt(2 / (5 * self.dim)))
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if self.expanded:
            small_init_(self.up_proj)
            nn.init.ones_(self.skip)
            self.inner_norm.reset_parameters()
        constant_gate_(self.gate_proj)
        *gates, transition = self.gate_proj.bias.chunk(4)
        for part, bias in zip(gates, self.biases, strict=True):
            nn.init.constant_(part, bias)
        with torch.no_grad():
            transition.copy_(torch.linspace(*self.transition_bias, self.num_heads))
        if self.lanes > 1:
            nn.init.normal_(self.mixing_proj.weight, std=self.mixing_proj.in_features**-0.5)
            nn.init.zeros_(self.mixing_proj.bias)
            nn.init.normal_(self.first_key)
            nn.init.normal_(self.first_value)
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
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("PLSTM1d", x=(x, f"B L {self.dim}"))
        packing = as_packing("PLSTM1d", cu_seqlens, x)
        x, gate, mixed, window = self._mixed(x, None if state is None else state.window, packing)
        y, memory = plstm_1d(
            *self._inputs(x, mixed),
            state=self._first_memory(x, packing) if state is None else state.memory,
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
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        memory = self.num_heads * max(self.qk_dim, 1) * self.v_dim
        return memory + (self.conv.window_size() if self.conv is not None else 0)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Activated source, transition, mark and direct of x (B, L, dim), as in the op."""
        x, _, mixed, _ = self._mixed(x, None)
        return self._inputs(x, mixed)[3:]

    def _mixed(
        self, x: Tensor, window: Tensor | None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """u and z, the input of q, k and the gates, and the new window."""
        if self.lanes == 1:
            return self._convolved(x, window, packing)
        with without_autocast(x.device):  # rounding can turn a rotation into a reflection
            return self._convolved(x.to(self.gate_proj.weight.dtype), window, packing)

    def _convolved(
        self, x: Tensor, window: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        x, gate = self.up_proj(x).chunk(2, -1) if self.expanded else (x, None)
        if self.conv is None:
            return x, gate, x, window
        mixed, window = self.conv(x, window, packing)
        return x, gate, nn.functional.silu(mixed) if self.expanded else mixed, window

    def _inputs(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and the activated gates in the shapes of `plstm_1d`."""
        q, k = self._keys(mixed, self.q_proj), self._keys(mixed, self.k_proj)
        v = self.v_proj(mixed if self.expanded else x)
        logits = self.gate_proj(mixed)
        logits = logits.to(accumulation_dtype(logits))  # bfloat16 rounds 0.999 to 1
        source, mark, direct, transition = logits.chunk(4, -1)
        source, mark, direct = (torch.sigmoid(logits) for logits in (source, mark, direct))
        transition = torch.tanh(5 * transition)
        if self.lanes == 1:
            v = rearrange(v, "b l (h v) -> b l h v", h=self.num_heads)
            return q, k, v, source, transition, mark, direct
        v = rearrange(v, "b l (h v i) -> b l h v i", h=self.num_heads, i=self.lanes)
        source, mark, direct, transition = (
            gate[..., None, None] for gate in (source, mark, direct, transition)
        )
        transition = transition * self._mixing(mixed)
        direct = direct + mark * source  # M_t C_t = M_t T_t C_{t-1} + M_t S_t k_t v_t^T
        one = torch.eye(self.lanes, dtype=source.dtype, device=source.device)
        return q, k, v, source * one, transition, mark * transition, direct * one

    def _keys(self, x: Tensor, proj: nn.Module | None) -> Tensor:
        """Queries or keys, (B, L, H, K)."""
        if proj is None:
            return x.new_ones(*x.shape[:2], self.num_heads, 1)
        return rearrange(proj(x), "b l (h k) -> b l h k", h=self.num_heads)

    def _mixing(self, x: Tensor) -> Tensor:
        """The transitions without their decay, (B, L, H, J, J)."""
        with without_autocast(x.device):  # rounding errors add up in long products
            z = self.mixing_proj(x.to(self.mixing_proj.weight.dtype))
            z = z.to(accumulation_dtype(z))
            shape = {"h": self.num_heads, "i": self.lanes}
            return orthogonal(rearrange(z, "b l (h j i) -> b l h j i", **shape))

    def _first_memory(self, x: Tensor, packing: Packing | None) -> Tensor | None:
        """Initial memory of every sequence; None for zeros."""
        if self.lanes == 1:
            return None
        sequences = x.shape[0] if packing is None else packing.num_sequences
        return (self.first_key * self.first_value).expand(sequences, -1, -1, -1, -1)
