"""Batches of sequences of different lengths without padding."""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Packed(NamedTuple):
    """Concatenated sequences of a batch, and their positions in the padded batch."""

    tokens: Tensor  # (1, total)
    cu_seqlens: Tensor  # cumulative lengths, (S + 1,)
    kept: Tensor  # mask of tokens in the padded batch, (S, L)


def pack(tokens: Tensor, kept: Tensor) -> Packed:
    """Pack tokens (S, L) where kept (S, L) is True, which it is from the start of each row."""
    cu_seqlens = nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Packed(tokens[kept][None], cu_seqlens, kept)


def packed_logits(net: nn.Module, batch: Packed) -> Tensor:
    """Logits of a net in the layout of the padded batch, (S, L, C); zeros at padding.

    Raises:
        ValueError: the net does not support packed sequences.
    """
    if "cu_seqlens" not in inspect.signature(net.forward).parameters:
        raise ValueError(
            f"packed_logits: {type(net).__name__} takes no cu_seqlens; set packed of the data to "
            "false"
        )
    logits = net(batch.tokens, cu_seqlens=batch.cu_seqlens)[0]
    padded = logits.new_zeros(*batch.kept.shape, logits.shape[-1])
    return torch.index_put(padded, batch.kept.nonzero(as_tuple=True), logits)
