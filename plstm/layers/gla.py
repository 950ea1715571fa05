"""Gated linear attention (GLA)."""

from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_shapes
from plstm.modules.causal import MemoryState
from plstm.modules.norm import HeadRMSNorm
from plstm.modules.widths import head_widths
from plstm.ops.gated_linear_attention import gated_linear_attention
from plstm.ops.packed import CuSeqlens


class GLA(nn.Module):
    """Causal linear attention with a data-dependent decay per key channel.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K)
    log a_t = logsigmoid(W_2 W_1 x_t + b) / normalizer,   y_t = W_o (norm(o_t) * silu(W_g x_t))

    with an RMS norm per head. Cost O(L H K V); the state has H K V elements.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        qk_dim: Key width per head; half of dim / num_heads, rounded up, if None.
        v_dim: Value width per head, dim / num_heads if None.
        gate_rank: Rows of W_1.
        gate_normalizer: Divides the log decay. With 1 the initial decay is about 1/2.
        backend: See `plstm.ops.gated_linear_attention`.

    Raises:
        ValueError: widths do not divide; gate_normalizer is not positive.

    Source: arXiv 2312.06635, equations 3 and 4 and section 4.4; initialization as in its code. The
    norm has a scale per head and channel; in that code the heads share one.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if gate_normalizer <= 0:
            raise ValueError(
                f"GLA: gate_normalizer must be positive, got {gate_normalizer}; decays would exceed"
                " 1"
            )
        self.num_heads, self.backend = num_heads, backend
        self.gate_normalizer = gate_normalizer
        width, self.v_dim = head_widths("GLA", dim, num_heads, qk_dim, v_dim)
        self.qk_dim = (width + 1) // 2 if qk_dim is None else width
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim, bias=False)
        self.decay_down = nn.Linear(dim, gate_rank, bias=False)
        self.decay_up = nn.Linear(gate_rank, num_heads * self.qk_dim)
        self.gate_proj = nn.Linear(dim, num_heads * self.v_dim, bias=False)
        self.norm = HeadRMSNorm(num_heads, self.v_dim)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for linear in (module for module in self.children() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.zeros_(self.decay_up.bias)
        self.norm.reset_parameters()

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
        check_shapes("GLA", x=(x, f"B L {self.out_proj.out_features}"))
        logits = self.decay_up(self.decay_down(x))
        log_decay = nn.functional.logsigmoid(logits.to(accumulation_dtype(logits)))
        q, k, v, log_decay = (
            rearrange(part, "b l (h w) -> b l h w", h=self.num_heads)
            for part in (self.q_proj(x), self.k_proj(x), self.v_proj(x), log_decay)
        )
        out, memory = gated_linear_attention(
            q,
            k,
            v,
            log_decay / self.gate_normalizer,
            state=state.memory if state is not None else None,
            return_state=True,
            backend=self.backend,
            cu_seqlens=cu_seqlens,
        )
        y = self.out_proj(self.norm(out) * nn.functional.silu(self.gate_proj(x)))
        return (y, MemoryState(memory)) if return_state else y

    def step(self, x: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryState]:
        """Process one position x (B, dim) in constant time; same result as forward."""
        y, state = self.forward(x[:, None], state, return_state=True)
        return y[:, 0], state

    def state_size(self) -> int:
        """Number of state elements per sequence."""
        return self.num_heads * self.qk_dim * self.v_dim
