"""Graphs that are DAGs already, with numbers to predict: architectures, programs, circuits.

Example: D-VAE asks how accurate a network of six layers becomes that is wired like this:
{"nodes": ["input", "1", "4", "output"], "edges": [[0, 1], [1, 2], [2, 3]], "target": 0.7302}.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from plstm.graph.storing import StoredGraphs
from tasks.dag_files import read_dags
from tasks.data import checksum
from tasks.graphs import GraphData


class DagsData(GraphData):
    """DAGs of a file with one or more numbers each; a random share validates, another one tests.

    Edges keep the directions of the file. Nets of undirected graphs get every edge in both
    directions.

    Args:
        path: File of JSON lines, of D-VAE, or of PyG, see `tasks.dag_files.read_dags`.
        kinds: Kinds of nodes, in the order of the node features; those of the file if None. A net
            that is tested on another file needs those it was trained with.
        val_share: Share of the graphs to validate with.
        test_share: Share of the graphs to test with.
        kwargs: As `GraphData`, without order.

    Raises:
        ValueError: no such file, or a line that is no DAG; shares that leave a set empty.
    """

    def __init__(
        self,
        path: str,
        kinds: list[str] | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        **kwargs: object,
    ) -> None:
        super().__init__(order="directed", **kwargs)
        self.save_hyperparameters("path", "kinds", "val_share", "test_share", logger=False)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                "DagsData: val_share and test_share must be above 0 and leave some for training, "
                f"got {val_share} and {test_share}"
            )

    @cached_property
    def _read(self) -> tuple[list[Data], list[str]]:
        return read_dags(Path(self.hparams.path), self.hparams.kinds)

    @cached_property
    def dataset(self) -> StoredGraphs:
        return self.prepared(self._read[0])

    @cached_property
    def checksums(self) -> dict[str, str]:
        path = Path(self.hparams.path)
        return {path.name: checksum(path)}

    @property
    def out_dim(self) -> int:
        return self.dataset.y.shape[1]

    @property
    def training_targets(self) -> Tensor:
        return self.dataset.y[self.splits["train"]]

    @property
    def node_names(self) -> list[str] | None:
        return self._read[1] or None

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        size = len(self.dataset)
        val, test = (round(size * self.hparams[f"{name}_share"]) for name in ("val", "test"))
        if min(val, test, size - val - test) < 1:
            raise ValueError(
                f"DagsData: of {size} graphs {size - val - test} would train, {val} validate and "
                f"{test} test, and each must be 1 or more; change val_share and test_share"
            )
        order = np.random.default_rng(self.seed).permutation(size)
        parts = np.split(order, [test, test + val])
        return {name: np.sort(x) for name, x in zip(("test", "val", "train"), parts, strict=True)}
