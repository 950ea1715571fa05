"""Molecules from SMILES: graphs with categorical features, scaffolds, fingerprints.

rdkit parses them; it is imported on first use.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils.smiles import e_map, from_rdmol, x_map

from plstm.extras import extra

ATOM_SIZES = [len(values) for values in x_map.values()]  # number of categories per column
BOND_SIZES = [len(values) for values in e_map.values()]


class Molecule(NamedTuple):
    """A parsed molecule."""

    graph: Data  # x (N, 9) and edge_attr (E, 3) of category indices
    canonical: str  # the same for all SMILES of the molecule
    scaffold: str  # Bemis-Murcko, without stereochemistry; empty without rings


def require_rdkit() -> None:
    """Raise a MissingExtra if rdkit is not installed."""
    with extra("molecules", "MoleculesData"):
        import rdkit  # noqa: F401


def read_molecule(smiles: str) -> Molecule:
    """Parse a SMILES like from_smiles of PyTorch Geometric.

    Category indices of the columns have disjoint ranges, so that one embedding table serves all
    columns.

    Raises:
        ValueError: the reason why rdkit, or PyTorch Geometric, rejects it.
    """
    from rdkit.Chem import MolToSmiles
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    mol = parse(smiles)
    try:
        graph = from_rdmol(mol)
    except ValueError as error:  # a category without an index
        raise ValueError(f"unusual atom or bond: {error}") from error
    graph.x = graph.x + _starts(ATOM_SIZES)
    graph.edge_attr = graph.edge_attr + _starts(BOND_SIZES)
    return Molecule(graph, MolToSmiles(mol), MurckoScaffoldSmiles(mol=mol))


def parse(smiles: str) -> object:
    """Parse a SMILES to a molecule of rdkit.

    Raises:
        ValueError: the reason why rdkit rejects it.
    """
    from rdkit import Chem, rdBase

    if not smiles:
        raise ValueError("no SMILES")
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise ValueError(_reason(Chem.MolFromSmiles(smiles, sanitize=False)))
    if mol.GetNumAtoms() == 0:
        raise ValueError("no atoms")
    return mol


def fingerprint(smiles: str) -> np.ndarray:
    """ECFP4 fingerprint: 2048 bits for atom neighborhoods of radius 2, as uint8."""
    return _fingerprints().GetFingerprintAsNumPy(parse(smiles))


@cache
def _fingerprints() -> object:
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    return GetMorganGenerator(radius=2, fpSize=2048)


def element_symbols() -> list[str]:
    """Element symbols by atomic number; * for 0, any atom."""
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return ["*", *(table.GetElementSymbol(n) for n in x_map["atomic_num"][1:])]


def _reason(unsanitised: object | None) -> str:
    from rdkit.Chem import DetectChemistryProblems

    if unsanitised is None:
        return "not a valid SMILES"
    problems = [problem.Message() for problem in DetectChemistryProblems(unsanitised)]
    return problems[0] if problems else "rdkit cannot make a molecule from it"


def _starts(sizes: list[int]) -> Tensor:
    """First index of every column."""
    ends = torch.tensor(sizes).cumsum(0)
    return ends - torch.tensor(sizes)
