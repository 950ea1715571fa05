"""The four gates of a recurrence in one tuple, for use inside `plstm.ops`."""

from typing import NamedTuple

from torch import Tensor


class Gates(NamedTuple):
    """Gates after their activation; shapes as in the function that takes them."""

    source: Tensor
    transition: Tensor
    mark: Tensor
    direct: Tensor
