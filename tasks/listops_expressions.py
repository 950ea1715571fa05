"""ListOps expressions: sampled as trees, written as tokens, evaluated.

Everything runs on a batch, level by level of the trees.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.draws import fraction, stream, substream

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = (*"0123456789", *OPERATORS, "]", "padding")
FIRST_OPERATOR, CLOSE, PADDING = 10, 14, 15
LIST_SHARE = 0.25  # of the arguments above the maximum depth


class Pending(NamedTuple):
    """Groups of consecutive arguments of a list that are not sampled yet, n of them."""

    start: Tensor  # position of the first argument in the batch, (n,)
    forest: Tensor  # row of `forests`: depth and number of arguments, (n,)
    count: Tensor  # number of arguments, (n,)
    tokens: Tensor  # total number of tokens, (n,)
    streams: Tensor  # random streams, (n,)


@cache
def forests(longest: int, max_depth: int, max_args: int) -> Tensor:
    """Probabilities that k arguments inside d lists have n tokens in total.

    Returns:
        Probabilities (rows, 2 longest + 2): row d (max_args + 1) + k, column longest + 1 + n, with
        0 for n below 0.
    """
    length, entries = longest + 1, []
    size = np.eye(1, length, 1)[0]  # of one argument; at depth max_depth it is a digit
    for _ in range(max_depth + 1):
        forest = [np.eye(1, length)[0]]
        for _ in range(max_args):
            forest.append(np.convolve(forest[-1], size)[:length])
        entries.append(np.stack(forest))
        size = np.zeros(length)
        size[2:] = LIST_SHARE * entries[-1][2:, :-2].mean(0)
        size[1] += 1 - LIST_SHARE
    return torch.from_numpy(np.pad(np.concatenate(entries[::-1]), ((0, 0), (length, 0))))


def length_weights(lengths: tuple[int, int], max_depth: int, max_args: int) -> Tensor:
    """Probabilities of the expression lengths in a range, (maximum - minimum + 1,).

    Raises:
        ValueError: no expression has such a length.
    """
    low, high = lengths
    weights = forests(high, max_depth, max_args)[1, high + 1 + low :]
    if not weights.any():
        raise ValueError(
            f"ListOpsData: no expression has {low}..{high} tokens with max_depth={max_depth} and "
            f"max_args={max_args}; change the lengths, or raise max_depth or max_args"
        )
    return weights


def draw_expressions(
    seed: int, index: Tensor, lengths: tuple[int, int], *, max_depth: int, max_args: int
) -> Tensor:
    """Sample expressions with lengths in a range, (B, maximum length), padded.

    A quarter of all expressions and arguments are lists of 2..max_args arguments, with a uniform
    number of arguments; the others are digits, as are all at depth max_depth. This distribution is
    conditioned on lengths in the range without rejection: sample the length, then from left to
    right the number of tokens of each argument, given the previous ones.

    Args:
        seed: Seed of the split.
        index: Indices of the expressions, (B,) integers.
        lengths: Minimum and maximum length; an expression has 1 token, or 4 or more.
        max_depth: Largest number of lists around a digit.
        max_args: Largest number of arguments.

    Raises:
        ValueError: no expression has such a length.

    Source: arXiv 1804.06028; arXiv 2011.04006 for lengths 500..2000, depth 10 and 10 arguments.
    """
    low, longest = lengths
    table, streams = forests(longest, max_depth, max_args), stream(seed, index)
    tokens, one = torch.full((len(index), longest), PADDING), torch.ones_like(index)
    weights = length_weights(lengths, max_depth, max_args)
    size = low + _choose(weights.expand(len(index), -1), fraction(streams))
    start = torch.arange(len(index)) * longest
    pending = Pending(start, one, one, size, substream(streams, one))
    while len(pending.start):
        pending = _draw_first(pending, table, tokens.view(-1), max_args)
    return tokens


def _draw_first(pending: Pending, table: Tensor, tokens: Tensor, max_args: int) -> Pending:
    """Write the first arguments to the tokens; their contents and the rest stay pending."""
    start, forest, count, together, streams = pending
    drawn = substream(streams, torch.arange(6)[:, None])
    u_digit, u_size, u_symbol, u_count = fraction(drawn[2:])
    size = _first_size(pending, table, u_digit, u_size)
    lists, more = (size > 1).nonzero()[:, 0], (count > 1).nonzero()[:, 0]
    symbols = torch.where(size > 1, FIRST_OPERATOR + len(OPERATORS) * u_symbol, 10 * u_symbol)
    tokens[start] = symbols.long()
    tokens[(start + size)[lists] - 1] = CLOSE

    left, deeper = size[lists] - 2, (forest - count)[lists] + max_args + 1  # row of 0 arguments
    kinds = deeper[:, None] + torch.arange(2, max_args + 1)
    number = 2 + _choose(_entry(table, kinds, left[:, None]), u_count[lists])
    inside = Pending(start[lists] + 1, deeper + number, number, left, drawn[0, lists])
    rest = Pending(start + size, forest - 1, count - 1, together - size, drawn[1])
    return Pending(*(torch.cat([a, b[more]]) for a, b in zip(inside, rest, strict=True)))


def _first_size(pending: Pending, table: Tensor, u_digit: Tensor, u_size: Tensor) -> Tensor:
    """Sample the number of tokens of the first argument from two random numbers, (n,)."""
    _, forest, count, together, _ = pending
    size, one = torch.where(count == 1, together, 1), forest - count + 1  # row of 1 argument
    # Most are digits; deciding this first avoids the distribution over all sizes.
    digit = _entry(table, one, torch.ones_like(one)) * _entry(table, forest - 1, together - 1)
    longer = (count > 1) & (u_digit * _entry(table, forest, together) >= digit)
    longer = longer.nonzero()[:, 0]
    if len(longer):
        one, rest, together = one[longer], forest[longer] - 1, together[longer]
        sizes = torch.arange(2, int(together.max()) + 1)
        weights = _entry(table, rest[:, None], together[:, None] - sizes)
        weights *= table[:, table.shape[1] // 2 :][:, sizes[0] : sizes[-1] + 1][one]
        size[longer] = 2 + _choose(weights, u_size[longer])
    return size


def _entry(table: Tensor, row: Tensor, tokens: Tensor) -> Tensor:
    """Entries of `forests`, in the shape that both indices broadcast to."""
    return table.view(-1).take(row * table.shape[1] + tokens + table.shape[1] // 2)


def _choose(weights: Tensor, u: Tensor) -> Tensor:
    """Sample columns of weights (n, m), in proportion to the weights, from u (n,)."""
    sums = weights.cumsum(1)
    return torch.searchsorted(sums, u[:, None] * sums[:, -1:], right=True)[:, 0]


def evaluate(tokens: Tensor) -> Tensor:
    """Values (B,) of expressions (B, L), padded at the end.

    MED is the median, rounded down, and SM the sum modulo 10.
    """
    lists = (tokens >= FIRST_OPERATOR) & (tokens < CLOSE)
    depth = (lists.long() - (tokens == CLOSE).long()).cumsum(1) - lists.long()
    nodes = (tokens < CLOSE).flatten().nonzero()[:, 0]
    depth, order = depth.flatten()[nodes].sort(stable=True)
    levels = nodes[order].split(torch.bincount(depth).tolist())  # positions, ascending
    values = tokens.flatten().clone()
    for above, args in zip(levels[-2::-1], levels[:0:-1], strict=True):
        parents = above[values[above] >= FIRST_OPERATOR]
        owner = torch.searchsorted(parents, args) - 1  # the last parent before
        values[parents] = _apply(values[parents] - FIRST_OPERATOR, values[args], owner)
    return values.view_as(tokens)[:, 0].clone()


def _apply(operator: Tensor, args: Tensor, owner: Tensor) -> Tensor:
    """Values of operators (n,), given as indices; owner is the operator of each argument."""
    digits, n = torch.arange(10), len(operator)
    counts = torch.bincount(10 * owner + args, minlength=10 * n).view(n, 10)
    up_to = counts.cumsum(1)
    last = up_to[:, -1] - 1
    least, low, high, greatest = (  # of the sorted arguments, by position
        (up_to <= place[:, None]).sum(1)
        for place in (torch.zeros_like(last), last // 2, (last + 1) // 2, last)
    )
    total = (counts * digits).sum(1) % 10
    results = torch.stack([least, greatest, (low + high) // 2, total])
    return results.gather(0, operator[None])[0]


def encode(expression: str) -> list[int]:
    """Tokens of an expression; redundant parentheses are skipped.

    Raises:
        ValueError: a word is not a token; brackets do not match or are empty.
    """
    words = [word for word in expression.split() if word not in ("(", ")")]
    number = {word: i for i, word in enumerate(VOCABULARY[:PADDING])}
    if unknown := sorted(set(words) - set(number)):
        raise ValueError(
            f"ListOpsData: an expression has digits, {', '.join(OPERATORS)} and ], got "
            f"{unknown[0]!r}"
        )
    tokens = [number[word] for word in words]
    open_lists = 0
    for i, token in enumerate(tokens):
        empty = token == CLOSE and FIRST_OPERATOR <= tokens[i - 1] < CLOSE
        open_lists += (FIRST_OPERATOR <= token < CLOSE) - (token == CLOSE)
        if open_lists < 0 or empty or (open_lists == 0 and i + 1 < len(tokens)):
            break
    else:
        if tokens and open_lists == 0:
            return tokens
    raise ValueError(
        "ListOpsData: an expression is a digit or a list with matching brackets and arguments, "
        f"got {' '.join(words)[:80]!r}"
    )
