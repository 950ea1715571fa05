import pytest
import torch

from tasks.data import UNLABELLED
from tasks.recall import EXPONENT, RecallData, distinct, draw_recall

SIZES = [(64, 8, 256), (8, 2, 12), (4, 1, 4), (13, 3, 20), (512, 64, 8192)]


def test_distinct_numbers_are_uniform():
    """Every sequence of 2 of 0..3 comes as often as any other."""
    drawn = distinct(torch.rand(12_000, 4, dtype=torch.float64), 4)
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16).view(4, 4)
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(4, dtype=torch.bool)]
    assert (others - 1000).abs().max() < 5 * 1000**0.5


def test_distinct_numbers_can_be_all():
    drawn = distinct(torch.rand(50, 14, dtype=torch.float64), 7)
    assert torch.equal(drawn.sort(1).values, torch.arange(7).expand(50, 7))


@pytest.mark.parametrize(("length", "pairs", "vocabulary"), SIZES)
def test_values_are_asked_for_where_keys_come_again(length, pairs, vocabulary):
    shape = {"length": length, "pairs": pairs, "vocabulary": vocabulary}
    tokens, targets = draw_recall(3, torch.arange(20), **shape)
    assert tokens.shape == targets.shape == (20, length)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        keys, values = row[: 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < vocabulary // 2 for key in keys)
        assert all(vocabulary // 2 <= value < vocabulary for value in values)
        known = dict(zip(keys, values, strict=True))
        asked = [i for i, label in enumerate(target) if label != UNLABELLED]
        assert sorted(row[i] for i in asked) == sorted(keys)
        assert all(target[i] == known[row[i]] for i in asked)
        assert all(i >= 2 * pairs and i % 2 == 0 for i in asked)
        assert all(row[i] == 0 for i in range(2 * pairs, length) if i not in asked)


def test_places_follow_the_power_law():
    """With one pair, slot i is taken in proportion to i^(0.01 - 1)."""
    tokens, _ = draw_recall(1, torch.arange(20_000), length=12, pairs=1, vocabulary=8)
    slot = (tokens[:, 2::2] > 0).long().argmax(1)
    weights = torch.arange(1, 6).double() ** (EXPONENT - 1)
    want = 20_000 * weights / weights.sum()
    assert ((torch.bincount(slot) - want).abs() < 5 * want.sqrt()).all()


def test_places_do_not_tell_the_pair():
    """The first question is after any pair alike, so order does not stand in for keys."""
    tokens, targets = draw_recall(1, torch.arange(8000), length=32, pairs=4, vocabulary=32)
    first = (targets != UNLABELLED).long().argmax(1)
    asked = tokens.gather(1, first[:, None])
    counts = torch.bincount((tokens[:, :8:2] == asked).long().argmax(1), minlength=4)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


def test_sequences_are_a_function_of_seed_and_index():
    shape = {"length": 32, "pairs": 4, "vocabulary": 32}
    whole, order = draw_recall(5, torch.arange(40), **shape), torch.randperm(40)
    for a, b in zip(draw_recall(5, order, **shape), whole, strict=True):
        assert torch.equal(a, b[order])
    assert not torch.equal(draw_recall(6, torch.arange(40), **shape)[0], whole[0])


def test_data():
    data = RecallData(vocabulary=16, pairs=2, length=8, extrapolation_lengths=(12,), val_size=3)
    assert (data.in_dim, data.out_dim) == (16, 16)
    assert [tokens.shape for loader in data.val_dataloader() for tokens, _ in loader] == [
        (3, 8),
        (3, 12),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 17}, "length must be 68 or more with pairs=17, got 64"),
        ({"pairs": 0}, "RecallData: pairs must be 1 or more, got 0"),
        ({"vocabulary": 16}, r"keys must be enough for all pairs, got vocabulary=16 and pairs=8"),
        ({"length": (32, 64)}, "RecallData: a length must be one number, got the range 32..64"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecallData(**arguments)
