"""LightNet: linear attention with additive decay."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_choice, check_shapes, without_autocast
from plstm.modules.causal import check_causal_call, token_positions
from plstm.modules.lrpe import apply_lrpe
from plstm.modules.norm import HeadRMSNorm
from plstm.modules.rotary import coordinates
from plstm.modules.tpe import ToeplitzPosition
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens, as_packing, run_packed


class LightNetState(NamedTuple):
    """Recurrent state of a causal layer."""

    memory: Tensor  # (B, H, K, V), 2 K with cosine encoding
    z: Tensor  # logarithm of the sum of exp(kappa), (B, H, K)
    code: Tensor | None  # sums of the Toeplitz encoding, (B, H, 1, dim / H)
    seen: Tensor  # positions so far, (B,)


class LightNet(nn.Module):
    """Linear attention with keys normalized by a softmax over the positions, per channel.

    O = silu(Q) softmax(kappa)^T V,   y = W_o (norm(O) * sigmoid(x W_1 W_2)),   kappa = x W_k

    with one sum over all positions of any number of axes, or, if causal, over those up to t:

    z_t = log sum_{s<=t} exp(kappa_s),   o_t = S_t^T q_t
    S_t = exp(z_{t-1} - z_t) S_{t-1} + exp(kappa_t - z_t) v_t^T

    The RMS norm is per head; linear maps have no bias. A position costs O(H K V) in both forms. The
    causal state has H (K V + K) elements per sequence (H (2 K V + K) with cosine encoding), and dim
    more with the Toeplitz encoding. Its decay tends to 1 as 1 / t: it has no recency bias.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        causal: Attend only to earlier positions, for sequences. False supports any number of axes.
        lrpe: Position encoding of queries and keys: "none", "cosine" or "rotate" (MD-LRPE). If
            causal, only the cosine form depends on relative positions alone: rotation mixes
            channels with different decays.
        tpe_axes: Position axes of the encoding MD-TPE before all maps, 0 for none. Published models
            apply it once, after the embedding: set it only in the first mixer of a model.
        phantom: Add one position before a sequence, with kappa = 0 and v = 0.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, dim / num_heads if None.
        gate_rank: Rank of the output gate, dim / num_heads if None.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; the encoding is unknown; phantom or a state without
            causal; causal with more than one position axis; the axes are not tpe_axes.

    Source: arXiv 2405.21022, version 1. It leaves gate and norm open; they follow later versions of
    its first author's library xmixers: a sigmoid of rank dim / num_heads after a norm per head.
    Earlier versions use rank num_heads, and gate before a norm over all heads;
    flash-linear-attention uses a SiLU of rank 128 and a norm over all heads. Linear maps start from
    N(0, 0.02^2).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        causal: bool = True,
        lrpe: str = "none",
        tpe_axes: int = 0,
        phantom: bool = False,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        gate_rank: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("LightNet", "lrpe", lrpe, ("none", "cosine", "rotate"))
        self.num_heads, self.causal, self.phantom = num_heads, causal, phantom
        self.lrpe, self.tpe_axes, self.backend = lrpe, tpe_axes, backend
        self.qk_dim, self.v_dim = head_widths("LightNet", dim, num_heads, qk_dim, v_dim)
        self._check_options(dim)
        gate_rank = dim // num_heads if gate_rank is None else gate_rank
        inner = num_heads * self.v_dim
        self.code = ToeplitzPosition(dim, num_heads, tpe_axes) if tpe_axes else None
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.v_proj = nn.Linear(dim, inner, bias=False)
        self.gate_down = nn.Linear(dim, gate_rank, bias=False)
        self.gate_up = nn.Linear(gate_rank, inner, bias=False)
        self.norm = HeadRMSNorm(num_heads, self.v_dim)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
        nn.init.ones_(self.norm.weight)
        if self.code is not None:
            self.code.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: LightNetState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, LightNetState]:
        """Map x (B, *positions, dim) to the same shape; if causal, with an optional state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("LightNet", x=(x, f"B ... {self.out_proj.out_features}"))
        self._check_call(x, return_state or state is not None, cu_seqlens)
        if self.causal:
            y, state = self._causal(x, state, cu_seqlens)
            return (y, state) if return_state else y
        x = self.code(x) if self.code is not None else x
        q, kappa, v = self._qkv(x.flatten(1, -2))
        k = torch.softmax(kappa, 1)
        if self.lrpe != "none":
            positions = coordinates(x.shape[1:-1], x.device)
            q, k = (apply_lrpe(part, positions, self.lrpe) for part in (q, k))
        with without_autocast(x.device):
            memory = torch.einsum("blhk,blhv->bhkv", k, v.to(k.dtype))
            out = torch.einsum("blhk,bhkv->blhv", q.to(k.dtype), memory)
        return self._output(out.to(v.dtype).view(*x.shape[:-1], *out.shape[-2:]), x)

    def step(self, x: Tensor, state: LightNetState | None = None) -> tuple[Tensor, LightNetState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence; 0 if not causal."""
        if not self.causal:
            return 0
        keys = self.num_heads * self.qk_dim
        memory = keys * self.v_dim * (2 if self.lrpe == "cosine" else 1)
        return memory + keys + (self.code.dim if self.code is not None else 0)

    def _causal(
        self, x: Tensor, state: LightNetState | None, cu_seqlens: CuSeqlens | None
    ) -> tuple[Tensor, LightNetState]:
        packing = as_packing("LightNet", cu_seqlens, x)
        memory, z, code, seen = state if state is not None else (None, None, None, None)
        positions, seen = token_positions("LightNet", x, seen, packing)
        if self.code is not None:
            x, code = self.code.forward_with_state(x, code, packing)
        q, kappa, v = self._qkv(x)
        if z is None:
            rows = (*seen.shape, *kappa.shape[2:])
            z = kappa.new_full(rows, 0.0 if self.phantom else -torch.inf)
        if packing is None:
            (k, log_decay), z = additive_decay(kappa, z)
        else:
            neutral = {"kappa": -torch.inf}
            (k, log_decay), z = run_packed(
                "LightNet", additive_decay, packing, {"kappa": kappa}, z, neutral
            )
        if self.lrpe != "none":
            q, k = (apply_lrpe(part, positions[..., None], self.lrpe) for part in (q, k))
            if self.lrpe == "cosine":
                log_decay = torch.cat([log_decay, log_decay], -1)
        out, memory = gated_linear_attention(
            q,
            k,
            v,
            log_decay,
            state=memory,
            return_state=True,
            scale=1.0,
            backend=self.backend,
            cu_seqlens=packing,
        )
        return self._output(out, x), LightNetState(memory, z, code, seen)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, kappa and v, (B, L, H, width); q and kappa in float32 or wider."""
        q, kappa, v = (
            rearrange(proj(x), "b l (h w) -> b l h w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        dtype = accumulation_dtype(kappa)
        return nn.functional.silu(q).to(dtype), kappa.to(dtype), v

    def _output(self, out: Tensor, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate_up(self.gate_down(x)))
        return self.out_proj(self.norm(out) * gate)

    def _check_options(self, dim: int) -> None:
        if (
            (self.tpe_axes and dim % self.num_heads)
            or (self.phantom and not self.causal)
            or (self.lrpe == "rotate" and self.qk_dim % 2)
        ):
            raise ValueError(
                "LightNet: tpe_axes needs dim divisible by num_heads, phantom needs causal=True "
                f'and lrpe="rotate" an even qk_dim, got tpe_axes={self.tpe_axes}, dim={dim}, '
                f"num_heads={self.num_heads}, phantom={self.phantom}, causal={self.causal}, "
                f"lrpe={self.lrpe!r} and qk_dim={self.qk_dim}; change one of them"
            )

    def _check_call(self, x: Tensor, has_state: bool, cu_seqlens: CuSeqlens | None) -> None:
        check_causal_call("LightNet", self.causal, x, has_state, cu_seqlens)
        if self.tpe_axes not in (0, x.ndim - 2):
            raise ValueError(
                f"LightNet: x must have tpe_axes={self.tpe_axes} position axes, got "
                f"{x.ndim - 2}; change tpe_axes"
            )


def additive_decay(kappa: Tensor, state: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Normalized keys exp(kappa_t - z_t) and log decays z_{t-1} - z_t, both exponents at most 0.

    Args:
        kappa: Logarithms of the weights of the positions, (B, L, H, K).
        state: z, the logarithm of the sum of the earlier weights, (B, H, K); -inf for none.

    Returns:
        Keys and log decays, both (B, L, H, K), and the next z.
    """
    after = torch.logaddexp(torch.logcumsumexp(kappa, 1), state[:, None])
    before = torch.cat([state[:, None], after[:, :-1]], 1)
    return ((kappa - after).exp(), before - after), after[:, -1]
