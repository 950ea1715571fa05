"""The warning when plain PyTorch operations replace compiled kernels."""

import functools
import warnings

from plstm.compiler import assume_constant_result


@assume_constant_result  # torch.compile calls it once and traces none of it
def warn_slower(function: str, reason: str, remedy: str) -> None:
    """Warn once per process that a function runs without its compiled kernels.

    Args:
        function: Public name of the function, or several names.
        reason: Why its kernels do not run here.
        remedy: What to install or set.
    """
    _warn(
        f"{function}: compiled kernels do not run here, slower forms replace them: {reason}; "
        f"{remedy}, or see what runs with python -m plstm"
    )


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
