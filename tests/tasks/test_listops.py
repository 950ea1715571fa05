import gzip
import os
import random
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import median

import pytest
import torch

from tasks.data import UNLABELLED
from tasks.listops import ExpressionDataset, ListOpsData, read_expressions
from tasks.listops_expressions import PADDING, VOCABULARY, draw_expressions, encode, evaluate

DATA = Path(os.environ.get("PLSTM_DATA", Path(__file__).parents[3] / "shared" / "data"))
LABELLED = DATA / "listops" / "test_d20s.tsv.gz"
OPERATIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda args: int(median(args)),
    "[SM": lambda args: sum(args) % 10,
}


def written(tokens):
    return " ".join(VOCABULARY[token] for token in tokens if token != PADDING)


def parsed(expression):
    """Value, depth and numbers of arguments of an expression, by the definition."""
    stack, depth, counts = [[]], 0, []
    for word in expression.split():
        if word in OPERATIONS:
            stack += [[word]]
            depth = max(depth, len(stack) - 1)
        elif word == "]":
            operator, *args = stack.pop()
            counts.append(len(args))
            stack[-1].append(OPERATIONS[operator](args))
        else:
            stack[-1].append(int(word))
    ((value,),) = stack
    return value, depth, counts


def padded(expressions):
    rows = [torch.tensor(encode(x)) for x in expressions]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def test_evaluate():
    values = {
        "7": 7,
        "[MED 1 2 ]": 1,
        "[MED 9 2 4 ]": 4,
        "[SM 9 8 [MIN 4 3 ] 5 ]": 5,
        "[MAX [MED 1 2 3 4 ] [SM [MIN 6 9 ] 6 ] 0 ]": 2,
        "( ( ( [MAX 1 ) 5 ) ] )": 5,
    }
    assert evaluate(padded(values)).tolist() == list(values.values())


@pytest.mark.skipif(not LABELLED.exists(), reason="the labelled expressions are not here")
def test_evaluate_gives_every_published_label():
    tokens, values = read_expressions(LABELLED)
    assert len(values) == 10_000
    data = ExpressionDataset(tokens, values, (1, 1000))
    for start in range(0, 10_000, 1000):
        batch, _ = data.__getitems__(list(range(start, start + 1000)))
        assert torch.equal(evaluate(batch), data.values[start : start + 1000])


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ((1, 1), (1, 2)),
        ((4, 4), (1, 2)),
        ((1, 9), (1, 3)),
        ((4, 40), (2, 5)),
        ((37, 37), (2, 5)),  # the longest
        ((60, 64), (10, 2)),
        ((60, 64), (10, 10)),
    ],
    ids=str,
)
def test_drawn_expressions(lengths, shape):
    max_depth, max_args = shape
    options = {"max_depth": max_depth, "max_args": max_args}
    tokens = draw_expressions(1, torch.arange(300), lengths, **options)
    assert tokens.shape == (300, lengths[1])
    values = evaluate(tokens).tolist()
    for row, value in zip(tokens.tolist(), values, strict=True):
        expression = written(row)
        assert lengths[0] <= len(expression.split()) <= lengths[1]
        assert encode(expression) + [PADDING] * (lengths[1] - len(encode(expression))) == row
        want, depth, counts = parsed(expression)
        assert value == want
        assert depth <= max_depth
        assert all(2 <= count <= max_args for count in counts)


def naive(generator, depth, max_depth, max_args):
    """An expression by the definition: shape only, with 0 for every digit."""
    if depth == max_depth or generator.random() >= 0.25:
        return "0"
    count = generator.randint(2, max_args)
    args = [naive(generator, depth + 1, max_depth, max_args) for _ in range(count)]
    return f"[ {' '.join(args)} ]"


def test_shapes_are_as_likely_as_by_rejection():
    """Up to 13 tokens, depth 2 and 3 arguments, against expressions of the definition."""
    generator, wanted = random.Random(0), Counter()
    while wanted.total() < 4000:
        shape = naive(generator, 0, 2, 3)
        wanted[shape] += 4 <= len(shape.split()) <= 13
    tokens = draw_expressions(2, torch.arange(4000), (4, 13), max_depth=2, max_args=3)
    words = [["0" if x < 10 else "[" if x < 14 else "]" for x in row] for row in tokens.tolist()]
    sizes = (tokens != PADDING).sum(1).tolist()
    got = Counter(" ".join(row[:size]) for row, size in zip(words, sizes, strict=True))
    assert len(wanted) > 10
    for shape in got.keys() | wanted.keys():
        together = got[shape] + wanted[shape]
        assert abs(got[shape] - wanted[shape]) <= 5 * together**0.5, shape


