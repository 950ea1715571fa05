"""Reports on the rows of a table of molecules: left out, repeated, predicted."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tasks.molecule_graphs import MoleculeGraphs
from tasks.splits import Splits
from tasks.tables import Row, Table


class Refused(NamedTuple):
    """A row that is left out."""

    row: Row
    smiles: str
    reason: str


def refused_rows(
    table: Table, smiles: str, dataset: MoleculeGraphs, targets: Tensor
) -> list[Refused]:
    """Rows with unreadable SMILES, or without any target.

    Args:
        table: The rows.
        smiles: Column with SMILES.
        dataset: Molecules of the rows.
        targets: Targets of the molecules, (molecules, T).
    """
    unmeasured = set(dataset.rows[targets.isnan().all(1).numpy()].tolist())
    found = []
    for number, (row, text) in enumerate(zip(table.rows, table.column(smiles), strict=True)):
        reason = dataset.read[number].reason
        if reason or number in unmeasured:
            found.append(Refused(row, text, reason or "no target was measured"))
    return found


def summary(
    dataset: MoleculeGraphs, splits: Splits, targets: Tensor, refused: Sequence[Refused]
) -> str:
    """One line on the rows of a table: used, left out, repeated, with empty cells."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in splits.items())
    text = f"MoleculesData: {len(dataset.read):,} rows, {counts}"
    if refused:
        text += f"; {len(refused):,} are left out (line {refused[0].row.line}: {refused[0].reason})"
    molecules = [dataset.read[row].canonical for row in dataset.rows]
    if repeated := len(molecules) - len(set(molecules)):
        text += f"; {repeated:,} repeat the molecule of another row"
        shared = _in_several(molecules, splits)
        text += f", {shared:,} of them one of another split" if shared else ""
    if empty := int(targets.isnan().sum()):
        text += f"; {empty:,} of {targets.numel():,} targets were not measured"
    return text


def _in_several(molecules: Sequence[str], splits: Splits) -> int:
    """Molecules of a split that are also in an earlier split."""
    seen: set[str] = set()
    count = 0
    for part in splits.values():
        own = [molecules[number] for number in part]
        count += sum(molecule in seen for molecule in own)
        seen.update(own)
    return count


def write_refused(file: Path, refused: Sequence[Refused]) -> None:
    """Write the rows that are left out, as CSV."""
    lines = [[x.row.file, x.row.line, x.smiles, x.reason] for x in refused]
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file", "line", "smiles", "reason"], *lines])


def prediction_rows(
    table: Table,
    smiles: str,
    names: Sequence[str],
    values: Mapping[int, Sequence[float]],
    reasons: Mapping[int, str],
) -> list[Sequence[object]]:
    """Predictions next to the SMILES, with a header; unreadable rows have a reason instead.

    Args:
        table: Rows.
        smiles: Column with SMILES.
        names: Names of the T targets.
        values: T predictions per row, by row index in the table.
        reasons: Errors by row index; rows in neither are omitted.
    """
    texts, none = table.column(smiles), [""] * len(names)
    made = {number: [f"{x:.7g}" for x in predicted] for number, predicted in values.items()}
    rows = [
        [row.line, texts[number], *made.get(number, none), reasons.get(number, "")]
        for number, row in enumerate(table.rows)
        if number in values or number in reasons
    ]
    return [["line", smiles, *names, "reason"], *rows]
