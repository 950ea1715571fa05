"""Gated DeltaNet: the delta rule on a decaying state."""

import torch
from torch import Tensor, nn

from plstm.checks import accumulation_dtype
from plstm.layers.delta_net import DeltaNet
from plstm.modules.init import step_size_bias_


class GatedDeltaNet(DeltaNet):
    """DeltaNet with a decay per position and head, and a gate on its output; linear in the length.

    S'_t = a_t S_{t-1},   S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T
    y_t = W_o (norm(S_t^T q_t / sqrt(K)) * silu(x_t W_g)),   log a_t = -A softplus(x_t W_a + b)

    with A > 0 and b per head. The rest, including state and cost, is as in `DeltaNet`. Initially A
    is uniform in (0, 16] and softplus(b) log-uniform in [0.001, 0.1].

    Args:
        dim: Model width.
        num_heads: Number of heads; published models use 3 dim / 1024, for a key width of 256.
        qk_dim: Key width per head; 3/4 dim / num_heads if None.
        v_dim: Value width per head, twice the key width if None.
        conv_width: Width of the causal depthwise convolutions of q, k and v.
        negative_eigenvalues: Double beta, which allows eigenvalues in (-1, 1).
        backend: See `plstm.ops.delta_rule`.

    Raises:
        ValueError: widths do not divide.

    Source: arXiv 2412.06464.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        conv_width: int = 4,
        negative_eigenvalues: bool = False,
        backend: str = "auto",
    ) -> None:
        if qk_dim is None:
            if num_heads < 1 or 3 * dim % (4 * num_heads):
                raise ValueError(
                    "GatedDeltaNet: 3/4 of dim must be divisible by num_heads, got "
                    f"dim={dim} and num_heads={num_heads}; change one of them or give qk_dim"
                )
            qk_dim = 3 * dim // (4 * num_heads)
        super().__init__(
            dim,
            num_heads,
            qk_dim=qk_dim,
            v_dim=2 * qk_dim if v_dim is None else v_dim,
            conv_width=conv_width,
            output_gate=True,
            negative_eigenvalues=negative_eigenvalues,
            backend=backend,
        )
        self.decay = Decay(dim, num_heads)

    def _log_decay(self, x: Tensor) -> Tensor:
        return self.decay(x)


class Decay(nn.Module):
    """log a_t = -A softplus(x_t W + b) per head.

    Args:
        dim: Model width.
        num_heads: Number of heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dt_proj = nn.Linear(dim, num_heads)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        nn.init.normal_(self.dt_proj.weight, std=0.02)
        step_size_bias_(self.dt_proj.bias)
        self.A_log.copy_(torch.log(16 - 16 * torch.rand_like(self.A_log)))  # avoids log 0

    def forward(self, x: Tensor) -> Tensor:
        """Log decays (B, L, H) of x (B, L, dim), at most 0; float32 or wider."""
        logits = self.dt_proj(x)
        logits = logits.to(accumulation_dtype(logits))
        # log(e^x + e^0), not softplus: torch.compile assumes wrong strides for softplus's gradient
        # if the incoming gradient is permuted.
        step = torch.logaddexp(logits, logits.new_zeros(()))
        return -self.A_log.to(logits.dtype).exp() * step
