"""Softmax attention, the first baseline."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import check_shapes
from plstm.modules.causal import check_causal_call
from plstm.modules.init import small_init_
from plstm.modules.rotary import coordinates, rotate_positions
from plstm.modules.widths import head_widths


class AttentionState(NamedTuple):
    """Keys, before rotation, and values of the positions seen so far."""

    k: Tensor  # (B, H, L, K)
    v: Tensor  # (B, H, L, V)


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention over any number of position axes, quadratic in their product.

    y = softmax(q k^T / sqrt(K)) v

    Args:
        dim: Model width.
        num_heads: Number of heads.
        causal: Only look back; for sequences.
        rotary: Turn q and k by their coordinates (rotary position code); without it the layer knows
            no order.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, dim / num_heads if None.
        bias: Biases of q, k and v.

    Raises:
        ValueError: widths do not divide; causal with more than one position axis; state without
            causal.

    Source: arXiv 1706.03762.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        causal: bool = False,
        rotary: bool = False,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.rotary = num_heads, causal, rotary
        self.qk_dim, self.v_dim = head_widths("SoftmaxAttention", dim, num_heads, qk_dim, v_dim)
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim, bias)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            small_init_(linear)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, AttentionState]:
        """Map x (B, *positions, dim) to the same shape; causal ones take and return a state."""
        check_shapes("SoftmaxAttention", x=(x, f"B ... {self.out_proj.out_features}"))
        axes = x.shape[1:-1]
        check_causal_call("SoftmaxAttention", self.causal, x, return_state or state is not None)
        q, k, v = (
            rearrange(proj(x).flatten(1, -2), "b l (h w) -> b h l w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is not None:
            k, v = torch.cat([state.k.to(k.dtype), k], 2), torch.cat([state.v.to(v.dtype), v], 2)
        y = rearrange(self._attend(q, k, v, axes), "b h l w -> b l (h w)")
        y = self.out_proj(y).unflatten(1, axes)
        return (y, AttentionState(k, v)) if return_state else y

    def step(self, x: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        """Decode one position x (B, dim); cost and state grow with the positions seen."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, axes: torch.Size) -> Tensor:
        seen = k.shape[2] - q.shape[2]  # positions before this call
        if self.rotary:
            sizes = (k.shape[2],) if len(axes) == 1 else axes
            positions = coordinates(sizes, q.device)
            q, k = rotate_positions(q, positions[seen:]), rotate_positions(k, positions)
        mask = None
        if self.causal and seen:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(seen)
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal and not seen
        )
