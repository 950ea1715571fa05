"""State size of a model."""

from torch import nn


def state_size(net: nn.Module) -> int | None:
    """State elements per sequence of all blocks; None if any has no state of fixed size."""
    mixers = [block.mixer for block in getattr(net, "blocks", [])]
    if not mixers or not all(hasattr(mixer, "state_size") for mixer in mixers):
        return None
    return sum(mixer.state_size() for mixer in mixers) or None
