"""States of a net between batches."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from plstm.models import SequenceState, state_size


def check_carries(net: nn.Module) -> None:
    """Raise a ValueError unless a net can process a text of any length in constant memory."""
    rule = "LanguageModel: streams need a net with a state of fixed size"
    if state_size(net) is None:
        mixers = {type(block.mixer) for block in getattr(net, "blocks", [])}
        names = [mixer.__name__ for mixer in mixers if not hasattr(mixer, "state_size")]
        got = f"the mixer {', '.join(sorted(names))}" if names else type(net).__name__
        raise ValueError(
            f"{rule}, got {got}; choose a recurrent net or set train_streams and eval_streams of "
            "the data to false"
        )
    if net.max_length is not None:
        raise ValueError(
            f"{rule} at any position, got a position encoding with max_length={net.max_length}; "
            "set max_length to null"
        )


def detached(state: SequenceState) -> SequenceState:
    """Detach all tensors of a state."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, state)


def tensors_of(state: SequenceState | None) -> list[Tensor | None] | None:
    """Copies of the tensors of a state on the CPU, as plain values for a checkpoint."""
    if state is None:
        return None
    return [x.detach().cpu().clone() if isinstance(x, Tensor) else x for x in tree_leaves(state)]


@torch.no_grad()
def state_of(tensors: list[Tensor | None], net: nn.Module, tokens: Tensor) -> SequenceState:
    """Inverse of `tensors_of`: the state of a net from its tensors.

    Args:
        tensors: Result of `tensors_of`.
        net: The net; it processes a token to define the structure of its states.
        tokens: Any tokens with the same number of sequences, (B, L).

    Raises:
        ValueError: the state has another number of sequences.
    """
    training = net.training
    net.eval()
    _, like = net(tokens[:, :1], return_state=True)
    net.train(training)
    leaves, form = tree_flatten(like)
    if tensors[-1].shape != leaves[-1].shape:  # positions seen, one per sequence
        raise ValueError(
            f"LanguageModel: the checkpoint has states of {len(tensors[-1])} streams, got "
            f"batches of {len(tokens)}; set data.batch_size as it was"
        )
    moved = [None if x is None else x.to(tokens.device) for x in tensors]
    return tree_unflatten(moved, form)
