"""Graphs and brute-force answers shared by the tests of the graph stack."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

REAL_DATA = Path(os.environ.get("PLSTM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real_tu_root(name: str, folder: Path) -> Path:
    """Unpack a real TU data set into folder and return the root for TUData; skip without it."""
    archive = REAL_DATA / "tu" / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(f"needs {archive.name}; set PLSTM_DATA to the folder of the data sets")
    with tarfile.open(archive, "r:xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


def random_dag(size: int, density: float, rng: np.random.Generator) -> np.ndarray:
    """Edges of a random DAG in random order under a random labelling, (2, E)."""
    pairs = np.argwhere(np.triu(rng.random((size, size)) < density, 1))
    return rng.permutation(size)[rng.permutation(pairs)].T.reshape(2, -1).astype(np.int64)


def grid_dag(rows: int, columns: int) -> Tensor:
    """Edges of a grid, right and down, (2, E)."""
    node = torch.arange(rows * columns).view(rows, columns)
    right = torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])
    down = torch.stack([node[:-1].flatten(), node[1:].flatten()])
    return torch.cat([right, down], 1)


def path_counts(line_index: np.ndarray, num_edges: int) -> np.ndarray:
    """Number of directed paths between any two edges, (E, E) from column to row, 1 to itself."""
    step = np.zeros((num_edges, num_edges), dtype=np.int64)
    np.add.at(step, (line_index[1], line_index[0]), 1)
    total, power = np.eye(num_edges, dtype=np.int64), np.eye(num_edges, dtype=np.int64)
    for _ in range(num_edges):
        power = step @ power
        total += power
    return total


def molecule(kind: str = "ring") -> tuple[Tensor, int]:
    """Undirected edges (both directions) and number of nodes of a small graph."""
    edges, num_nodes = {
        "ring": ([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 0], [0, 6], [6, 7]], 8),
        "tree": ([[0, 1], [0, 2], [0, 3], [3, 4], [3, 5]], 6),
        "apart": ([[0, 1], [2, 3], [3, 4]], 7),  # two isolated nodes
        "node": ([], 1),
    }[kind]
    one_way = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    return torch.cat([one_way, one_way.flip(0)], 1), num_nodes
