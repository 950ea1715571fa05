from itertools import pairwise

import pytest
import torch

from tasks.data import SPLITS, UNLABELLED
from tasks.languages import LANGUAGES, LanguageData, draw_language, odd

languages = pytest.mark.parametrize("language", LANGUAGES)


def value_of(language, word):
    """What a word comes to, by its definition."""
    if language == "parity":
        return word.count("1") % 2
    if language == "even_pairs":
        return int(sum(a != b for a, b in pairwise(word)) % 2 == 0)
    if language == "cycle_navigation":
        return (word.count("+") - word.count("-")) % 5
    return eval(word) % 5  # Python's own precedence of operators


@languages
@pytest.mark.parametrize("lengths", [(3, 9), (4, 10), (1, 1), (3, 40), (40, 256)])
def test_labels(language, lengths):
    tokens, targets = draw_language(2, torch.arange(200), lengths, language=language)
    names = LANGUAGES[language].tokens
    assert tokens.shape == targets.shape == (200, lengths[1])
    assert int(tokens.max()) <= len(names)
    seen = set()
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        word = "".join(names[token] for token in row if token < len(names))
        assert row[len(word) :] == [len(names)] * (len(row) - len(word))
        labels = [label for label in target if label != UNLABELLED]
        assert labels == [value_of(language, word)]
        assert target[len(word) - 1] == labels[0]
        seen.add(len(word))
    if language == "modular_arithmetic":
        low, high = odd(lengths)
        assert seen <= set(range(low, high + 1, 2))
        assert {low, high} <= seen or high > 40
    else:
        assert seen <= set(range(lengths[0], lengths[1] + 1))
        assert set(lengths) <= seen or lengths[1] > 40


@languages
def test_labels_of_all_beginnings(language):
    tokens, targets = draw_language(2, torch.arange(50), (3, 9), language=language, prefixes=True)
    names = LANGUAGES[language].tokens
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        word = "".join(names[token] for token in row if token < len(names))
        operators = "+-*" if language == "modular_arithmetic" else ""
        beginnings = [word[:n].rstrip(operators) for n in range(1, len(word) + 1)]
        want = [value_of(language, beginning) for beginning in beginnings]
        assert target == want + [UNLABELLED] * (9 - len(word))


def test_training_alone_has_labels_of_all_beginnings():
    for prefixes in (False, True):
        data = LanguageData("even_pairs", prefixes=prefixes, length=(3, 9), seed=0)
        for split in SPLITS:
            tokens, targets = data.dataset(split, 9).__getitems__([0, 1])
            every = prefixes and split == "train"
            want = (tokens < 2).sum(1) if every else torch.ones(2)
            assert torch.equal((targets != UNLABELLED).sum(1), want.long())


@languages
def test_sequences_are_a_function_of_seed_and_index(language):
    whole = draw_language(5, torch.arange(40), (3, 9), language=language)
    order = torch.randperm(40)
    for a, b in zip(draw_language(5, order, (3, 9), language=language), whole, strict=True):
        assert torch.equal(a, b[order])
    other = draw_language(6, torch.arange(40), (3, 9), language=language)
    assert not torch.equal(other[0], whole[0])


@languages
def test_neither_length_nor_last_token_tells_the_label(language):
    """At lengths of 15 and more; the operands of a product make 0 likelier in arithmetic."""
    count, spec = 40_000, LANGUAGES[language]
    tokens, targets = draw_language(1, torch.arange(count), (15, 18), language=language)
    lengths = (tokens < len(spec.tokens)).sum(1)
    labels = targets.max(1).values
    last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
    shares = torch.bincount(labels, minlength=spec.classes) / count
    slack = 0.12 if language == "modular_arithmetic" else 0.01
    assert (shares - 1 / spec.classes).abs().max() < slack
    for part in (lengths - 15, last):
        for value in part.unique():
            given = labels[part == value]
            share = torch.bincount(given, minlength=spec.classes).max() / len(given)
            assert share < shares.max() + slack + 5 * 0.5 / len(given) ** 0.5


def test_data():
    data = LanguageData("modular_arithmetic", length=(3, 40), extrapolation_lengths=((40, 256),))
    assert (data.in_dim, data.out_dim) == (9, 5)
    assert data.eval_names == ["", "@256"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"language": "palindromes"}, "LanguageData: language must be one of 'parity'"),
        ({"language": "modular_arithmetic", "length": 8}, r"have odd lengths, got \(8, 8\)"),
        (
            {"language": "modular_arithmetic", "length": (3, 9), "first_length": 1},
            r"have odd lengths, got \(2, 2\); .* or a larger first_length",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LanguageData(**arguments)
