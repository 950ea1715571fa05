"""Multi-query associative recall (MQAR): which value follows this key?

The task needs memory: all key-value pairs must be stored until their keys occur again, so recall
accuracy depends on the state size.
"""

import torch
from torch import Tensor

from plstm.checks import check_positive
from tasks.draws import uniform
from tasks.sequences import UNLABELLED, SequenceData

EXPONENT = 0.01  # of the power law of the positions


def distinct(u: Tensor, below: int) -> Tensor:
    """Distinct integers 0..below - 1 from random numbers, (B, n), uniform over sequences.

    Robert Floyd's method takes n steps for any `below`: it draws a set, which the second half of
    the random numbers shuffles.

    Args:
        u: Random numbers in [0, 1), (B, 2 n).
        below: At least n.
    """
    count = u.shape[1] // 2
    draws, order = u.split(count, 1)
    chosen = torch.empty(len(u), 0, dtype=torch.int64)
    for column in range(count):
        greatest = below - count + column
        number = (draws[:, column : column + 1] * (greatest + 1)).long()
        taken = (chosen == number).any(1, keepdim=True)
        chosen = torch.cat([chosen, number.masked_fill(taken, greatest)], 1)
    return chosen.gather(1, order.argsort(1))


def draw_recall(
    seed: int, index: Tensor, *, length: int, pairs: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Draw sequences of key-value pairs followed by query keys.

    Example: with 2 pairs, length 12 and a vocabulary of 12, tokens and targets are

        2    8    4    7    4    0    2    0    0    0    0    0
        -100 -100 -100 -100 7    -100 8    -100 -100 -100 -100 -100

    Keys are 1..vocabulary / 2 - 1, values vocabulary / 2..vocabulary - 1, both without repetition.
    After the pairs come slots of two positions. Each key occupies the first position of a slot; the
    i-th slot is chosen with probability proportional to i^(0.01 - 1), without repetition and in
    random order of the keys. All other positions are 0.

    Args:
        seed: Seed of the split.
        index: Indices of the sequences, (B,) integers.
        length: Sequence length.
        pairs: Number of key-value pairs, D.
        vocabulary: Vocabulary size.

    Returns:
        Tokens and targets, both (B, length): targets are the values where their keys occur the
        second time, and `UNLABELLED` elsewhere.

    Source: arXiv 2312.04927; there the order of the keys follows that of their slots.
    """
    slots, half = length // 2 - pairs, vocabulary // 2
    u = uniform(seed, index, slots + 5 * pairs)
    for_keys, for_values, for_order, for_slots = u.split([2 * pairs, 2 * pairs, pairs, slots], 1)
    keys = 1 + distinct(for_keys, half - 1)
    values = half + distinct(for_values, vocabulary - half)
    # Gumbel top-k: samples in proportion to p_i, without replacement.
    log_p = (EXPONENT - 1) * torch.arange(1, slots + 1).log()
    noisy = log_p - (-for_slots.clamp(min=1e-300).log()).log()
    slot = noisy.topk(pairs, 1).indices.gather(1, for_order.argsort(1))
    tokens = torch.zeros(len(index), length, dtype=torch.int64)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    place = 2 * (pairs + slot)
    tokens.scatter_(1, place, keys)
    return tokens, torch.full_like(tokens, UNLABELLED).scatter(1, place, values)


class RecallData(SequenceData):
    """MQAR: key-value pairs, then the keys again, with their values as targets.

    Args:
        vocabulary: Vocabulary size; keys are the lower half, values the upper.
        pairs: Key-value pairs per sequence.

    Raises:
        ValueError: a length is a range; the sequence is too short for all pairs and keys; there are
            more pairs than keys.
    """

    def __init__(self, vocabulary: int = 256, pairs: int = 8, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("vocabulary", "pairs", logger=False)
        check_positive("RecallData", vocabulary=vocabulary, pairs=pairs)
        if pairs > vocabulary // 2 - 1:
            raise ValueError(
                f"RecallData: vocabulary // 2 - 1 keys must be enough for all pairs, got "
                f"vocabulary={vocabulary} and pairs={pairs}"
            )
        for low, high in self.ranges:
            if low != high:
                raise ValueError(
                    f"RecallData: a length must be one number, got the range {low}..{high}"
                )
            if high < 4 * pairs:
                raise ValueError(
                    "RecallData: a pair takes two positions, and its key two more, so length must "
                    f"be {4 * pairs} or more with pairs={pairs}, got {high}"
                )

    @property
    def in_dim(self) -> int:
        return self.hparams.vocabulary

    @property
    def out_dim(self) -> int:
        return self.hparams.vocabulary

    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        h = self.hparams
        return draw_recall(seed, index, length=lengths[1], pairs=h.pairs, vocabulary=h.vocabulary)
