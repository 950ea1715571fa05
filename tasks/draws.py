"""Random numbers that depend only on a seed and counters, drawn for a batch at a time.

A counter-based generator: the finalizer of SplitMix64 applied to each counter in turn.
"""

import torch
from torch import Tensor


def stream(seed: int, index: Tensor) -> Tensor:
    """The random stream of every sample `index` (B,), as an integer (B,)."""
    x = _mix(torch.full_like(index, seed) * GOLDEN + GOLDEN)
    return _mix(x + index * GOLDEN)


def substream(streams: Tensor, number: Tensor) -> Tensor:
    """A substream by index, of the shape that both arguments broadcast to."""
    return _mix(streams + number * GOLDEN)


def fraction(streams: Tensor) -> Tensor:
    """A random number in [0, 1) from each stream, float64 of the same shape."""
    return _shift(streams, 11).double() / 2**53


def uniform(seed: int, index: Tensor, draws: int, first: int = 0) -> Tensor:
    """Random numbers in [0, 1) that depend only on (seed, index, draw), (B, draws) in float64.

    The draws have the indices `first`, `first` + 1, ...
    """
    draw = torch.arange(first, first + draws, device=index.device)
    return fraction(substream(stream(seed, index)[:, None], draw))


def integers(seed: int, index: Tensor, draws: int, below: int, first: int = 0) -> Tensor:
    """Random integers 0..below - 1 from the draws of `uniform`, (B, draws)."""
    return (uniform(seed, index, draws, first) * below).long()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


GOLDEN = _signed(0x9E3779B97F4A7C15)
