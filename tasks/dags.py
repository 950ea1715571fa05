"""Regression on DAGs, such as neural architectures, programs or circuits.

Example: D-VAE predicts the accuracy of a six-layer network with such connections:
{"nodes": ["input", "1", "4", "output"], "edges": [[0, 1], [1, 2], [2, 3]], "target": 0.7302}.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from plstm.graph.batching import GraphBatcher
from plstm.graph.storing import StoredGraphs
from tasks.dag_files import DagFile, read_dags
from tasks.data import SPLITS, Row, checksum
from tasks.graphs import GraphData
from tasks.splits import Splits, random_split


class DagsData(GraphData):
    """DAGs of a file with one or more targets each, split randomly.

    Edges keep the directions of the file. Models for undirected graphs get every edge in both
    directions. Equal graphs are in the same split.

    Args:
        path: File of JSON lines, of D-VAE, or of PyG, see `tasks.dag_files.read_dags`.
        kinds: Node kinds, in the order of the node features; those of the file if None. A
            checkpoint stores them.
        val_share: Fraction of the distinct graphs for validation.
        test_share: Fraction of the distinct graphs for testing.
        predict_path: File of graphs for `predict`, instead of the test graphs; targets are
            optional. The predictions are in predictions.csv in the folder of the run, by line.
        kwargs: See `GraphData`, without order.

    Raises:
        ValueError: the file is missing, a line is not a DAG, or a split is empty.
    """

    def __init__(
        self,
        path: str,
        kinds: list[str] | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        predict_path: str | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(order="directed", **kwargs)
        names = ("path", "kinds", "val_share", "test_share", "predict_path")
        self.save_hyperparameters(*names, logger=False)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                "DagsData: val_share and test_share must be above 0 and leave some for training, "
                f"got {val_share} and {test_share}"
            )

    @cached_property
    def file(self) -> DagFile:
        """Graphs of the file, unchanged."""
        return read_dags(Path(self.hparams.path), self.hparams.kinds)

    @cached_property
    def dataset(self) -> StoredGraphs:
        return self.prepared(self.file.graphs)

    @cached_property
    def checksums(self) -> dict[str, str]:
        path = Path(self.hparams.path)
        return {path.name: checksum(path)}

    @property
    def checkpoint_arguments(self) -> dict[str, object]:
        return {"kinds": self.file.kinds} if self.file.kinds else {}

    @property
    def in_dim(self) -> int:
        return self.file.graphs[0].num_node_features

    @property
    def out_dim(self) -> int:
        return self.file.graphs[0].y.shape[1]

    @property
    def target_names(self) -> list[str]:
        several = [f"target {number}" for number in range(self.out_dim)]
        return several if self.out_dim > 1 else ["target"]

    @property
    def training_targets(self) -> Tensor:
        return self.dataset.y[self.splits["train"]]

    @property
    def node_names(self) -> list[str] | None:
        return self.file.kinds or None

    @cached_property
    def splits(self) -> Splits:
        alike = [f"{graph.x.tolist()} {graph.edge_index.tolist()}" for graph in self.file.graphs]
        shares = self.hparams.val_share, self.hparams.test_share
        splits = random_split(alike, shares, self.seed)
        if min(map(len, splits.values())) == 0:
            counts = ", ".join(f"{len(splits[name])} in {name}" for name in SPLITS)
            raise ValueError(
                f"DagsData: every split needs a graph, got {counts} with val_share={shares[0]} and "
                f"test_share={shares[1]}"
            )
        return splits

    @cached_property
    def predicted_file(self) -> DagFile:
        """Graphs of predict_path."""
        return read_dags(Path(self.hparams.predict_path), self.file.kinds, self.out_dim)

    def predict_dataloader(self) -> DataLoader:
        if self.hparams.predict_path is None:
            return self.test_dataloader()
        graphs = self.prepared(self.predicted_file.graphs)
        batcher = GraphBatcher(graphs, plans=self.hparams.plans)
        batches = self.eval_batches(len(graphs))
        return self._loader(range(len(graphs)), batcher, batch_sampler=batches)

    def prediction_tables(self, predictions: dict[str, Tensor]) -> dict[str, Iterable[Row]]:
        """Predictions with the line numbers of the graphs."""
        if self.hparams.predict_path is None:
            lines = np.array(self.file.lines)[self.splits["test"]].tolist()
        else:
            lines = self.predicted_file.lines
        rows = zip(lines, predictions[""].tolist(), strict=False)  # may be a limited number
        heading = ["line", *self.target_names]
        return {"predictions": [heading, *([line, *values] for line, values in rows)]}
