"""Random numbers that depend on a seed and counters only, drawn for a whole batch at once.

A counter-based generator: the finaliser of SplitMix64 over the counters, one after the other.
"""

import torch
from torch import Tensor


def stream(seed: int, index: Tensor) -> Tensor:
    """The stream of random numbers of every sample `index` (B,), as an integer (B,)."""
    x = _mix(torch.full_like(index, seed) * GOLDEN + GOLDEN)
    return _mix(x + index * GOLDEN)


def substream(streams: Tensor, number: Tensor) -> Tensor:
    """A further stream by number, of the shape that both arguments broadcast to."""
    return _mix(streams + number * GOLDEN)


def fraction(streams: Tensor) -> Tensor:
    """A random number in [0, 1) of each stream, in float64 and of the same shape."""
    return _shift(streams, 11).double() / 2**53


def uniform(seed: int, index: Tensor, draws: int, first: int = 0) -> Tensor:
    """Random numbers in [0, 1) that depend on (seed, index, draw) only, (B, draws) in float64.

    The draws are number `first` and those after it.
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
