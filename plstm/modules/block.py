"""Pre-norm residual block around any mixer."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from plstm.modules.init import reset_children, small_init_
from plstm.modules.norm import RMSNorm

MixerFactory = Callable[[int], nn.Module]


class FeedForward(nn.Module):
    """y = W2 gelu(W1 x), hidden width `ratio * dim`."""

    def __init__(
        self, dim: int, ratio: float = 4.0, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.in_proj, self.out_proj = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters."""
        small_init_(self.in_proj)
        small_init_(self.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(nn.functional.gelu(self.in_proj(x))))


class DropPath(nn.Module):
    """Drop residual branches of a sample with probability `rate` (arXiv 1603.09382).

    Raises:
        ValueError: rate is not in [0, 1].
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"DropPath: rate must lie in 0..1, got {rate}; it is a probability")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate or 1)  # with rate 1 nothing is kept, so avoid 0 / 0


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)).

    Args:
        dim: Model width.
        mixer: Factory called with `dim`.
        feed_forward_ratio: Hidden width of the feed-forward part relative to `dim`; 0 for none.
        dropout: Dropout on both branches.
        drop_path: Probability of dropping a branch of a sample; not for packed graphs or sequences,
            whose first axis is not the batch.
        layer_scale: Initial value of a learned scale per channel on both branches, None for no
            scale.
        bias: Biases in the feed-forward part.
    """

    def __init__(
        self,
        dim: int,
        mixer: MixerFactory,
        *,
        feed_forward_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(dim, eps=1e-5)
        self.mixer = mixer(dim)
        self.mixer_arguments = tuple(inspect.signature(self.mixer.forward).parameters)
        self.has_feed_forward = feed_forward_ratio > 0
        if self.has_feed_forward:
            self.feed_forward_norm = RMSNorm(dim, eps=1e-5)
            self.feed_forward = FeedForward(dim, feed_forward_ratio, dropout, bias)
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)
        branches = 1 + self.has_feed_forward
        self.layer_scale = layer_scale
        self.scales = (
            nn.ParameterList(nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(branches))
            if layer_scale is not None
            else None
        )

    def reset_parameters(self) -> None:
        """Initialize the parameters, including those of the mixer."""
        reset_children(self)
        for scale in self.scales or ():
            nn.init.constant_(scale, self.layer_scale)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Map x (B, *positions, dim), or (N, dim) for graphs; other arguments go to the mixer.

        Raises:
            ValueError: the mixer does not accept one of the arguments.
        """
        self._check_arguments(kwargs)
        return self._feed_forward(self._add(x, self.mixer(self.mixer_norm(x), *args, **kwargs), 0))

    def forward_with_state(
        self, x: Tensor, state: object = None, **kwargs: object
    ) -> tuple[Tensor, object]:
        """Like forward, for a causal mixer; takes and returns its state."""
        self._check_arguments(kwargs)
        y, state = self.mixer(self.mixer_norm(x), state=state, return_state=True, **kwargs)
        return self._feed_forward(self._add(x, y, 0)), state

    def _check_arguments(self, kwargs: dict[str, object]) -> None:
        for name in kwargs:
            if name not in self.mixer_arguments:
                raise ValueError(
                    f"Block: the mixer {type(self.mixer).__name__} takes no {name}; omit it, "
                    "or choose a mixer that takes it"
                )

    def _feed_forward(self, x: Tensor) -> Tensor:
        if not self.has_feed_forward:
            return x
        return self._add(x, self.feed_forward(self.feed_forward_norm(x)), 1)

    def _add(self, x: Tensor, branch: Tensor, index: int) -> Tensor:
        if self.scales is not None:
            branch = branch * self.scales[index]
        return x + self.drop_path(self.dropout(branch))


def build_blocks(
    dim: int, depth: int, mixers: Sequence[MixerFactory], *, drop_path: float = 0.0, **block: object
) -> nn.ModuleList:
    """`depth` blocks that cycle through `mixers`; drop path grows linearly up to `drop_path`."""
    if depth < 1 or not mixers:
        raise ValueError(
            "build_blocks: need depth >= 1 and at least one mixer, "
            f"got depth={depth} and {len(mixers)} mixers"
        )
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList(
        Block(dim, mixers[i % len(mixers)], drop_path=rates[i], **block) for i in range(depth)
    )
