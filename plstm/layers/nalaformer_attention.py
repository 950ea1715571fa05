"""NaLaFormer attention: linear attention that keeps the norm of the query."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_shapes, without_autocast
from plstm.modules.causal import check_causal_call, token_positions
from plstm.modules.rotary import coordinates, rotate
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens, Packing, as_packing, run_packed

KEY_POWER, TAU = 3, 0.5  # lambda and tau of the paper
EPS = 1e-6


class NaLaFormerState(NamedTuple):
    """Recurrent state of a causal layer."""

    memory: Tensor  # (B, H, 2 K, K)
    normalizer: Tensor  # sum of the keys before rotation, (B, H, 2 K)
    seen: Tensor  # positions so far, (B,)


class NaLaFormerAttention(nn.Module):
    """Linear attention with non-negative weights, sharper for queries of larger norm.

    o_n = R_n(f(q_n))^T mean_s R_s(g(k_s)) v_s^T / (f(q_n) . mean_s g(k_s) + 1e-6)
    y = W_o (norm(o + conv5x5(v)) * silu(x W_g))

    with f and g of `norm_aware_features`, rotary position embeddings R and a layer norm; q, k, v
    and the gate come from one linear map. With R, weights may be negative and need not sum to 1. If
    causal, the means become sums over positions up to n (not in the paper). A position costs
    O(dim K) in both forms, K = dim / H; the causal state has 2 H (K^2 + K) elements per sequence.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        causal: Attend only to earlier positions, for sequences. False supports any number of axes.
        rope: Rotate the features in the numerator, channels split evenly between the axes; pairs
            are (i, i + W/2) instead of adjacent channels, which only permutes channels.
        lepe: Add a depthwise 5 x 5 convolution of v; for grids.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; lepe with causal or without a grid; state without causal;
            causal with more than one position axis.

    Source: arXiv 2506.21137 and its code. PyTorch's default initialization of linear maps; the
    convolution starts from N(0, 0.02^2), truncated at 2, with bias 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        causal: bool = False,
        rope: bool = True,
        lepe: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.width, _ = head_widths("NaLaFormerAttention", dim, num_heads)
        if causal and lepe:
            raise ValueError(
                "NaLaFormerAttention: lepe=True looks ahead and needs a grid, got causal=True; "
                "set lepe to false"
            )
        self.num_heads, self.causal, self.rope, self.backend = num_heads, causal, rope, backend
        self.in_proj = nn.Linear(dim, 4 * dim)  # q, k, v and gate
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim) if lepe else None
        self.norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for part in (self.in_proj, self.norm, self.out_proj):
            part.reset_parameters()
        if self.lepe is not None:
            nn.init.trunc_normal_(self.lepe.weight, std=0.02)
            nn.init.zeros_(self.lepe.bias)

    def forward(
        self,
        x: Tensor,
        state: NaLaFormerState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, NaLaFormerState]:
        """Map x (B, *positions, dim) to the same shape; if causal, with an optional state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("NaLaFormerAttention", x=(x, f"B ... {self.out_proj.out_features}"))
        axes = x.shape[1:-1]
        has_state = return_state or state is not None
        check_causal_call("NaLaFormerAttention", self.causal, x, has_state, cu_seqlens)
        packing = as_packing("NaLaFormerAttention", cu_seqlens, x)
        self._check_axes(axes)
        *qkv, gate = self.in_proj(x).chunk(4, -1)
        v = qkv[2]
        q, k, heads = (
            rearrange(part.flatten(1, -2), "b l (h k) -> b l h k", h=self.num_heads) for part in qkv
        )
        with without_autocast(x.device):
            q, k = norm_aware_features(q, k)
            if self.causal:
                y, state = self._look_back(q, k, heads.to(q.dtype), state, packing)
            else:
                positions = coordinates(axes, x.device)
                turned = [self._turn(part, positions) for part in (q, k)]
                y = _whole(q, k, *turned, heads.to(q.dtype))
        y = y.to(v.dtype).flatten(2).view(v.shape)
        if self.lepe is not None:
            y = y + self.lepe(v.movedim(-1, 1)).movedim(1, -1)
        y = self.norm(y).to(v.dtype)
        y = self.out_proj(y * nn.functional.silu(gate))
        return (y, state) if return_state else y

    def step(
        self, x: Tensor, state: NaLaFormerState | None = None
    ) -> tuple[Tensor, NaLaFormerState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence; 0 if not causal."""
        return 2 * self.num_heads * self.width * (self.width + 1) if self.causal else 0

    def _look_back(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: NaLaFormerState | None,
        packing: Packing | None,
    ) -> tuple[Tensor, NaLaFormerState]:
        memory, normalizer, seen = state if state is not None else (None, None, None)
        positions, seen = token_positions("NaLaFormerAttention", q, seen, packing)
        turned = (self._turn(part, positions[..., None]) for part in (q, k))
        options = {"scale": 1.0, "backend": self.backend, "cu_seqlens": packing}
        out, memory = gated_linear_attention(*turned, v, state=memory, return_state=True, **options)
        if packing is None:
            sums, normalizer = _running_sum(k, normalizer)
        else:
            sums, normalizer = run_packed(
                "NaLaFormerAttention", _running_sum, packing, {"x": k}, normalizer
            )
        total = (q * sums).sum(-1, keepdim=True)
        return out / (total + EPS), NaLaFormerState(memory, normalizer, seen)

    def _turn(self, features: Tensor, positions: Tensor) -> Tensor:
        """Rotate both halves of features (B, L, H, 2 K) at positions ([B,] L, axes)."""
        if not self.rope:
            return features
        axes = positions.shape[-1]
        pairs = self.width // (2 * axes)
        exponents = torch.linspace(0, 1, pairs, device=features.device, dtype=features.dtype)
        positions = positions.to(features.dtype)[..., None, None, :, None]
        angles = positions * 10_000.0**-exponents  # (L, 1, 1, axes, pairs)
        parts = features.unflatten(-1, (2, axes, 2 * pairs))
        return rotate(parts, angles).flatten(-3)

    def _check_axes(self, sizes: torch.Size) -> None:
        axes = len(sizes)
        if self.lepe is not None and axes != 2:
            raise ValueError(
                f"NaLaFormerAttention: lepe needs two position axes, got {axes}; set it to false"
            )
        if self.lepe is not None and 0 in sizes:
            raise ValueError(
                f"NaLaFormerAttention: the grid must not be empty, got positions {tuple(sizes)}"
            )
        if self.rope and self.width % (2 * axes):
            raise ValueError(
                f"NaLaFormerAttention: rope needs a width per head divisible by {2 * axes} for "
                f"{axes} position axes, got {self.width}; change num_heads or set rope to false"
            )


