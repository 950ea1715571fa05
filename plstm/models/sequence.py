"""Sequence model: tokens, blocks of any causal mixer, next-token logits."""

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plstm.checks import check_not_empty, check_positive
from plstm.models.pretrained import Pretrained
from plstm.modules.block import MixerFactory, build_blocks
from plstm.modules.causal import token_positions
from plstm.modules.init import reset_children
from plstm.modules.norm import RMSNorm
from plstm.modules.position import LearnedPosition1d
from plstm.ops.packed import CuSeqlens, Packing, as_packing

PROMPT_PIECE = 4096  # positions of a prompt per call


class SequenceState(NamedTuple):
    """Recurrent state of the model."""

    blocks: tuple[NamedTuple, ...]  # states of the mixers
    seen: Tensor  # positions so far, (B,)


class SequenceModel(Pretrained, nn.Module):
    """Predicts the next token of a sequence, with causal mixers.

    Args:
        in_dim: Input vocabulary size.
        out_dim: Output vocabulary size.
        dim: Model width.
        depth: Number of blocks.
        mixers: Factories called with `dim`, cycled over the depth.
        max_length: Number of learned position encodings; None for no encoding, and any length.
        tied: Use the embedding as output weights; needs in_dim = out_dim.
        logit_cap: Soft cap c on the logits, c tanh(logit / c); None for none.
        feed_forward_ratio: Hidden width of the feed-forward part relative to `dim`; 0 for none.
        dropout: Dropout on the embedding and on every branch.

    Raises:
        ValueError: tied sizes differ; depth or mixers are invalid.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int,
        depth: int,
        mixers: Sequence[MixerFactory],
        max_length: int | None = None,
        tied: bool = True,
        logit_cap: float | None = None,
        feed_forward_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive("SequenceModel", in_dim=in_dim, out_dim=out_dim, dim=dim)
        if tied and in_dim != out_dim:
            raise ValueError(
                f"SequenceModel: tied weights need in_dim = out_dim, got {in_dim} and {out_dim}; "
                "set tied to false"
            )
        self.logit_cap, self.max_length, self.tied = logit_cap, max_length, tied
        self.embed = nn.Embedding(in_dim, dim)
        self.position = LearnedPosition1d(dim, max_length) if max_length is not None else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = build_blocks(
            dim, depth, mixers, feed_forward_ratio=feed_forward_ratio, dropout=dropout
        )
        self.norm = RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, out_dim, bias=False)
        self._reset_ends()

    def reset_parameters(self) -> None:
        """Initialize all parameters."""
        reset_children(self)
        self._reset_ends()

    def _reset_ends(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.02)
        if self.tied:  # again after to_empty, which unties them
            self.head.weight = self.embed.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        state: SequenceState | None = None,
        return_state: bool = False,
        cu_seqlens: CuSeqlens | None = None,
    ) -> Tensor | tuple[Tensor, SequenceState]:
        """Logits (B, L, out_dim) of tokens (B, L), integers below in_dim, starting from `state`.

        A text of any length can be processed in pieces, each starting from the previous state. With
        cu_seqlens, cumulative lengths (S + 1,), tokens (1, total) are S packed sequences, each with
        its own state; see `plstm.ops.packed`.

        Raises:
            ValueError: tokens are not such integers; cu_seqlens is invalid or not supported by a
                mixer; positions exceed max_length; the state has another number of sequences.
        """
        _check_tokens(tokens)
        packing = as_packing("SequenceModel", cu_seqlens, tokens)
        x, state = self._run(tokens, state, return_state, packing)
        return (self._logits(x), state) if return_state else self._logits(x)

    def _run(
        self,
        tokens: Tensor,
        state: SequenceState | None,
        return_state: bool,
        packing: Packing | None = None,
    ) -> tuple[Tensor, SequenceState | None]:
        """Output of the last block, and the next state if requested."""
        options = {} if packing is None else {"cu_seqlens": packing}
        if state is None and not return_state:
            x = self._embed(tokens, None if packing is None else packing.positions)
            for block in self.blocks:
                x = block(x, **options)
            return x, None
        blocks, seen = state if state is not None else ((None,) * len(self.blocks), None)
        positions, seen = token_positions("SequenceModel", tokens, seen, packing)
        x, after = self._embed(tokens, positions), []
        for block, before in zip(self.blocks, blocks, strict=True):
            x, carried = block.forward_with_state(x, before, **options)
            after.append(carried)
        return x, SequenceState(tuple(after), seen)

    def generate(
        self,
        tokens: Tensor,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue tokens (B, L) by `length` samples: prompt and samples, (B, L + length).

        Other arguments and errors as in `stream`.
        """
        with closing(
            self.stream(tokens, temperature=temperature, top_k=top_k, generator=generator)
        ) as samples:
            return torch.cat([tokens, *islice(samples, length)], 1)

    def stream(
        self,
        tokens: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Generator[Tensor, None, None]:
        """Continue tokens (B, L) by sampling, position by position and without end.

        Prompt and continuation may have any length: the model reads the prompt in pieces, then its
        own samples, and stores nothing but its state. It is in evaluation mode until the iterator
        is closed.

        Args:
            tokens: Prompt, (B, L) with L >= 1.
            temperature: Divides the logits; 0 takes the most likely token.
            top_k: Sample only from the k most likely tokens.
            generator: Random generator.

        Yields:
            Samples (B, 1).

        Raises:
            ValueError: empty prompt, negative temperature, top_k below 1; more than max_length
                positions are read.
        """
        _check_tokens(tokens)
        if not temperature >= 0 or (top_k is not None and top_k < 1):
            raise ValueError(
                "SequenceModel.stream: temperature must be 0 or more and top_k 1 or more, got "
                f"{temperature} and {top_k}; omit top_k to sample from all tokens"
            )
        return self._continue(tokens, temperature, top_k, generator)

    @torch.no_grad()
    def _continue(
        self,
        tokens: Tensor,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
    ) -> Generator[Tensor, None, None]:
        training, state = self.training, None
        self.eval()
        try:
            for piece in tokens.split(PROMPT_PIECE, 1):
                x, state = self._run(piece, state, True)
            while True:
                token = _sample(self._logits(x[:, -1:])[:, 0], temperature, top_k, generator)
                yield token
                x, state = self._run(token, state, True)
        finally:
            self.train(training)

    def _embed(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        try:
            x = self.embed(tokens)
        except IndexError:  # raised on the CPU only; a check on a GPU would cost time
            low, high = tokens.aminmax()
            raise ValueError(
                f"SequenceModel: tokens must lie in 0..{self.embed.num_embeddings - 1}, got "
                f"{int(low)}..{int(high)}; in_dim is the vocabulary size"
            ) from None
        if self.position is not None:
            x = self.position(x, positions)
        return self.dropout(x)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.head(self.norm(x))
        if self.logit_cap is not None:
            logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        return logits


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"SequenceModel: tokens must be integers (B, L), got {tokens.dtype} of shape "
            f"{tuple(tokens.shape)}; pass vocabulary indices"
        )
    check_not_empty("SequenceModel", tokens)


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Sample one token per row of logits (B, out_dim), (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = torch.softmax(logits.float() / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator)
