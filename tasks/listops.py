"""ListOps: the value of nested lists of digits.

The task needs a memory of the open lists and of their arguments.
"""

import gzip
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.data import SPLITS, checksum
from tasks.listops_expressions import (
    PADDING,
    VOCABULARY,
    draw_expressions,
    encode,
    evaluate,
    length_weights,
)
from tasks.sequences import SequenceData, at_the_end

NAMES = {"train": ("train",), "val": ("val", "dev"), "test": ("test",)}  # in file names
SHARE = 10  # of one file, 1 in 10 expressions is for validation, 1 in 10 for testing


class ListOpsData(SequenceData):
    """Nested lists of digits, generated or from files; the value is the target at the last token.

    Example: [ MAX 2 9 [ MIN 4 7 ] 0 ] is 9, the target of the last bracket. Generated lists have 2
    or more arguments, a quarter of which are lists; lengths have their natural distribution among
    such lists, restricted to the requested range. arXiv 2011.04006 uses lengths 500..2000, depth 10
    and up to 10 arguments.

    Args:
        path: A folder with files of training, validation and test expressions, whose names contain
            train, val or dev, and test; or one file, whose last two tenths are for validation and
            testing; None generates expressions. All expressions with the requested lengths are
            used. A line has an expression and its value, separated by a tab, in any order.
        max_depth: Largest number of lists around a digit.
        max_args: Largest number of arguments of a list.
        max_args: Greatest number of arguments of a list.

    Raises:
        ValueError: a file is missing or has an invalid line; no expression has such a length;
            max_depth is below 1 or max_args below 2.

    Source: arXiv 1804.06028.
    """

    def __init__(
        self, path: str | None = None, max_depth: int = 10, max_args: int = 5, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("path", "max_depth", "max_args", logger=False)
        if max_depth < 1 or max_args < 2:
            raise ValueError(
                "ListOpsData: needs max_depth >= 1 and max_args >= 2, "
                f"got {max_depth} and {max_args}"
            )
        if path is not None and not Path(path).exists():
            raise ValueError(
                f"ListOpsData: path must be a folder or a file of expressions, got {path!r}; there "
                "is none"
            )
        for lengths in self.ranges if path is None else []:
            length_weights(lengths, max_depth, max_args)  # there are some

    @property
    def in_dim(self) -> int:
        return len(VOCABULARY)

    @property
    def out_dim(self) -> int:
        return 10

    @property
    def fresh(self) -> bool:
        return self.hparams.path is None and super().fresh

    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        h = self.hparams
        tokens = draw_expressions(seed, index, lengths, max_depth=h.max_depth, max_args=h.max_args)
        return tokens, labelled(tokens, evaluate(tokens))

    def dataset(self, split: str, size: int) -> Dataset:
        """Expressions of a split, in the set whose maximum length is `size`."""
        if self.hparams.path is None:
            return super().dataset(split, size)
        low, high = self.ranges[self.sizes.index(size)]
        dataset = ExpressionDataset(*self.expressions[split], (low, high))
        if not len(dataset):
            raise ValueError(
                f"ListOpsData: no {split} expression of {self.hparams.path} has {low}..{high} "
                "tokens; choose another length"
            )
        return dataset

    @cached_property
    def checksums(self) -> dict[str, str]:
        if self.hparams.path is None:
            return {}
        path = Path(self.hparams.path)
        if path.is_dir():
            return {f"the {split} file": checksum(_file_of(path, split)) for split in SPLITS}
        return {"the file": checksum(path)}

    @cached_property
    def expressions(self) -> dict[str, tuple[list[list[int]], list[int]]]:
        """Tokens and values of the expressions of the files, by split."""
        path = Path(self.hparams.path)
        if path.is_dir():
            return {split: read_expressions(_file_of(path, split)) for split in SPLITS}
        tokens, values = read_expressions(path)
        tenth = len(tokens) // SHARE
        bounds = [0, len(tokens) - 2 * tenth, len(tokens) - tenth, len(tokens)]
        return {
            split: (tokens[start:stop], values[start:stop])
            for split, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False)
        }


class ExpressionDataset(Dataset):
    """Padded expressions with lengths in a range.

    Args:
        tokens: Expressions.
        values: Their values.
        lengths: Minimum and maximum length.
    """

    def __init__(
        self, tokens: list[list[int]], values: list[int], lengths: tuple[int, int]
    ) -> None:
        low, self.longest = lengths
        kept = [low <= len(x) <= self.longest for x in tokens]
        self.tokens = [torch.tensor(x) for x, keep in zip(tokens, kept, strict=True) if keep]
        self.values = torch.tensor(values)[torch.tensor(kept)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        tokens = torch.full((len(indices), self.longest), PADDING)
        for row, index in enumerate(indices):
            tokens[row, : len(self.tokens[index])] = self.tokens[index]
        return tokens, labelled(tokens, self.values[indices])


def labelled(tokens: Tensor, values: Tensor) -> Tensor:
    """Targets (B, L) of expressions (B, L): their values (B,) at the last tokens."""
    lengths = (tokens != PADDING).sum(1)
    return at_the_end(values[:, None].expand_as(tokens), lengths)


def _file_of(folder: Path, split: str) -> Path:
    files = [file for file in sorted(folder.iterdir()) if any(x in file.name for x in NAMES[split])]
    if len(files) != 1:
        raise ValueError(
            f"ListOpsData: {folder} must have one file with {' or '.join(NAMES[split])} in its "
            f"name, got {', '.join(file.name for file in files) or 'none'}"
        )
    return files[0]


def read_expressions(file: Path) -> tuple[list[list[int]], list[int]]:
    """Tokens and values of the expressions in a file, which may be compressed by gzip.

    A header line, Source and Target, is skipped.

    Raises:
        ValueError: a line is not an expression and its value.
    """
    tokens, values = [], []
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        for number, line in enumerate(lines, 1):
            columns = sorted(line.rstrip("\n").split("\t"), key=len)
            if number == 1 and columns == ["Source", "Target"]:
                continue
            if len(columns) != 2 or columns[0] not in list("0123456789"):
                raise ValueError(
                    "ListOpsData: a line must be an expression and its value, a digit, with a tab "
                    f"between them, got {line[:60]!r} in line {number} of {file}"
                )
            try:
                tokens.append(encode(columns[1]))
            except ValueError as error:
                raise ValueError(f"{error}, in line {number} of {file}") from None
            values.append(int(columns[0]))
    return tokens, values
