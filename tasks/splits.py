"""Splits into training, validation and test samples."""

from collections.abc import Sequence

import numpy as np

from tasks.data import SPLITS

NAMES = {  # cells of a split column, lower case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
Splits = dict[str, np.ndarray]


def scaffold_split(scaffolds: Sequence[str], shares: tuple[float, float]) -> Splits:
    """Split by scaffold: large groups are for training, rare scaffolds for testing.

    Groups are sorted by size, those of equal size by descending first index, as in MoleculeNet.
    Each goes to the training set if there is room, else to the validation set, else to the test
    set. So the first molecules with unique scaffolds are for testing.

    Args:
        scaffolds: Scaffold of every molecule.
        shares: Fractions of molecules for validation and testing.

    Source: MoleculeNet, arXiv 1703.00564.
    """
    groups: dict[str, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    room = _room(len(scaffolds), shares)
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    for group in sorted(groups.values(), key=lambda x: (len(x), x[0]), reverse=True):
        name = next((x for x in SPLITS if len(chosen[x]) + len(group) <= room[x]), "test")
        chosen[name] += group
    return _ascending(chosen)


def random_split(molecules: Sequence[str], shares: tuple[float, float], seed: int) -> Splits:
    """Random split: molecules in random order, assigned while there is room.

    Rows with the same molecule stay together.

    Args:
        molecules: Canonical SMILES of every row.
        shares: Fractions of molecules for validation and testing.
        seed: Seed of the order.
    """
    different, owner = np.unique(np.asarray(molecules, dtype=str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(different))
    room = _room(len(different), shares)
    bounds = np.cumsum([room["train"], room["val"]])
    parts = dict(zip(SPLITS, np.split(order, bounds), strict=True))
    return {name: np.flatnonzero(np.isin(owner, part)) for name, part in parts.items()}


def named_split(cells: Sequence[str], column: str) -> Splits:
    """Split by the cells of a column.

    Raises:
        ValueError: a cell is not a split.
    """
    known = {name: split for split, names in NAMES.items() for name in names}
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    for number, cell in enumerate(cells):
        if cell.lower() not in known:
            raise ValueError(
                f"MoleculesData: a split column has train, val or test in every row, got "
                f"{cell!r} in {column!r}; data.split is scaffold, random or such a column"
            )
        chosen[known[cell.lower()]].append(number)
    return _ascending(chosen)


def _room(count: int, shares: tuple[float, float]) -> dict[str, int]:
    """Sizes of the splits; the rest of rounding is for training."""
    val, test = (round(share * count) for share in shares)
    return {"train": count - val - test, "val": val, "test": test}


def _ascending(chosen: dict[str, list[int]]) -> Splits:
    return {name: np.sort(np.array(part, dtype=np.int64)) for name, part in chosen.items()}
