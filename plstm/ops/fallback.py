"""The warning where plain operations of PyTorch stand in for compiled kernels."""

import functools
import warnings

from plstm.compiler import assume_constant_result


@assume_constant_result  # torch.compile calls it once and traces none of it
def warn_slower(function: str, reason: str, remedy: str) -> None:
    """Warn that slower forms compute a function, once per process.

    Args:
        function: Public name of the function, or of several.
        reason: Why its kernels do not run here.
        remedy: What to install or to set.
    """
    _warn(
        f"{function}: compiled kernels do not run here and slower forms stand in: {reason}; "
        f"{remedy}, or see what runs with python -m plstm"
    )


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
