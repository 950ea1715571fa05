"""Regular languages: classify a whole sequence.

Each has a finite automaton with few states, so a recurrent net can generalize to any length.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from plstm.checks import check_choice
from tasks.draws import integers
from tasks.labelling import SequenceLabelling
from tasks.sequences import (
    UNLABELLED,
    SequenceData,
    at_the_end,
    draw_lengths,
    epoch_lengths,
    inside,
)

MODULUS = 5
CYCLE = 5  # positions on the cycle
STEPS = (0, 1, -1)  # of the actions


class Language(NamedTuple):
    """A language: its tokens, and the labels of all prefixes."""

    tokens: str  # one character per token
    classes: int
    label: Callable[[Tensor], Tensor]  # labels of all prefixes, (B, L), of tokens (B, L)


def parity(tokens: Tensor) -> Tensor:
    """Whether the number of ones is odd."""
    return tokens.cumsum(1) % 2


def even_pairs(tokens: Tensor) -> Tensor:
    """Whether adjacent tokens differ an even number of times, so first and last are equal."""
    return (tokens == tokens[:, :1]).long()


def cycle_navigation(tokens: Tensor) -> Tensor:
    """Position on a cycle of 5 after the actions stay, forwards and backwards."""
    return torch.tensor(STEPS)[tokens].cumsum(1) % CYCLE


def modular_arithmetic(tokens: Tensor) -> Tensor:
    """Value modulo 5 of digits with + - * between them, * before + and -; of odd lengths."""
    digits, operators = tokens[:, ::2], tokens[:, 1::2]
    total, term = torch.zeros_like(digits[:, 0]), digits[:, 0]  # the value is total + term
    values = [term]
    for operator, digit in zip(operators.T - MODULUS, digits[:, 1:].T, strict=False):
        times = operator == 2
        signed = torch.where(operator == 1, -digit, digit)
        total = torch.where(times, total, total + term)
        term = torch.where(times, term * digit % MODULUS, signed)
        values.append((total + term) % MODULUS)
    return torch.stack(values, 1).repeat_interleave(2, 1)[:, : tokens.shape[1]]


LANGUAGES = {
    "parity": Language("01", 2, parity),
    "even_pairs": Language("01", 2, even_pairs),
    "cycle_navigation": Language("0+-", CYCLE, cycle_navigation),
    "modular_arithmetic": Language("01234+-*", MODULUS, modular_arithmetic),
}


def draw_language(
    seed: int,
    index: Tensor,
    lengths: tuple[int, int],
    *,
    language: str,
    prefixes: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw sequences and their labels.

    Example: the sequence 0 1 1 1 has odd parity, so its targets are -100 -100 -100 1, and with
    prefixes 0 1 0 1.

    Args:
        seed: Seed of the split.
        index: Indices of the sequences, (B,) integers.
        lengths: Minimum and maximum length, sampled uniformly; odd ones for modular_arithmetic.
        language: One of parity, even_pairs, cycle_navigation, modular_arithmetic.
        prefixes: Label every position with the label of the sequence up to it; an expression that
            ends in an operator has the value without it.

    Returns:
        Tokens and targets, both (B, maximum length): the label of the sequence at its last
        position, with prefixes labels at all its positions, and `UNLABELLED` elsewhere.

    Source: arXiv 2207.02098.
    """
    spec, greatest = LANGUAGES[language], lengths[1]
    if language == "modular_arithmetic":
        low, high = odd(lengths)
        length = 2 * draw_lengths(seed, index, (low // 2, high // 2)) + 1
        tokens = integers(seed, index, greatest, MODULUS, first=1)
        symbols = MODULUS + integers(seed, index, greatest, 3, first=1)
        tokens[:, 1::2] = symbols[:, 1::2]
    else:
        length = draw_lengths(seed, index, lengths)
        tokens = integers(seed, index, greatest, len(spec.tokens), first=1)
    labels, kept = spec.label(tokens), inside(length, greatest)
    targets = labels.where(kept, UNLABELLED) if prefixes else at_the_end(labels, length)
    return tokens.where(kept, len(spec.tokens)), targets


def odd(lengths: tuple[int, int]) -> tuple[int, int]:
    """The minimum and maximum odd length of a range."""
    low, high = lengths
    return low | 1, (high - 1) | 1


class LanguageData(SequenceData):
    """Sequences of a regular language, with their labels at the last position.

    Args:
        language: parity, even_pairs, cycle_navigation or modular_arithmetic.
        prefixes: Label every position of a sequence in training, see `draw_language`; validation
            and test sets always have the label at the last position. Published results are of nets
            that train on the last label alone, with many more sequences; results with prefixes are
            not comparable with them.

    Raises:
        ValueError: unknown language; no odd length for modular_arithmetic, in a set or in a
            training epoch.
    """

    def __init__(self, language: str = "parity", prefixes: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("language", "prefixes", logger=False)
        check_choice("LanguageData", "language", language, tuple(LANGUAGES))
        for lengths in (*self.ranges, *self._training_ranges()):
            low, high = odd(lengths)
            if language == "modular_arithmetic" and low > high:
                raise ValueError(
                    "LanguageData: expressions of modular_arithmetic have odd lengths, got "
                    f"{lengths}; use a range with an odd length, or a larger first_length"
                )

    def _training_ranges(self) -> list[tuple[int, int]]:
        """Lengths of every epoch until they stop growing."""
        first, epochs = self.hparams.first_length, range(self.sizes[0].bit_length())
        return [epoch_lengths(self.ranges[0], first, epoch) for epoch in epochs]

    @property
    def in_dim(self) -> int:
        return len(LANGUAGES[self.hparams.language].tokens) + 1  # padding

    @property
    def out_dim(self) -> int:
        return LANGUAGES[self.hparams.language].classes

    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return draw_language(seed, index, lengths, language=self.hparams.language)

    def draw_training(
        self, seed: int, index: Tensor, lengths: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        h = self.hparams
        return draw_language(seed, index, lengths, language=h.language, prefixes=h.prefixes)


class LanguageLabelling(SequenceLabelling):
    """SequenceLabelling with `scaled_accuracy`: 0 for chance, 1 if all labels are correct.

    It is (accuracy - 1 / classes) / (1 - 1 / classes).

    Source: arXiv 2411.12537.
    """

    def on_validation_epoch_end(self) -> None:
        self._log_scaled("val")

    def on_test_epoch_end(self) -> None:
        self._log_scaled("test")

    def _log_scaled(self, split: str) -> None:
        chance = 1 / self.out_dim
        for name in self.eval_names:
            accuracy = self.metrics[f"accuracy{name}"].compute()
            scaled = (accuracy - chance) / (1 - chance)
            self.log(f"{split}/scaled_accuracy{name}", scaled, prog_bar=True)
