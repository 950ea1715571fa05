"""A benchmark case: its name, its size and the work to measure."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.counts import Cost


class Work(NamedTuple):
    """Two calls to measure, and the cost of the second."""

    forward: Callable[[], object] | None  # None if not measured separately
    total: Callable[[], object]  # with backward; a training step also includes the optimizer
    cost: Cost | None = None
    state_size: int | None = None  # state elements per sequence


class Case(NamedTuple):
    """One form of one computation at one size. Nothing is allocated before `make` is called."""

    subject: str  # ops, lanes, layers, mixers, packed, steps or graphs
    kind: str  # sequence, grid or graph: a column of the plot
    group: str  # cases that are compared with each other
    form: str
    batch: int  # number of examples
    tokens: int  # positions or nodes per example
    make: Callable[[], Work]
    series: str = ""  # further label of a line in the plot
    anchor: bool = False  # reference for the ratios of the group
    long: bool = False  # only measured on request


class Setting(NamedTuple):
    """Device and precision of a run."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast | nullcontext:
        """Weights stay in float32; modules compute in the precision of the run."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, self.dtype)


class Inputs(list):
    """Random inputs of an op, in the order they are drawn; all require gradients."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.generator = setting, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return self._keep(torch.randn(shape, generator=self.generator))

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform values."""
        return self._keep(low + (high - low) * torch.rand(shape, generator=self.generator))

    def _keep(self, numbers: Tensor) -> Tensor:
        self.append(numbers.to(*self.setting).requires_grad_())
        return self[-1]


def differentiated(
    function: Callable[[], Tensor], inputs: Sequence[Tensor], cost: Cost | None
) -> Work:
    """Forward without gradients, and forward with backward to all inputs from ones."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    def total() -> None:
        out = function()
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return Work(forward, total, cost)
