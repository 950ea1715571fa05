"""Regular languages: what does a whole sequence come to?

Each is decided by a machine of a few states, so a net that carries its state answers at any length.
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
CYCLE = 5  # places to be at
STEPS = (0, 1, -1)  # of the actions


class Language(NamedTuple):
    """A language by its tokens and the labels of all their beginnings."""

    tokens: str  # a character for each
    classes: int
    label: Callable[[Tensor], Tensor]  # of tokens (B, L): of each beginning, (B, L)


def parity(tokens: Tensor) -> Tensor:
    """Whether the number of ones is odd."""
    return tokens.cumsum(1) % 2


def even_pairs(tokens: Tensor) -> Tensor:
    """Whether neighbours differ an even number of times, so that first and last are the same."""
    return (tokens == tokens[:, :1]).long()


def cycle_navigation(tokens: Tensor) -> Tensor:
    """Where on a cycle of 5 one stands after actions: stay, forwards, backwards."""
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
    """Draw sequences and what they come to.

    Example: the sequence 0 1 1 1 has odd parity, so its targets are -100 -100 -100 1, and with
    prefixes 0 1 0 1.

    Args:
        seed: Seed of the split.
        index: Which sequences, (B,) integers.
        lengths: Least and greatest length; all are as likely, for modular_arithmetic all odd ones.
        language: One of parity, even_pairs, cycle_navigation, modular_arithmetic.
        prefixes: Label every position with what the sequence up to there comes to; an expression
            that ends in an operator comes to what it does without.

    Returns:
        Tokens and targets, both (B, greatest length): the label is the target of the last position
        of a sequence, with prefixes of all its positions, and `UNLABELLED` of the others.

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
    """The least and the greatest odd length of a range."""
    low, high = lengths
    return low | 1, (high - 1) | 1


class LanguageData(SequenceData):
    """Sequences of a regular language; what each comes to is asked for at its last position.

    Args:
        language: parity, even_pairs, cycle_navigation or modular_arithmetic.
        prefixes: Label every position of a sequence in training, see `draw_language`; validation
            and test ask at the last position in any case. The published figures are of nets that
            learn from the last label alone, over many more sequences; those of nets that learn from
            all labels compare with each other only.

    Raises:
        ValueError: unknown language; no odd length for modular_arithmetic, in a set or in an epoch
            of training.
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
                    f"{lengths}; take a range with one in it, or a greater first_length"
                )

    def _training_ranges(self) -> list[tuple[int, int]]:
        """Lengths of every epoch until they no longer grow."""
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
    """SequenceLabelling with `scaled_accuracy`: 0 for guesses, 1 if every label is right.

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
