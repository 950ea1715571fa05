"""The gates of a recurrence, as they travel inside `plstm.ops`."""

from typing import NamedTuple

from torch import Tensor


class Gates(NamedTuple):
    """Activated gates; shapes as in the op that takes them."""

    source: Tensor
    transition: Tensor
    mark: Tensor
    direct: Tensor
