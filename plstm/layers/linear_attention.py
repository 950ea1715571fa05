"""Linear attention, normalized by the sum of its weights."""

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_shapes, without_autocast
from plstm.modules.causal import MemoryState, check_causal_call
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens


class LinearAttention(nn.Module):
    """Attention with weights from positive features, linear in the number of positions.

    y_t = sum_s w_ts v_s / (sum_s w_ts + eps),   w_ts = phi(q_t) . phi(k_s),   phi(z) = elu(z) + 1

    The sums run over s <= t if causal, else over all positions of all axes. Otherwise the layer
    ignores order. Cost O(L H K V); the causal state has H K (V + 1) elements.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        causal: Attend only to earlier positions; for sequences.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, dim / num_heads if None.
        eps: Added to the sum of weights.
        backend: Backend of the causal sums, see `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; causal with more than one position axis; state without
            causal.

    Source: arXiv 2006.16236, equations 5 to 12; biases, eps and initialization (PyTorch's for
    linear maps) as in its code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        causal: bool = True,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        eps: float = 1e-6,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.eps, self.backend = num_heads, causal, eps, backend
        self.qk_dim, self.v_dim = head_widths("LinearAttention", dim, num_heads, qk_dim, v_dim)
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim)

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            linear.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, MemoryState]:
        """Map x (B, *positions, dim) to the same shape; if causal, with an optional state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("LinearAttention", x=(x, f"B ... {self.out_proj.out_features}"))
        axes = x.shape[1:-1]
        has_state = return_state or state is not None
        check_causal_call("LinearAttention", self.causal, x, has_state, cu_seqlens)
        q, k, v = (
            rearrange(proj(x).flatten(1, -2), "b l (h w) -> b l h w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y, memory = self._attend(q, k, v, state.memory if state is not None else None, cu_seqlens)
        y = self.out_proj(y.to(v.dtype).flatten(2)).unflatten(1, axes)
        return (y, MemoryState(memory)) if return_state else y

    def step(self, x: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * (self.v_dim + 1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        memory: Tensor | None,
        cu_seqlens: CuSeqlens | None,
    ) -> tuple[Tensor, Tensor]:
        """Normalized sums (B, L, H, V), and the sums of phi(k) [v, 1]^T, (B, H, K, V + 1)."""
        dtype = accumulation_dtype(q, k, v)
        with without_autocast(q.device):
            q, k = _features(q.to(dtype)), _features(k.to(dtype))
            v = nn.functional.pad(v.to(dtype), (0, 1), value=1.0)  # the ones sum the weights
            if self.causal:
                options = {"scale": 1.0, "backend": self.backend, "cu_seqlens": cu_seqlens}
                y, memory = gated_linear_attention(
                    q, k, v, state=memory, return_state=True, **options
                )
            else:
                memory = torch.einsum("blhk,blhv->bhkv", k, v)
                y = torch.einsum("blhk,bhkv->blhv", q, memory)
            return y[..., :-1] / (y[..., -1:] + self.eps), memory


def _features(x: Tensor) -> Tensor:
    """elu(x) + 1, computed as exp(x) for x < 0, where the difference would round to 0."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
