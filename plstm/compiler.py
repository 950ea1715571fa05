"""Hints for torch.compile and torch.export, without importing them.

They import sympy and the compiler, which takes a second or two, so the imports are deferred to the
first call.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def disable(function: Callable[P, R]) -> Callable[P, R]:
    """Like `torch.compiler.disable`: the function and its callees are not traced."""
    return torch._disable_dynamo(function)


def assume_constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """Like `torch.compiler.assume_constant_result`: called once in tracing, then constant."""
    function._dynamo_marked_constant = True
    return function


def statically_known_true(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds for all sizes that the traced graph allows."""
    # Conditions that the compiler types as bool may be symbolic, so the type is not enough.
    if not torch.compiler.is_compiling() and isinstance(condition, bool):
        return condition
    from torch.fx.experimental import symbolic_shapes

    return symbolic_shapes.statically_known_true(condition)
