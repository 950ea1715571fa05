"""What is measured: a case by name and size, and the work it stands for."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.counts import Cost


class Work(NamedTuple):
    """Two calls to measure, and what the second one has to do."""

    forward: Callable[[], object] | None  # None where it makes no sense alone
    total: Callable[[], object]  # with backward, in a training step also with the optimizer
    cost: Cost | None = None
    state_size: int | None = None  # numbers carried from one position to the next, per sequence


class Case(NamedTuple):
    """One form of one computation at one size. Nothing is allocated before `make` is called."""

    subject: str  # ops, lanes, layers, mixers, packed, steps or graphs
    kind: str  # sequence, grid or graph: a panel of the picture
    group: str  # what is compared with each other
    form: str
    batch: int  # examples
    tokens: int  # positions or nodes of an example
    make: Callable[[], Work]
    series: str = ""  # what else the sizes of a line in the picture have in common
    anchor: bool = False  # ratios of the group refer to this form
    long: bool = False  # only measured on request


class Setting(NamedTuple):
    """Where and in which precision a run computes."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast | nullcontext:
        """Modules keep weights in float32 and compute in the precision of the run."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, self.dtype)


class Inputs(list):
    """Random inputs of an op in the order they are drawn; each wants a gradient."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.generator = setting, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return self._keep(torch.randn(shape, generator=self.generator))

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers."""
        return self._keep(low + (high - low) * torch.rand(shape, generator=self.generator))

    def _keep(self, numbers: Tensor) -> Tensor:
        self.append(numbers.to(*self.setting).requires_grad_())
        return self[-1]


def differentiated(
    function: Callable[[], Tensor], inputs: Sequence[Tensor], cost: Cost | None
) -> Work:
    """Forward without gradients; forward and backward to all inputs under a cotangent of ones."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    def total() -> None:
        out = function()
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return Work(forward, total, cost)
