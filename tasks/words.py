"""Word problems of finite groups: which element is the product of all elements so far?

A net needs a state to solve them: every element changes the product, so nothing may be forgotten,
and an error at one position affects all later ones.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from plstm.checks import check_choice
from tasks.draws import integers
from tasks.sequences import UNLABELLED, SequenceData, at_the_end, draw_lengths, inside

GROUPS = ("Z2", "Z5", "S3", "S4", "A5", "S5")
ELEMENTS = ("all", "generators")
# Two elements that generate the group, as permutations. No proper normal subgroup has both in the
# same coset, or the length alone would determine the coset of the product.
GENERATORS = {
    "Z2": ("01", "10"),
    "Z5": ("01234", "12340"),
    "S3": ("102", "120"),
    "S4": ("1203", "1230"),  # a 3-cycle and a 4-cycle
    "A5": ("12034", "12340"),  # a 3-cycle and a 5-cycle
    "S5": ("10234", "12340"),  # a transposition and a 5-cycle
}


@cache
def group_elements(group: str) -> Tensor:
    """Elements of a group as permutations (order, n): row g maps i to g[i]; 1 is the first."""
    kind, n = group[0], int(group[1:])
    if kind == "Z":
        shift = torch.arange(n)
        return (shift[:, None] + shift) % n
    elements = torch.tensor(list(permutations(range(n))))
    return elements if kind == "S" else elements[_even(elements)]


def _even(elements: Tensor) -> Tensor:
    """Which permutations (order, n) are even."""
    wrong = (elements[:, :, None] > elements[:, None]).triu(1)
    return wrong.sum((1, 2)) % 2 == 0


@cache
def multiplication_table(group: str) -> Tensor:
    """Index of the product a b of the elements with indices a and b, (order, order).

    a b maps i to a[b[i]].
    """
    elements = group_elements(group)
    weights = elements.shape[1] ** torch.arange(elements.shape[1]).flip(0)
    codes, number = (elements * weights).sum(-1).sort()  # one integer per permutation
    products = elements[:, elements]  # [a, b, i] = a[b[i]]
    return number[torch.searchsorted(codes, (products * weights).sum(-1))]


def prefix_products(words: Tensor, table: Tensor) -> Tensor:
    """Products of the elements up to each position, (B, L), of words (B, L).

    A parallel scan over 1, 2, 4, ... neighbors, so that L positions take log2(L) steps.
    """
    order, products, reach = len(table), words, 1
    while reach < words.shape[1]:
        before, after = products[:, :-reach], products[:, reach:]
        longer = table.flatten()[before * order + after]
        products = torch.cat([products[:, :reach], longer], 1)
        reach *= 2
    return products


def draw_words(
    seed: int, index: Tensor, lengths: tuple[int, int], *, group: str, elements: str = "all"
) -> tuple[Tensor, Tensor]:
    """Draw words and their products.

    Example: in Z2 the word 0 1 1 1 has the products 0 1 0 1; with "all" these are the targets, with
    "generators" only the last one.

    Args:
        seed: Seed of the split.
        index: Indices of the words, (B,) integers.
        lengths: Minimum and maximum length.
        group: One of Z2, Z5, S3, S4, A5, S5.
        elements: "all": a word has any elements, and the product up to every position is a target.
            "generators": it has two elements that generate the group, and the last product is the
            target.

    Returns:
        Tokens and targets, both (B, maximum length): indices of elements, or of generators, and
        after the end of a word the padding token and `UNLABELLED`.

    Source: arXiv 2404.08819 for "all".
    """
    table, generators = multiplication_table(group), generator_numbers(group)
    symbols = len(table) if elements == "all" else len(generators)
    length = draw_lengths(seed, index, lengths)
    tokens = integers(seed, index, lengths[1], symbols, first=1)
    words = tokens if elements == "all" else generators[tokens]
    products, kept = prefix_products(words, table), inside(length, lengths[1])
    targets = products if elements == "all" else at_the_end(products, length)
    return tokens.where(kept, symbols), targets.where(kept, UNLABELLED)


@cache
def generator_numbers(group: str) -> Tensor:
    """Indices of the generators among the elements, (2,)."""
    chosen = torch.tensor([[int(digit) for digit in name] for name in GENERATORS[group]])
    return (group_elements(group) == chosen[:, None]).all(-1).nonzero()[:, 1]


class WordData(SequenceData):
    """Words over a finite group; the target is the product of all elements up to a position.

    Args:
        group: Z2 (parity), Z5, S3, S4, A5 or S5.
        elements: "all" (any elements, a label at every position) or "generators" (two elements, a
            label at the last position); their results are not comparable.

    Raises:
        ValueError: unknown group or elements.
    """

    def __init__(self, group: str = "S3", elements: str = "all", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("group", "elements", logger=False)
        check_choice("WordData", "group", group, GROUPS)
        check_choice("WordData", "elements", elements, ELEMENTS)

    @property
    def in_dim(self) -> int:
        tokens = (
            self.out_dim if self.hparams.elements == "all" else len(GENERATORS[self.hparams.group])
        )
        return tokens + 1  # padding

    @property
    def out_dim(self) -> int:
        return len(group_elements(self.hparams.group))

    @property
    def class_names(self) -> list[str]:
        """Permutations by their values: 102 maps 0 to 1, 1 to 0 and 2 to itself."""
        return ["".join(map(str, row)) for row in group_elements(self.hparams.group).tolist()]

    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        h = self.hparams
        return draw_words(seed, index, lengths, group=h.group, elements=h.elements)
