"""A custom mixer, net and task, used by class path in examples/own.yaml."""

import torch
from torch import Tensor, nn

from plstm.checks import check_shapes
from tasks.draws import integers
from tasks.sequences import SequenceData


class RunningMean(nn.Module):
    """A causal mixer: projects the mean of all inputs up to a position.

    Args:
        dim: Model width; the config sets other arguments.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        """Initialize the parameters; the nets call it."""
        self.proj.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, dim) to the same shape."""
        check_shapes("RunningMean", x=(x, f"B L {self.proj.in_features}"))
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.proj(x.cumsum(1) / count)


class SmallNet(nn.Module):
    """A net that maps tokens (B, L) to logits (B, L, out_dim). The data define the sizes.

    Args:
        in_dim: Vocabulary size.
        out_dim: Number of classes.
        dim: Width.
    """

    def __init__(self, in_dim: int, out_dim: int, *, dim: int = 16) -> None:
        super().__init__()
        self.embed, self.mixer = nn.Embedding(in_dim, dim), RunningMean(dim)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        return self.head(torch.relu(self.mixer(self.embed(tokens))))


class Majority(SequenceData):
    """A task: of random bits, whether ones are the majority up to each position.

    The bits 0 1 1 have the targets 0 0 1.

    Args:
        length: Length of a sequence in training.
    """

    def __init__(self, length: int = 16, **kwargs: object) -> None:
        super().__init__(length=length, **kwargs)

    @property
    def in_dim(self) -> int:
        return 2

    @property
    def out_dim(self) -> int:
        return 2

    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Bits and targets, both (B, L), a function of the seed and of each index alone."""
        bits = integers(seed, index, lengths[1], 2)
        count = torch.arange(1, lengths[1] + 1)
        return bits, (2 * bits.cumsum(1) > count).long()
