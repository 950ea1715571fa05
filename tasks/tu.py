"""Graph classification on the TU Dortmund data sets, with stratified cross-validation.

Example: in MUTAG, 188 molecules (nodes are atoms, edges are bonds) are mutagenic or not.
"""

import hashlib
import os
import re
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch_geometric.datasets import TUDataset
from torch_geometric.transforms import BaseTransform

from plstm.graph.pyg import VERSION
from tasks.data import checksum
from tasks.graphs import GraphData
from tasks.prepared_files import make_once, user_cache
from tasks.tu_files import check_files

ATOM = re.compile(r"^\s*(\d+)\s+([A-Z][a-z]?)\s*$", re.MULTILINE)  # a line such as "  0  C"
VALIDATION_SHARE = 1 / 9  # of the graphs outside the test fold


class DagTUDataset(TUDataset):
    """TUDataset for several processes; its cache depends on the files and the transform.

    One process downloads and prepares, the others wait; incomplete folders are never used. Prepared
    graphs are stored next to the raw files, or in the user's cache folder if that is not possible.

    Args:
        root: Folder of all TU data sets.
        name: Name of the data set.
        pre_transform: Prepares every graph once.

    Raises:
        ValueError: files are damaged.
        OSError: the files cannot be downloaded.
    """

    downloading = preparing = False

    def __init__(self, root: str, name: str, pre_transform: BaseTransform) -> None:
        super().__init__(root, name, pre_transform=pre_transform)
        # Like TUDataset with edge_attr: drop numeric attributes, keep the labels.
        if "dag_edge_attr" in self._data:
            self._data.dag_edge_attr = self._data.dag_edge_attr[:, self.num_edge_attributes :]

    @property
    def raw_dir(self) -> str:
        return super().raw_dir + (".partial" if self.downloading else "")

    @property
    def processed_dir(self) -> str:
        return str(self._cache / self._key) + (".partial" if self.preparing else "")

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Checksum of every raw file, by its name."""
        files = sorted(Path(self.raw_dir).glob(f"{self.name}_*.txt"))
        return {file.name: checksum(file) for file in files}

    @cached_property
    def _key(self) -> str:
        made_by = f"{VERSION} {self.pre_transform!r} {self.checksums}"
        return f"processed_{hashlib.sha256(made_by.encode()).hexdigest()[:10]}"

    @cached_property
    def _cache(self) -> Path:
        own = Path(self.root, self.name)
        if Path(own, self._key).exists() or os.access(own, os.W_OK):
            return own
        folder = user_cache("tu", self.name)
        rank_zero_info(f"TUData: {own} cannot be written; prepared graphs are stored in {folder}")
        return folder

    def _download(self) -> None:
        final = Path(self.raw_dir)
        if _has_files(final):
            return
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(final.parent / "downloading.lock"):
                if not _has_files(final):
                    self.downloading = True
                    shutil.rmtree(self.raw_dir, ignore_errors=True)
                    super()._download()
                    Path(self.raw_dir).rename(final)
                    self.downloading = False
        except Exception as error:  # downloads raise various errors
            raise OSError(
                f"TUData: could not download {self.name} ({error}); check the name, or put its "
                f"files into {final}"
            ) from error

    def _process(self) -> None:
        make_once(Path(self.processed_dir), self._fill)

    def _fill(self, folder: Path) -> None:
        self.preparing = True  # makes `folder` the processed_dir
        self._prepare()
        self.preparing = False

    def _prepare(self) -> None:
        try:
            check_files(Path(self.raw_dir), self.name)
            super()._process()
        except Exception as error:  # readers raise various errors
            raise ValueError(
                f"TUData: the files of {self.name} in {self.raw_dir} are damaged ({error}); repair "
                "them, or set another --data.root, to download them again"
            ) from error
        x = self._data.get("x")
        if x is not None and not torch.isfinite(x).all():
            raise ValueError(
                f"TUData: node attributes of {self.name} are not finite; repair {self.raw_dir}"
            )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


class TUData(GraphData):
    """One fold of a TU data set: the fold is the test set, 1/9 of the rest the validation set.

    Raw files are read from root/name/raw, and downloaded if missing.

    Args:
        name: Name of the data set, for example MUTAG, NCI1 or PROTEINS.
        root: Folder of all TU data sets.
        fold: Index of the test fold, 0..num_folds - 1.
        num_folds: Number of folds.
        kwargs: See `GraphData`.

    Raises:
        ValueError: fold or num_folds is out of range; files are damaged.
        OSError: the files cannot be downloaded.
    """

    def __init__(
        self,
        name: str = "MUTAG",
        root: str = "data/tu",
        fold: int = 0,
        num_folds: int = 10,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("name", "root", "fold", "num_folds", logger=False)
        if num_folds < 2:
            raise ValueError(f"TUData: num_folds must be 2 or more, got {num_folds}")
        if not 0 <= fold < num_folds:
            raise ValueError(
                f"TUData: fold must lie in 0..{num_folds - 1} "
                f"with num_folds={num_folds}, got {fold}; "
                "folds are counted from 0"
            )

    @cached_property
    def dataset(self) -> DagTUDataset:
        """All graphs, prepared once and cached on disk; provide sizes before setup."""
        return DagTUDataset(self.hparams.root, self.hparams.name, self.pre_transform)

    @property
    def checksums(self) -> dict[str, str]:
        return self.dataset.checksums

    @property
    def out_dim(self) -> int:
        return self.dataset.num_classes

    @cached_property
    def class_names(self) -> list[str]:
        """The labels of the raw file, in the order of the class indices."""
        file = Path(self.dataset.raw_dir, f"{self.hparams.name}_graph_labels.txt")
        return [str(label) for label in sorted(set(map(int, file.read_text("utf-8").split())))]

    @cached_property
    def node_names(self) -> list[str] | None:
        """Element symbols, if the description in the raw files lists all of them."""
        symbols: dict[int, str] = {}
        raw = Path(self.dataset.raw_dir)
        for file in (file for file in raw.iterdir() if "readme" in file.name.lower()):
            pairs = ATOM.findall(file.read_text("utf-8", errors="replace"))
            symbols |= {int(number): symbol for number, symbol in pairs}
        kinds = range(self.dataset.num_node_features)
        return [symbols[kind] for kind in kinds] if symbols.keys() == set(kinds) else None

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        h, y = self.hparams, self.dataset.y.numpy()
        smallest = np.bincount(y).min()
        if h.num_folds > smallest:
            raise ValueError(
                f"TUData: num_folds must be at most {smallest}, the size of the smallest class of "
                f"{h.name}, got {h.num_folds}"
            )
        folds = StratifiedKFold(h.num_folds, shuffle=True, random_state=self.seed)
        rest, test = list(folds.split(np.zeros(len(y)), y))[h.fold]
        train, val = train_test_split(
            rest, test_size=VALIDATION_SHARE, stratify=y[rest], random_state=self.seed
        )
        return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
