from itertools import product

import pytest
import torch

from tasks.data import UNLABELLED
from tasks.words import (
    ELEMENTS,
    GROUPS,
    WordData,
    draw_words,
    generator_numbers,
    group_elements,
    multiplication_table,
    prefix_products,
)

ORDERS = {"Z2": 2, "Z5": 5, "S3": 6, "S4": 24, "A5": 60, "S5": 120}
groups = pytest.mark.parametrize("group", GROUPS)


def composed(a, b):
    """The permutation that does b first, then a."""
    return tuple(a[i] for i in b)


@groups
def test_table_is_composition(group):
    elements = [tuple(row) for row in group_elements(group).tolist()]
    table = multiplication_table(group).tolist()
    assert len(set(elements)) == ORDERS[group]
    assert elements[0] == tuple(range(len(elements[0])))
    for a, b in product(range(len(elements)), repeat=2):
        assert elements[table[a][b]] == composed(elements[a], elements[b])


@groups
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65])
def test_prefix_products_are_those_of_a_loop(group, length):
    table = multiplication_table(group)
    words = torch.randint(len(table), (5, length))
    want, state = [], torch.zeros(5, dtype=torch.int64)
    for letter in words.T:
        state = table[state, letter]
        want.append(state)
    assert torch.equal(prefix_products(words, table), torch.stack(want, 1))


@groups
def test_generators_reach_all_elements_by_words_of_one_length(group):
    """So that neither the length nor a token rules an element out."""
    table, generators = multiplication_table(group), generator_numbers(group)
    reached = torch.tensor([0])
    for _ in range(2 * ORDERS[group]):
        reached = table[reached[:, None], generators].unique()
    assert len(reached) == ORDERS[group]


@groups
def test_words_of_all_elements(group):
    tokens, targets = draw_words(3, torch.arange(6), (9, 9), group=group)
    assert torch.equal(targets, prefix_products(tokens, multiplication_table(group)))


@groups
def test_words_of_generators(group):
    tokens, targets = draw_words(3, torch.arange(50), (4, 9), group=group, elements="generators")
    lengths = (tokens < 2).sum(1)
    assert set(lengths.tolist()) == set(range(4, 10))
    generators, table = generator_numbers(group), multiplication_table(group)
    for word, target, length in zip(tokens, targets, lengths.tolist(), strict=True):
        assert (word[length:] == 2).all()
        want = prefix_products(generators[word[None, :length]], table)[0, -1]
        assert target[length - 1] == want
        assert (target != UNLABELLED).sum() == 1


def test_range_of_lengths_with_all_elements():
    tokens, targets = draw_words(3, torch.arange(50), (2, 5), group="S3")
    padding = tokens == 6
    assert torch.equal(padding, targets == UNLABELLED)
    assert set(padding.sum(1).tolist()) == {0, 1, 2, 3}
    assert (padding.long().diff(dim=1) >= 0).all()


@groups
def test_words_are_a_function_of_seed_and_index(group):
    whole = draw_words(5, torch.arange(40), (3, 8), group=group)
    order = torch.randperm(40)
    for a, b in zip(draw_words(5, order, (3, 8), group=group), whole, strict=True):
        assert torch.equal(a, b[order])
    assert not torch.equal(draw_words(6, torch.arange(40), (3, 8), group=group)[0], whole[0])


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("place", [0, 3, 7])
def test_no_token_tells_the_label(place, elements):
    """In S3, of 8 letters: given any one of them, every product is as likely; generators nearly."""
    count = 60_000
    tokens, targets = draw_words(1, torch.arange(count), (8, 8), group="S3", elements=elements)
    symbols = 6 if elements == "all" else 2
    pairs = torch.bincount(tokens[:, place] * 6 + targets[:, -1], minlength=6 * symbols)
    shares = pairs.view(symbols, 6) / count
    slack = 0 if elements == "all" else 0.02  # a walk of 8 steps is not quite uniform
    assert (shares * 6 * symbols - 1).abs().max() < 5 * (6 * symbols / count) ** 0.5 + 6 * slack


def test_data():
    words = WordData("A5", length=6, extrapolation_lengths=(9,), batch_size=4, test_size=8)
    assert (words.in_dim, words.out_dim) == (61, 60)
    assert words.class_names[0] == "01234"
    assert (WordData("A5", elements="generators").in_dim) == 3
    first, further = words.test_dataloader()
    assert [tokens.shape for tokens, _ in first] == [(4, 6)] * 2
    assert [tokens.shape for tokens, _ in further] == [(4, 9)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "S6"}, "WordData: group must be one of 'Z2', .*, got 'S6'"),
        ({"elements": "some"}, "WordData: elements must be one of 'all', .*, got 'some'"),
        ({"length": 0}, "WordData: a length must be a number in 1..65535, or .*, got 0"),
        ({"length": (5, 3)}, r"WordData: a length must be .*, got \(5, 3\)"),
        ({"extrapolation_lengths": (64,)}, r"the sizes .* must differ, .*\[64, 64\]"),
        ({"seed": -1}, "WordData: seed must lie in 0..4294967295, got -1"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WordData(**arguments)
