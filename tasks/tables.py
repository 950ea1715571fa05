"""CSV files of users."""

import csv
import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

MISSING = {"", "na", "n/a", "nan", "null", "none"}  # cells that mean not measured


class Row(NamedTuple):
    """A row that is not blank."""

    file: str
    line: int  # line number of its end; the header is line 1
    cells: list[str]


class Table(NamedTuple):
    """Rows of files with the same columns."""

    columns: list[str]
    rows: list[Row]

    def column(self, name: str) -> list[str]:
        """Cells of a column, stripped; empty if a row is too short.

        Raises:
            ValueError: the column is missing or not unique.
        """
        if self.columns.count(name) != 1:
            known = ", ".join(map(repr, self.columns))
            raise ValueError(
                f"MoleculesData: a table must have one column {name!r}, {self.rows[0].file} has "
                f"{known}; name one of them, and separate columns by commas"
            )
        place = self.columns.index(name)
        return [row.cells[place].strip() if place < len(row.cells) else "" for row in self.rows]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Cells of columns as numbers, (rows, columns); NaN if not measured.

        Raises:
            ValueError: a cell is not a finite number; the message has its file, line and column.
        """
        columns = [
            [
                _number(cell, row, name)
                for cell, row in zip(self.column(name), self.rows, strict=True)
            ]
            for name in names
        ]
        return np.array(columns, dtype=np.float64).T

    def select(self, names: Sequence[str]) -> "Table":
        """The same rows with some of the columns."""
        cells = zip(*(self.column(name) for name in names), strict=True)
        rows = [row._replace(cells=list(own)) for row, own in zip(self.rows, cells, strict=True)]
        return Table(list(names), rows)


def read_table(path: str | Path) -> Table:
    """Read a CSV file, which may be compressed (.gz), with a header and comma-separated columns.

    Accepts byte-order marks, Windows line endings, blank lines and quoted line breaks.

    Raises:
        ValueError: no such file, not UTF-8 text, no rows, or a row with more cells than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"MoleculesData: there is no file {path}; it must be a CSV or CSV.gz file")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [
                Row(path.name, reader.line_num, cells)
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"MoleculesData: {path} is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"MoleculesData: {path} has no rows under its header {header}")
    for row in rows:
        if len(row.cells) > len(header):
            raise ValueError(
                f"MoleculesData: line {row.line} of {path} has {len(row.cells)} cells, the header "
                f"{len(header)}; put cells with commas in quotes"
            )
    return Table(header, rows)


def _number(cell: str, row: Row, column: str) -> float:
    if cell.lower() in MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"MoleculesData: a target must be a number, or empty if not measured, got "
            f"{cell!r} in column {column!r}, line {row.line} of {row.file}"
        )
    return value
