"""Batches of sequences of many lengths without padding."""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Packed(NamedTuple):
    """Sequences of a batch one after another, and where they lie in the padded batch."""

    tokens: Tensor  # (1, total)
    cu_seqlens: Tensor  # borders, (S + 1,)
    kept: Tensor  # positions of the padded batch that hold a token, (S, L)


def pack(tokens: Tensor, kept: Tensor) -> Packed:
    """Tokens (S, L) without those that are not kept (S, L); rows are kept from their start on."""
    cu_seqlens = nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Packed(tokens[kept][None], cu_seqlens, kept)


def packed_logits(net: nn.Module, batch: Packed) -> Tensor:
    """Logits of a net as of the padded batch, (S, L, C); zeros where there is no token.

    Raises:
        ValueError: the net takes no packed sequences.
    """
    if "cu_seqlens" not in inspect.signature(net.forward).parameters:
        raise ValueError(
            f"packed_logits: {type(net).__name__} takes no cu_seqlens; set packed of the data to "
            "false"
        )
    logits = net(batch.tokens, cu_seqlens=batch.cu_seqlens)[0]
    padded = logits.new_zeros(*batch.kept.shape, logits.shape[-1])
    return torch.index_put(padded, batch.kept.nonzero(as_tuple=True), logits)
