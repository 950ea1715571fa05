"""RetNet: multi-scale retention."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import check_shapes
from plstm.modules.causal import token_positions
from plstm.modules.rotary import rotate_positions
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens, as_packing


class RetNetState(NamedTuple):
    """Recurrent state of the layer."""

    memory: Tensor  # (B, H, K, V)
    seen: Tensor  # positions so far, for the rotation, (B,)


class RetNet(nn.Module):
    """Retention: causal linear attention with rotated q and k and a fixed decay per head.

    S_t = gamma S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K),   gamma_h = 1 - 2^(-5-h)
    y_t = W_o (norm(o_t) * silu(W_g x_t))

    for heads h = 0 to H - 1, each with an RMS norm without a scale. The norm cancels the score
    normalizations of the paper, so they are omitted. Cost O(L H K V); the state has H K V elements
    plus the position.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        rotary: Apply rotary position embeddings to q and k.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, 2 dim / num_heads if None.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; with rotary, the key width is odd.

    Source: arXiv 2307.08621, equations 5 to 8; norm and initialization as in its code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        rotary: bool = True,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_heads, self.rotary, self.backend = num_heads, rotary, backend
        self.qk_dim, width = head_widths("RetNet", dim, num_heads, qk_dim, v_dim)
        self.v_dim = 2 * width if v_dim is None else width
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim, bias=False)
        self.gate_proj = nn.Linear(dim, num_heads * self.v_dim, bias=False)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim, bias=False)
        self.register_buffer("log_decay", torch.empty(num_heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters and compute the decays."""
        heads = torch.arange(self.num_heads, device=self.log_decay.device)
        self.log_decay.copy_(torch.log1p(-(2.0 ** (-5 - heads))))
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.gate_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(
        self,
        x: Tensor,
        state: RetNetState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, RetNetState]:
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("RetNet", x=(x, f"B L {self.out_proj.out_features}"))
        packing = as_packing("RetNet", cu_seqlens, x)
        q, k, v = (
            rearrange(proj(x), "b l (h w) -> b h l w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        memory, seen = state if state is not None else (None, None)
        positions, seen = token_positions("RetNet", x, seen, packing)
        if self.rotary:
            q, k = (rotate_positions(part, positions[..., None]) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out, memory = gated_linear_attention(
            q,
            k,
            v,
            self.log_decay.expand(q.shape[:3]),
            state=memory,
            return_state=True,
            backend=self.backend,
            cu_seqlens=packing,
        )
        out = nn.functional.rms_norm(out, (self.v_dim,), eps=1e-5).flatten(2)
        y = self.out_proj(out * nn.functional.silu(self.gate_proj(x)))
        return (y, RetNetState(memory, seen)) if return_state else y

    def step(self, x: Tensor, state: RetNetState | None = None) -> tuple[Tensor, RetNetState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * self.v_dim
