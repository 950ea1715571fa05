"""What a net carries from one position to the next."""

from torch import nn


def state_size(net: nn.Module) -> int | None:
    """Numbers carried per sequence by all blocks; None where one carries no state of fixed size."""
    mixers = [block.mixer for block in getattr(net, "blocks", [])]
    if not mixers or not all(hasattr(mixer, "state_size") for mixer in mixers):
        return None
    return sum(mixer.state_size() for mixer in mixers) or None
