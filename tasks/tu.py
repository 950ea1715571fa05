"""Graph classification on the TU Dortmund data sets, stratified cross-validation.

Example: MUTAG asks of 188 molecules (atoms are nodes, bonds are edges) whether they are mutagenic.
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

ATOM = re.compile(r"^\s*(\d+)\s+([A-Z][a-z]?)\s*$", re.MULTILINE)  # a line as in "  0  C"
VALIDATION_SHARE = 1 / 9  # of the graphs outside the test fold


class DagTUDataset(TUDataset):
    """TUDataset for several processes at once; its cache is of these files and this transform.

    One process downloads and prepares, the others wait; what is half there is never read. Prepared
    graphs are kept beside the raw files, or in the cache of the user where those cannot be written.

    Args:
        root: Folder of all TU data sets.
        name: Name of the data set.
        pre_transform: Prepares every graph once.

    Raises:
        ValueError: damaged files.
        OSError: the files cannot be downloaded.
    """

    downloading = preparing = False

    def __init__(self, root: str, name: str, pre_transform: BaseTransform) -> None:
        super().__init__(root, name, pre_transform=pre_transform)
        # As TUDataset does with edge_attr: leave out numeric attributes, keep the labels.
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
        rank_zero_info(f"TUData: {own} cannot be written; prepared graphs are kept in {folder}")
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
        except Exception as error:  # of whatever fetches files
            raise OSError(
                f"TUData: could not download {self.name} ({error}); check its name, or put its "
                f"files into {final}"
            ) from error

    def _process(self) -> None:
        make_once(Path(self.processed_dir), self._fill)

    def _fill(self, folder: Path) -> None:
        self.preparing = True  # which makes `folder` the processed_dir
        self._prepare()
        self.preparing = False

    def _prepare(self) -> None:
        try:
            check_files(Path(self.raw_dir), self.name)
            super()._process()
        except Exception as error:  # readers of files have errors of their own
            raise ValueError(
                f"TUData: the files of {self.name} in {self.raw_dir} are damaged ({error}); mend "
                "them, or name another --data.root, where they are downloaded anew"
            ) from error
        x = self._data.get("x")
        if x is not None and not torch.isfinite(x).all():
            raise ValueError(
                f"TUData: node attributes of {self.name} are not finite; mend {self.raw_dir}"
            )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


class TUData(GraphData):
    """One fold of a TU data set: the fold is the test set, a ninth of the rest validates.

    Raw files are read from root/name/raw and downloaded if they are not there.

    Args:
        name: Name of the data set, for example MUTAG, NCI1 or PROTEINS.
        root: Folder of all TU data sets.
        fold: Which fold is the test set, 0..num_folds - 1.
        num_folds: Number of folds.
        kwargs: As `GraphData`.

    Raises:
        ValueError: fold or number of folds out of range; damaged files.
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
        """All graphs, prepared once and cached on disk; sizes are read from them before setup."""
        return DagTUDataset(self.hparams.root, self.hparams.name, self.pre_transform)

    @property
    def checksums(self) -> dict[str, str]:
        return self.dataset.checksums

    @property
    def out_dim(self) -> int:
        return self.dataset.num_classes

    @cached_property
    def class_names(self) -> list[str]:
        """The labels of the raw file, which the data set numbers in their order."""
        file = Path(self.dataset.raw_dir, f"{self.hparams.name}_graph_labels.txt")
        return [str(label) for label in sorted(set(map(int, file.read_text("utf-8").split())))]

    @cached_property
    def node_names(self) -> list[str] | None:
        """Symbols of the atoms, where the description beside the raw files lists all of them."""
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