def test_digits_and_operators_are_uniform():
    tokens = draw_expressions(4, torch.arange(2000), (10, 40), max_depth=10, max_args=5)
    counts = torch.bincount(tokens.flatten(), minlength=16)
    for part in (counts[:10], counts[10:14]):
        mean = part.double().mean()
        assert (part - mean).abs().max() < 5 * mean**0.5
    for operator, digit in product(range(10, 14), range(10)):  # the first of its arguments
        after = tokens[:, 1:][tokens[:, :-1] == operator]
        digits = after[after < 10]
        assert abs((digits == digit).sum() - len(digits) / 10) < 5 * (len(digits) / 10) ** 0.5


def test_expressions_are_a_function_of_seed_and_index():
    options = {"max_depth": 5, "max_args": 4}
    whole, order = draw_expressions(5, torch.arange(40), (4, 30), **options), torch.randperm(40)
    assert torch.equal(draw_expressions(5, order, (4, 30), **options), whole[order])
    assert torch.equal(draw_expressions(5, torch.tensor([7]), (4, 30), **options), whole[7:8])
    assert not torch.equal(draw_expressions(6, torch.arange(40), (4, 30), **options), whole)


def test_value_is_asked_for_at_the_last_token():
    data = ListOpsData(length=(4, 20), extrapolation_lengths=((21, 30),), val_size=50)
    for loader, width in zip(data.val_dataloader(), (20, 30), strict=True):
        for tokens, targets in loader:
            assert tokens.shape == targets.shape == (50, width)
            last = (tokens != PADDING).sum(1, keepdim=True) - 1
            assert torch.equal(targets.gather(1, last)[:, 0], evaluate(tokens))
            assert ((targets != UNLABELLED).sum(1) == 1).all()


LINES = [f"{value}\t( ( [MAX {value} ) 0 ) ]" for value in range(10)] * 2


@pytest.fixture
def folder(tmp_path):
    """Files in the two common forms, one of them packed."""
    (tmp_path / "basic_train.tsv").write_text("Source\tTarget\n[SM 1 [MIN 2 3 ] ]\t3\n4\t4\n")
    (tmp_path / "basic_dev.tsv").write_text("[MED 1 2 3 ]\t2\n")
    with gzip.open(tmp_path / "basic_test.tsv.gz", "wt") as file:
        file.write("\n".join(LINES) + "\n")
    return tmp_path


def test_folder_of_files(folder):
    data = ListOpsData(str(folder), length=(1, 8), batch_size=2)
    ((tokens, targets),) = data.train_dataloader()
    order = targets.max(1).values.argsort()
    assert [written(row) for row in tokens[order]] == ["[SM 1 [MIN 2 3 ] ]", "4"]
    assert targets[order].tolist() == [[UNLABELLED] * 6 + [3, UNLABELLED], [4] + [UNLABELLED] * 7]
    assert len(data.val_dataloader()[0].dataset) == 1
    assert len(data.test_dataloader()[0].dataset) == 20


def test_one_file(tmp_path):
    file = tmp_path / "all.tsv"
    file.write_text("\n".join(LINES) + "\n")
    data = ListOpsData(str(file), length=4)
    sizes = {split: len(data.dataset(split, data.sizes[0])) for split in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 2, "test": 2}
    assert data.dataset("test", data.sizes[0]).values.tolist() == [8, 9]


WRONG_LINES = {
    "[MAX 1 2 ]": r"a line must be an expression and its value.* in line 1 of .*train.tsv",
    "12\t[MAX 1 2 ]": "its value, a digit, with a tab",
    "1\t[ADD 1 2 ]": r"an expression has digits, \[MIN, .* got '\[ADD', in line 1",
    "1\t[MAX 1 2": "with matching brackets and arguments, got",
    "1\t[MAX 1 ] ]": "with matching brackets",
    "1\t[MAX ]": "with matching brackets and arguments",
    "1\t1 2": "with matching brackets",
    "1\t( )": "with matching brackets",
}


@pytest.mark.parametrize(("line", "message"), WRONG_LINES.items())
def test_wrong_lines(line, message, folder):
    (folder / "basic_train.tsv").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=f"ListOpsData: .*{message}"):
        ListOpsData(str(folder)).train_dataloader()


def test_wrong_folders(folder):
    with pytest.raises(ValueError, match=r"no train expression of .* has 20..30 tokens"):
        ListOpsData(str(folder), length=(20, 30)).train_dataloader()
    (folder / "train_2.tsv").write_text("4\t4\n")
    with pytest.raises(ValueError, match=r"one file with train in its name, got basic_train.tsv, "):
        ListOpsData(str(folder)).train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "none"}, "path must be a folder or a file of expressions, got 'none'"),
        ({"max_args": 1}, "needs max_depth >= 1 and max_args >= 2, got 10 and 1"),
        ({"max_depth": 0}, "needs max_depth >= 1 and max_args >= 2, got 0 and 5"),
        ({"length": (2, 3)}, "no expression has 2..3 tokens with max_depth=10 and max_args=5"),
        ({"max_depth": 1, "length": 9}, "no expression has 9..9 tokens with max_depth=1"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"ListOpsData: {message}"):
        ListOpsData(**arguments)
