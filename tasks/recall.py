"""Multi-query associative recall (MQAR): what came after this key?

It needs memory: all pairs of keys and values must be kept until their key comes again, so what a
net recalls grows with the size of its state.
"""

import torch
from torch import Tensor

from plstm.checks import check_positive
from tasks.draws import uniform
from tasks.sequences import UNLABELLED, SequenceData

EXPONENT = 0.01  # of the power law of the positions


def distinct(u: Tensor, below: int) -> Tensor:
    """Distinct integers 0..below - 1 from random numbers, (B, n); every order is as likely.

    Robert Floyd's method takes n steps however large `below` is: it draws a set, of which the
    second half of the random numbers makes a sequence.

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
    """Draw sequences of pairs and of keys whose values are asked for.

    Example: with 2 pairs, length 12 and a vocabulary of 12, tokens and targets are

        2    8    4    7    4    0    2    0    0    0    0    0
        -100 -100 -100 -100 7    -100 8    -100 -100 -100 -100 -100

    Keys are 1..vocabulary / 2 - 1, values vocabulary / 2..vocabulary - 1, both without repetition.
    After the pairs come slots of two positions; each key takes the first position of a slot, and
    the i-th slot is taken with a probability in proportion to i^(0.01 - 1), without repetition and
    in any order of the keys. All other positions hold 0.

    Args:
        seed: Seed of the split.
        index: Which sequences, (B,) integers.
        length: Positions of a sequence.
        pairs: Pairs of a key and its value, D.
        vocabulary: Number of tokens.

    Returns:
        Tokens and targets, both (B, length): targets are the values at the second place of their
        keys, and `UNLABELLED` elsewhere.

    Source: arXiv 2312.04927; there the order of the keys follows that of their slots.
    """
    slots, half = length // 2 - pairs, vocabulary // 2
    u = uniform(seed, index, slots + 5 * pairs)
    for_keys, for_values, for_order, for_slots = u.split([2 * pairs, 2 * pairs, pairs, slots], 1)
    keys = 1 + distinct(for_keys, half - 1)
    values = half + distinct(for_values, vocabulary - half)
    # The largest of log p_i plus Gumbel noise are drawn one by one in proportion to p_i.
    log_p = (EXPONENT - 1) * torch.arange(1, slots + 1).log()
    noisy = log_p - (-for_slots.clamp(min=1e-300).log()).log()
    slot = noisy.topk(pairs, 1).indices.gather(1, for_order.argsort(1))
    tokens = torch.zeros(len(index), length, dtype=torch.int64)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    place = 2 * (pairs + slot)
    tokens.scatter_(1, place, keys)
    return tokens, torch.full_like(tokens, UNLABELLED).scatter(1, place, values)


class RecallData(SequenceData):
    """MQAR: pairs of keys and values, then the keys again, whose values are asked for.

    Args:
        vocabulary: Number of tokens; keys are the lower half, values the upper.
        pairs: Pairs of a sequence.

    Raises:
        ValueError: a range of lengths; no place for all pairs and keys in a sequence, or more pairs
            than keys.
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
