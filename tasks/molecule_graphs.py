"""Graphs of SMILES, prepared once and cached on disk."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch_geometric.data import InMemoryDataset
from torch_geometric.data.collate import collate
from torch_geometric.transforms import BaseTransform

from plstm.graph.pyg import VERSION, DagData
from tasks.prepared_files import make_once, user_cache
from tasks.smiles import read_molecule, require_rdkit

FORMAT = 1  # increment when the file format changes
GRAPHS, MOLECULES = "graphs.pt", "molecules.json"


class Read(NamedTuple):
    """Result of reading a row."""

    canonical: str = ""  # canonical SMILES
    scaffold: str = ""
    reason: str = ""  # error, if there is no graph


class MoleculeGraphs(InMemoryDataset):
    """Graphs of all readable SMILES, in order; prepared once for all processes.

    They are stored in the user's cache folder, under a name that depends on the SMILES, the
    transform and the versions of the code that makes them.

    Args:
        smiles: SMILES of all rows.
        pre_transform: Prepares every graph.

    Raises:
        ValueError: rdkit is not installed, or cannot read any of the SMILES.
    """

    def __init__(self, smiles: Sequence[str], pre_transform: BaseTransform) -> None:
        super().__init__()
        require_rdkit()
        made_by = [FORMAT, VERSION, version("rdkit"), version("torch-geometric")]
        text = json.dumps([*made_by, repr(pre_transform), list(smiles)])
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = user_cache("molecules") / key
        make_once(folder, lambda new: prepare(new, smiles, pre_transform))
        rows = json.loads((folder / MOLECULES).read_text("utf-8"))
        self.read = [Read(*row) for row in rows]  # for every row
        fields, self.slices = torch.load(folder / GRAPHS, weights_only=True)
        self._data = DagData.from_dict(fields)

    @property
    def rows(self) -> np.ndarray:
        """Row of every graph."""
        return np.array([i for i, row in enumerate(self.read) if not row.reason], dtype=np.int64)

    def set_targets(self, targets: Tensor) -> None:
        """Set the targets of the graphs, (graphs, T)."""
        self._data.y = targets
        self.slices["y"] = torch.arange(len(targets) + 1)


def prepare(folder: Path, smiles: Sequence[str], pre_transform: BaseTransform) -> None:
    """Write the graphs of all SMILES, and the result of every row."""
    rank_zero_info(f"MoleculesData: preparing {len(smiles):,} molecules, once")
    graphs, rows = [], []
    for text in smiles:
        try:
            molecule = read_molecule(text)
        except ValueError as error:
            rows.append(Read(reason=str(error)))
            continue
        graphs.append(pre_transform(molecule.graph))
        rows.append(Read(molecule.canonical, molecule.scaffold))
    if not graphs:
        raise ValueError(
            f"MoleculesData: rdkit cannot read any of the {len(smiles)} SMILES, the first is "
            f"{smiles[0]!r} ({rows[0].reason}); set data.smiles to their column"
        )
    data, slices, _ = collate(DagData, graphs, increment=False, add_batch=False)
    torch.save((data.to_dict(), dict(slices)), folder / GRAPHS)
    (folder / MOLECULES).write_text(json.dumps(rows), "utf-8")