def norm_aware_features(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Features of queries and keys with f(q) . g(k) >= 0, split by sign.

    f(q) = (relu(q / r)^p, relu(-q / r)^p),   r = sqrt(|q|^2 + 1e-6),   p = 3 (1/2 + tanh r)
    g(k) = (relu(k)^3, relu(-k)^3)

    so f(q) . g(k) sums |q_i / r|^p |k_i|^3 over the channels where q and k have equal signs.

    Args:
        q: Queries, (..., K).
        k: Keys, (..., K).

    Returns:
        Both features, (..., 2 K), in float32 or wider.
    """
    dtype = accumulation_dtype(q, k)
    q, k = q.to(dtype), k.to(dtype)
    norm = (q.square().sum(-1, keepdim=True) + EPS).sqrt()
    power = KEY_POWER * (TAU + norm.tanh())
    q = q / norm
    q = torch.cat([q.relu(), (-q).relu()], -1).pow(power)
    return q, torch.cat([k.relu(), (-k).relu()], -1).pow(KEY_POWER)


def _running_sum(x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cumulative sums of x (B, L, ...) starting from `state`, and the last one."""
    sums = x.cumsum(1) if state is None else x.cumsum(1) + state[:, None]
    return sums, sums[:, -1]


def _whole(q: Tensor, k: Tensor, turned_q: Tensor, turned_k: Tensor, v: Tensor) -> Tensor:
    """Attention over all positions, (B, L, H, V)."""
    memory = torch.einsum("blhk,blhv->bhkv", turned_k, v) / k.shape[1]
    total = torch.einsum("blhk,bhk->blh", q, k.mean(1))[..., None]
    return torch.einsum("blhk,bhkv->blhv", turned_q, memory) / (total + EPS)
