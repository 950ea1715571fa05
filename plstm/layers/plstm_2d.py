"""pLSTM layer for images and other two-dimensional grids."""

import torch
from einops import rearrange
from torch import Tensor, nn

from plstm.checks import accumulation_dtype, check_choice, check_shapes, check_valid
from plstm.modules.init import constant_gate_, small_init_
from plstm.modules.norm import HeadRMSNorm, MergedRMSNorm
from plstm.modules.widths import head_widths
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d import CORNERS, check_corners, plstm_2d, runs_compiled
from plstm.ops.plstm_2d.gates import compiled_gates

NORMS = {"head": HeadRMSNorm, "all": MergedRMSNorm}
ANGLE_RANGE = 2.0  # initial angle logits of the heads, from minus to plus this


class PLSTM2d(nn.Module):
    """Linear recurrent mixer for grids; scans from several corners share q, k and v.

    Gates per corner and head, from linear maps of x (direction 0 along x, 1 along y):

        P: a = sigmoid(b + w.x / (2 dim)), t = tanh(5 z); T[0, :] = a t, T[1, :] = (1 - a) t,
           S = s (a, 1 - a), M = (m, m). A state that arrives at a node is split among its two
           outgoing edges and never amplified.
        D: T = diag(tanh(5 z)) plus one turn tanh(5 z): into x for chirality "L" (T[0, 1]), into y
           for "R" (T[1, 0]). At most one path joins a pair of nodes, with a weight up to 1.

    S, M and D (per node, not per corner) are sigmoids.

    Args:
        dim: Model width.
        num_heads: Number of heads.
        mode: "P" (propagation, directed) or "D" (diffusion).
        chirality: The turn kept in mode "D", "L" or "R"; mode "P" has both.
        corners: Corners to scan from.
        qk_dim: Key width per head, dim / num_heads if None.
        v_dim: Value width per head, dim / num_heads if None.
        norm: "head" normalizes the output of every head separately, "all" over all heads, which
            keeps the relative size of what arrives from different directions.
        source_bias: Initial logit of the source gate.
        mark_bias: Initial logit of the mark gate.
        direct_bias: Initial logit of the direct gate.
        transition_bias: Initial z.
        bias: Biases of q, k and v; without them, zero tokens stay zero. Gates always have biases.
        backend: See `plstm.ops.plstm_2d`.

    Raises:
        ValueError: unknown mode, chirality, norm or corner, or widths that do not divide.

    Source: arXiv 2506.11997. It defines the second direction of mode P as 1 - a t, which exceeds 1
    for t < 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mode: str = "P",
        *,
        chirality: str = "L",
        corners: tuple[str, ...] = CORNERS,
        qk_dim: int | None = None,
        v_dim: int | None = None,
        norm: str = "head",
        source_bias: float = 0.0,
        mark_bias: float = 0.0,
        direct_bias: float = -6.0,
        transition_bias: float = 1.0,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("PLSTM2d", "mode", mode, ("P", "D"))
        check_choice("PLSTM2d", "chirality", chirality, ("L", "R"))
        check_choice("PLSTM2d", "norm", norm, tuple(NORMS))
        check_corners("PLSTM2d", corners)
        self.num_heads, self.mode, self.chirality = num_heads, mode, chirality
        self.corners, self.backend, self.dim = tuple(corners), backend, dim
        self.qk_dim, self.v_dim = head_widths("PLSTM2d", dim, num_heads, qk_dim, v_dim)
        self.q_proj = nn.Linear(dim, num_heads * self.qk_dim, bias)
        self.k_proj = nn.Linear(dim, num_heads * self.qk_dim, bias)
        self.v_proj = nn.Linear(dim, num_heads * self.v_dim, bias)
        self.out_proj = nn.Linear(num_heads * self.v_dim, dim, bias=False)
        scans = len(self.corners) * num_heads
        sources, marks, transitions = (1, 1, 1) if mode == "P" else (2, 2, 3)
        # source, mark, direct and transition in one product
        self.gate_sizes = [scans * sources, scans * marks, num_heads, scans * transitions]
        self.gate_proj = nn.Linear(dim, sum(self.gate_sizes))
        # A separate map: only its weights are scaled, so that they learn as slowly as published.
        self.angle_proj = nn.Linear(dim, scans, bias=False) if mode == "P" else None
        self.angle_bias = nn.Parameter(torch.empty(scans)) if mode == "P" else None
        self.norm = NORMS[norm](num_heads, self.v_dim)
        self.biases = (source_bias, mark_bias, direct_bias, transition_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            small_init_(linear)
        constant_gate_(self.gate_proj)
        for part, bias in zip(self.gate_proj.bias.split(self.gate_sizes), self.biases, strict=True):
            nn.init.constant_(part, bias)
        if self.angle_proj is not None:
            constant_gate_(self.angle_proj)
            spread = ANGLE_RANGE if self.num_heads > 1 else 0.0
            angles = torch.linspace(-spread, spread, self.num_heads)
            with torch.no_grad():
                self.angle_bias.copy_(angles.repeat(len(self.corners)))
        self.norm.reset_parameters()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map x (B, Y, X, dim) to the same shape.

        Positions where valid (B, Y, X) is False hold no token: their x is ignored, NaN included,
        and their output is 0.
        """
        check_shapes("PLSTM2d", x=(x, f"B Y X {self.dim}"))
        if valid is not None:
            check_valid("PLSTM2d", valid, x.shape[:3], x.device)
            x = x.masked_fill(~valid[..., None], 0)  # NaN would enter the weight gradients
        q, k, v = (
            rearrange(proj(x), "b y x (h w) -> b y x h w", h=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = plstm_2d(
            q, k, v, *self.gates(x), corners=self.corners, valid=valid, backend=self.backend
        )
        return self.out_proj(self.norm(y))

    def gates(self, x: Tensor) -> Gates:
        """Activated gates of x (B, Y, X, dim), as in `plstm_2d`."""
        logits, angle = self.gate_proj(x), None
        logits = logits.to(accumulation_dtype(logits))  # bfloat16 rounds 0.999 to 1
        if self.angle_proj is not None:
            angle = torch.add(self.angle_bias, self.angle_proj(x), alpha=0.5 / self.dim)
            angle = angle.to(logits.dtype)
        if runs_compiled(self.backend, x.device):
            scans = len(self.corners), self.num_heads
            return compiled_gates(logits, angle, *scans, self.chirality)
        source, mark, direct, transition = logits.split(self.gate_sizes, -1)
        source = torch.sigmoid(self._per_corner(source))
        mark = torch.sigmoid(self._per_corner(mark))
        transition = torch.tanh(5 * self._per_corner(transition))
        direct = torch.sigmoid(direct)
        if angle is None:
            return Gates(source, self._with_turn(*transition.split([2, 1], -1)), mark, direct)
        first = torch.sigmoid(self._per_corner(angle))
        split = torch.cat([first, 1 - first], -1)
        both_in = (*split.shape, 2)  # the same factor for both incoming edges
        transition = (split * transition).unsqueeze(-1).expand(both_in)
        return Gates(source * split, transition, mark.expand(split.shape), direct)

    def _per_corner(self, logits: Tensor) -> Tensor:
        """(B, Y, X, corners * H * n) to (corners, B, Y, X, H, n)."""
        return rearrange(
            logits, "b y x (c h n) -> c b y x h n", c=len(self.corners), h=self.num_heads
        )

    def _with_turn(self, straight: Tensor, turn: Tensor) -> Tensor:
        """Transition matrices with one of the two turns, (..., 2, 2)."""
        zero = torch.zeros_like(turn)
        along_x, along_y = straight.split(1, -1)
        row_x = [along_x, turn if self.chirality == "L" else zero]
        row_y = [zero if self.chirality == "L" else turn, along_y]
        return torch.stack([torch.cat(row_x, -1), torch.cat(row_y, -1)], -2)
