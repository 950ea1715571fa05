"""What functions say to torch.compile and torch.export, without importing these.

They import sympy and the compiler, which takes a second or two; so the imports wait here for the
first call that needs them.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


def disable(function: Callable[P, R]) -> Callable[P, R]:
    """As `torch.compiler.disable`: nothing of the function, or of what it calls, is traced."""
    return torch._disable_dynamo(function)


def assume_constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """As `torch.compiler.assume_constant_result`: called once while tracing, a constant then."""
    function._dynamo_marked_constant = True
    return function


def statically_known_true(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds for all sizes that the traced graph allows."""
    # The compiler calls a bool what may be symbolic: the type alone does not tell.
    if not torch.compiler.is_compiling() and isinstance(condition, bool):
        return condition
    from torch.fx.experimental import symbolic_shapes

    return symbolic_shapes.statically_known_true(condition)
