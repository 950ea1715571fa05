"""Lightning Attention: linear attention with a fixed decay per head and layer."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import check_choice, check_shapes
from plstm.modules.causal import MemoryState
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of ALiBi, (H,): 2^(-8 h / H) for h = 1 to H.

    If H is not a power of two: those of the power below, then every second one of the power above.

    Source: arXiv 2108.12409.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * torch.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * torch.arange(1, 2 * power, 2) / (2 * power))
    return torch.cat([slopes, between])[:num_heads]


def scheduled_slopes(schedule: str, num_heads: int, layer: int, num_layers: int) -> Tensor:
    """Negative log decay of every head, (H,); smaller in deeper layers.

    For layer l = 0 to L - 1 and head h = 1 to H:
    "alibi": alibi_slopes * (1 - l / (L - 1) + 1e-5), the published code; l / (L - 1) is 0 for L = 1
    "transnormer": 8 h / H * (1 - l / L), the TransNormerLLM paper
    "transnormer_from_zero": 8 (h - 1) / H * (1 - l / L); the first head does not decay

    Raises:
        ValueError: unknown schedule; layer outside 0 to num_layers - 1.
    """
    names = ("alibi", "transnormer", "transnormer_from_zero")
    check_choice("scheduled_slopes", "schedule", schedule, names)
    if not 0 <= layer < num_layers:
        raise ValueError(
            "scheduled_slopes: layer must be from 0 to num_layers - 1, "
            f"got layer={layer} and num_layers={num_layers}; layers count from 0"
        )
    if schedule == "alibi":
        return alibi_slopes(num_heads) * (1 - layer / max(num_layers - 1, 1) + 1e-5)
    heads = torch.arange(num_heads) + (schedule == "transnormer")
    return 8 * heads / num_heads * (1 - layer / num_layers)


class LightningAttention(nn.Module):
    """Causal linear attention with a fixed decay per head, without normalization.

    S_t = exp(-slope) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t
    y_t = W_o (norm(o_t) * sigmoid(W_2 W_1 x_t)),   q, k, v = silu of linear maps of x_t

    with a layer norm over all heads. Cost O(L H K V); the state has H K V elements.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        layer: Index of the layer among `num_layers`, from 0, for the slopes.
        num_layers: Number of layers of the model.
        schedule: Name of the slopes, see `scheduled_slopes`.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, and rank of the output gate; dim / num_heads if None.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; unknown schedule; layer outside 0 to num_layers - 1.

    Source: arXiv 2401.04658 and 2405.17381, and their code; PyTorch's default initialization.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        layer: int = 0,
        num_layers: int = 1,
        schedule: str = "alibi",
        qk_dim: int | None = None,
        v_dim: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qk_dim, self.v_dim = head_widths("LightningAttention", dim, num_heads, qk_dim, v_dim)
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim, bias=False)
        self.gate_down = nn.Linear(dim, self.v_dim, bias=False)
        self.gate_up = nn.Linear(self.v_dim, num_heads * self.v_dim, bias=False)
        self.norm = nn.LayerNorm(num_heads * self.v_dim)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim, bias=False)
        self.schedule = (schedule, num_heads, layer, num_layers)
        self.register_buffer("slopes", scheduled_slopes(*self.schedule), persistent=False)

    def reset_parameters(self) -> None:
        """Initialize the parameters and compute the slopes."""
        self.slopes.copy_(scheduled_slopes(*self.schedule))
        for module in self.children():
            module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, MemoryState]:
        """Map x (B, L, dim) to the same shape, starting from `state`; can return the next state.

        With cu_seqlens, x (1, total, dim) holds S packed sequences; states have S in place of B.
        """
        check_shapes("LightningAttention", x=(x, f"B L {self.out_proj.out_features}"))
        q, k, v = (
            rearrange(nn.functional.silu(proj(x)), "b l (h w) -> b l h w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, memory = gated_linear_attention(
            q,
            k,
            v,
            -self.slopes.expand(q.shape[:3]),
            state=state.memory if state is not None else None,
            return_state=True,
            scale=1.0,
            backend=self.backend,
            cu_seqlens=cu_seqlens,
        )
        y = self.norm(out.flatten(2)) * torch.sigmoid(self.gate_up(self.gate_down(x)))
        y = self.out_proj(y)
        return (y, MemoryState(memory)) if return_state else y

    def step(self, x: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * self.v_dim
