"""Molecular property prediction from any table with SMILES.

Example: the row `CCO,-0.77` of a table with the columns smiles and logS is a graph of three atoms
and two bonds (without hydrogen) with one target.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from plstm.graph.batching import GraphBatcher
from tasks.data import SPLITS, Row, checksum
from tasks.graphs import GraphData
from tasks.molecule_graphs import MoleculeGraphs
from tasks.molecule_rows import prediction_rows, refused_rows, summary, write_refused
from tasks.runs import run_folder
from tasks.smiles import ATOM_SIZES, BOND_SIZES, element_symbols
from tasks.splits import Splits, named_split, random_split, scaffold_split
from tasks.tables import Table, read_table

REFUSED = "refused_rows.csv"
FILES = "files"  # split by file


class MoleculesData(GraphData):
    """Molecules of a CSV file with real or binary targets.

    Rows with SMILES that rdkit cannot read, or without any target, are left out and listed in
    refused_rows.csv in the folder of the run. Empty target cells mean not measured.

    Args:
        path: The file, CSV or CSV.gz, with a header and comma-separated columns.
        targets: Columns of the targets, or a single one.
        smiles: Column with SMILES.
        split: "scaffold" (molecules with the same Bemis-Murcko scaffold stay together, rare ones
            are for testing), "random", a column with train, val or test in every row, or "files"
            for separate files.
        val_share: Fraction of molecules for validation, in scaffold and random splits.
        test_share: Fraction of molecules for testing.
        val_path: File of the validation molecules, with split "files".
        test_path: File of the test molecules, with split "files".
        predict_path: File of molecules for `predict`, instead of the test molecules; targets are
            optional. The predictions are in predictions.csv in the folder of the run, with one line
            per row of the file.
        kwargs: See `GraphData`.

    Raises:
        ValueError: no such file or column; cells are not numbers; a split has no measured
            molecules; rdkit is not installed.
    """

    def __init__(
        self,
        path: str,
        targets: list[str] | str,
        smiles: str = "smiles",
        split: str = "scaffold",
        val_share: float = 0.1,
        test_share: float = 0.1,
        val_path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.columns = [targets] if isinstance(targets, str) else list(targets)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(
                "MoleculesData: targets must be different columns, one or more, got "
                f"{self.columns}; as in --data.targets [a, b]"
            )
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                "MoleculesData: val_share and test_share must be above 0 and leave some to train, "
                f"got {val_share} and {test_share}"
            )
        if (split == FILES) != (None not in (val_path, test_path)) or (
            split != FILES and (val_path or test_path)
        ):
            raise ValueError(
                'MoleculesData: val_path and test_path are for split "files", which needs both, '
                f"got split={split!r}, val_path={val_path!r}, test_path={test_path!r}"
            )

    @property
    def paths(self) -> list[str]:
        """Files of the molecules, in the order of the splits with split "files"."""
        h = self.hparams
        return [h.path, *([h.val_path, h.test_path] if h.split == FILES else [])]

    @property
    def in_dim(self) -> int:
        return sum(ATOM_SIZES)

    @property
    def out_dim(self) -> int:
        return len(self.columns)

    @property
    def net_args(self) -> dict[str, int]:
        columns = {"node_columns": len(ATOM_SIZES), "edge_columns": len(BOND_SIZES)}
        codes = {"encoding_dim": self.codes.width} if self.codes.width else {}
        return {"edge_dim": sum(BOND_SIZES)} | columns | codes

    @property
    def target_names(self) -> list[str]:
        return self.columns

    @cached_property
    def node_names(self) -> list[str]:
        """Element symbols, the first categorical feature of atoms."""
        return element_symbols()

    @cached_property
    def checksums(self) -> dict[str, str]:
        files = zip(("", "val ", "test "), map(Path, self.paths), strict=False)
        return {f"{role}{path.name}": checksum(path) for role, path in files}

    @cached_property
    def tables(self) -> list[Table]:
        """Rows of every file, with the columns in use."""
        h = self.hparams
        needed = [h.smiles, *self.columns]
        if h.split not in ("scaffold", "random", FILES, *needed):
            needed.append(h.split)
        return [read_table(path).select(needed) for path in self.paths]

    @cached_property
    def table(self) -> Table:
        """Rows of all files."""
        return Table(self.tables[0].columns, [row for table in self.tables for row in table.rows])

    @cached_property
    def dataset(self) -> MoleculeGraphs:
        """Molecules of all readable rows, prepared once and cached on disk."""
        graphs = MoleculeGraphs(self.table.column(self.hparams.smiles), self.pre_transform)
        cells = self.table.numbers(self.columns)[graphs.rows]
        graphs.set_targets(torch.from_numpy(cells).float())
        return graphs

    @property
    def targets(self) -> Tensor:
        """Targets of all molecules, (molecules, T)."""
        return self.dataset._data.y

    @property
    def training_targets(self) -> Tensor:
        return self.targets[self.splits["train"]]

    @cached_property
    def splits(self) -> Splits:
        """Indices of molecules with a target in train, val and test, each ascending."""
        measured = ~self.targets.isnan().all(1).numpy()
        splits = {name: part[measured[part]] for name, part in self._all_splits().items()}
        if empty := [name for name in SPLITS if len(splits[name]) == 0]:
            counts = ", ".join(f"{len(splits[name])} in {name}" for name in SPLITS)
            raise ValueError(
                "MoleculesData: every split needs a molecule with a measured target, got none in "
                f"{' and '.join(empty)} ({counts}) with split={self.hparams.split!r}; use another "
                "split, such as random, or more rows"
            )
        return splits

    def _all_splits(self) -> Splits:
        h, dataset = self.hparams, self.dataset
        read = [dataset.read[row] for row in dataset.rows]
        shares = h.val_share, h.test_share
        if h.split == "scaffold":
            return scaffold_split([row.scaffold for row in read], shares)
        if h.split == "random":
            return random_split([row.canonical for row in read], shares, self.seed)
        if h.split == FILES:
            names = np.repeat(SPLITS, [len(table.rows) for table in self.tables])
        else:
            names = np.array(self.table.column(h.split))
        return named_split(names[dataset.rows].tolist(), h.split)

    def setup(self, stage: str) -> None:
        """Report on the rows, and list those that are left out."""
        if stage not in ("fit", "test"):
            return
        refused = refused_rows(self.table, self.hparams.smiles, self.dataset, self.targets)
        rank_zero_info(summary(self.dataset, self.splits, self.targets, refused))
        folder = run_folder(self.trainer) if self.trainer is not None else None
        if refused and folder is not None:
            write_refused(folder / REFUSED, refused)
            rank_zero_info(f"MoleculesData: rows that are left out: {folder / REFUSED}")

    @cached_property
    def predicted_table(self) -> Table:
        """Rows of predict_path."""
        return read_table(self.hparams.predict_path).select([self.hparams.smiles])

    @cached_property
    def predicted_dataset(self) -> MoleculeGraphs:
        """Molecules of predict_path, without targets."""
        smiles = self.predicted_table.column(self.hparams.smiles)
        graphs = MoleculeGraphs(smiles, self.pre_transform)
        graphs.set_targets(torch.full((len(graphs.rows), self.out_dim), torch.nan))
        return graphs

    def predict_dataloader(self) -> DataLoader:
        if self.hparams.predict_path is None:
            return self.test_dataloader()
        graphs, plans = self.predicted_dataset, self.hparams.plans
        batcher = GraphBatcher(graphs, plans=plans, signed=self.codes.laplacian)
        numbers = range(len(graphs.rows))
        return self._loader(numbers, batcher, batch_sampler=self.eval_batches(len(numbers)))

    def prediction_tables(self, predictions: dict[str, Tensor]) -> dict[str, Iterable[Row]]:
        """Predictions next to the SMILES, in the order of the rows."""
        if self.hparams.predict_path is None:
            table, dataset, graphs = self.table, self.dataset, self.splits["test"]
            reasons = {}
        else:
            table, dataset = self.predicted_table, self.predicted_dataset
            graphs = np.arange(len(dataset.rows))
            reasons = {row: x.reason for row, x in enumerate(dataset.read) if x.reason}
        rows, made = dataset.rows[graphs].tolist(), predictions[""].tolist()
        values = dict(zip(rows, made, strict=False))  # may be a limited number
        reasons |= dict.fromkeys(rows[len(made) :], "not predicted")
        smiles = self.hparams.smiles
        return {"predictions": prediction_rows(table, smiles, self.columns, values, reasons)}
