"""Softmax attention, the main baseline."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from plstm.checks import check_shapes, check_valid
from plstm.compiler import disable
from plstm.modules.causal import check_causal_call
from plstm.modules.init import small_init_
from plstm.modules.rotary import coordinates, rotate_positions
from plstm.modules.widths import head_widths
from plstm.ops.packed import CuSeqlens, Packing, as_packing, check_states


class AttentionState(NamedTuple):
    """Keys (before rotation) and values so far; L is the length of the longest sequence."""

    k: Tensor  # (B, L, H, K)
    v: Tensor  # (B, L, H, V)
    empty: Tensor | None = None  # padding before shorter sequences, (B,); None for none


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention over any number of position axes, quadratic in the positions.

    y = softmax(q k^T / sqrt(K)) v

    Args:
        dim: Model width.
        num_heads: Number of heads.
        causal: Attend only to earlier positions; for sequences.
        rotary: Apply rotary position embeddings to q and k; without them the layer ignores order,
            except for causality.
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
        """Initialize the parameters."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            small_init_(linear)

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, AttentionState]:
        """Map x (B, *positions, dim) to the same shape; if causal, with an optional state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        Positions where valid (B, *positions) is False hold no token: nothing attends to them, and
        their output is 0.
        """
        check_shapes("SoftmaxAttention", x=(x, f"B ... {self.out_proj.out_features}"))
        axes = x.shape[1:-1]
        has_state = return_state or state is not None
        check_causal_call("SoftmaxAttention", self.causal, x, has_state, cu_seqlens)
        if valid is not None:
            self._check_valid(valid, x, has_state or cu_seqlens is not None)
            x = x.masked_fill(~valid[..., None], 0)
        q, k, v = (
            rearrange(proj(x).flatten(1, -2), "b l (h w) -> b l h w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        packing = as_packing("SoftmaxAttention", cu_seqlens, x)
        if packing is not None:
            y, state = self._attend_packed(q, k, v, state, packing)
        else:
            state = _extended(state, k, v)
            y = self._attend(q, state, axes, valid)
        y = self.out_proj(y.flatten(2)).unflatten(1, axes)
        if valid is not None:
            y = y.masked_fill(~valid[..., None], 0)
        return (y, state) if return_state else y

    def step(self, x: Tensor, state: AttentionState | None = None) -> tuple[Tensor, AttentionState]:
        """Process one position x (B, dim); cost and state grow with the number of positions."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def _check_valid(self, valid: Tensor, x: Tensor, by_state: bool) -> None:
        check_valid("SoftmaxAttention", valid, x.shape[:-1], x.device)
        if by_state:
            raise ValueError(
                "SoftmaxAttention: valid cannot be combined with states or cu_seqlens, because a "
                "state does not store which positions are valid; leave one of them out"
            )

    @disable  # shapes change with every batch
    def _attend_packed(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState | None, packing: Packing
    ) -> tuple[Tensor, AttentionState]:
        """Each sequence in its own row; causality hides the padding after it."""
        if state is not None:
            check_states("SoftmaxAttention", state.k, packing.num_sequences)
        outs = []
        padded = (packing.pad(x) for x in (q, k, v))
        for (rows, length), *qkv in zip(packing.groups, *padded, strict=True):
            before = None if state is None else AttentionState(*(x[rows] for x in _full(state)))
            outs.append(self._attend(qkv[0], _extended(before, *qkv[1:]), (length,)))
        return packing.unpad(outs), _extended_packed(state, k, v, packing)

    def _attend(
        self,
        q: Tensor,
        state: AttentionState,
        axes: Sequence[int],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Attention (B, L, H, V) of queries q (B, L, H, K) for the last L keys of `state`."""
        q, k, v = (x.transpose(1, 2) for x in (q, state.k, state.v))
        seen = k.shape[2] - q.shape[2]  # positions before this call
        if self.rotary:
            sizes = (k.shape[2],) if len(axes) == 1 else axes
            positions = coordinates(sizes, q.device)
            if state.empty is not None:
                positions = positions - state.empty[:, None, None]
            q, k = rotate_positions(q, positions[..., seen:, :]), rotate_positions(k, positions)
        mask = None
        if self.causal and (seen or valid is not None):
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(seen)
            if state.empty is not None:
                places = torch.arange(k.shape[2], device=q.device)
                mask = mask & (places >= state.empty[:, None])[:, None, None]
        if valid is not None:
            keys = valid.flatten(1)[:, None, None]
            mask = keys if mask is None else mask & keys
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal and mask is None
        )
        return y.transpose(1, 2)


def _extended(state: AttentionState | None, k: Tensor, v: Tensor) -> AttentionState:
    """The state after keys and values (B, L, H, width)."""
    if state is None:
        return AttentionState(k, v)
    k, v = torch.cat([state.k.to(k.dtype), k], 1), torch.cat([state.v.to(v.dtype), v], 1)
    return AttentionState(k, v, state.empty)


def _extended_packed(
    state: AttentionState | None, k: Tensor, v: Tensor, packing: Packing
) -> AttentionState:
    """States after packed keys and values (1, total, H, width), padded in front."""
    lengths = packing.lengths.tolist()
    k, v = list(k[0].split(lengths)), list(v[0].split(lengths))
    if state is not None:
        for i, (old_k, old_v, empty) in enumerate(zip(*_full(state), strict=True)):
            k[i] = torch.cat([old_k[empty:].to(k[i].dtype), k[i]])
            v[i] = torch.cat([old_v[empty:].to(v[i].dtype), v[i]])
    places = torch.tensor([len(x) for x in k], device=packing.cu_seqlens.device)
    k, v = (pad_sequence(x, batch_first=True, padding_side="left") for x in (k, v))
    return AttentionState(k, v, k.shape[1] - places)


def _full(state: AttentionState) -> tuple[Tensor, Tensor, Tensor]:
    """The state with `empty` as a tensor."""
    k, v, empty = state
    return k, v, torch.zeros(len(k), dtype=torch.int64, device=k.device) if empty is None else empty
