"""Shared parts of graph tasks: DAGs, position encodings, packed batches, loaders."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.transforms import BaseTransform, Compose

from plstm.graph.batching import GraphBatcher
from plstm.graph.position_encodings import AddPositionEncodings
from plstm.graph.pyg import DagData, ToDag
from plstm.graph.storing import StoredGraphs, prepare_together
from tasks.data import DataModule, EpochSampler, chosen_seed


class TrainingBatcher:
    """Packs training graphs by continuing indices, with new random numbers at every access.

    Args:
        batcher: Packs graphs by their indices.
        numbers: Indices of the training graphs; index i is graph numbers[i % len(numbers)].
        seed: Seed of the random numbers.
        new_orders: Draw a new node order at every access; otherwise keep the stored DAGs.
    """

    def __init__(
        self,
        batcher: GraphBatcher,
        numbers: Sequence[int],
        seed: int,
        new_orders: bool = False,
    ) -> None:
        self.batcher, self.numbers, self.seed = batcher, numbers, seed
        self.new_orders = new_orders

    def __call__(self, indices: Sequence[int]) -> DagData:
        graphs = [self.numbers[i % len(self.numbers)] for i in indices]
        seeds = [hash((self.seed, i)) for i in indices]
        return self.batcher(graphs, seeds if self.new_orders else None, seeds)


class GraphData(DataModule):
    """Graphs packed into batches; an epoch has all training graphs in random order.

    Args:
        batch_size: Graphs per batch.
        order: Node order that turns the graphs into DAGs: "bfs", "given" or "random"; with "random"
            training graphs get a new order at every access, evaluation uses one fixed order.
        random_walk: Number of random-walk position encodings: the return probabilities after 1, 2,
            ... steps.
        laplacian: Number of Laplacian position encodings: eigenvectors of the graph Laplacian, with
            random signs at every access in training.
        seed: Seed of the splits, of the sample order, of random node orders and signs; if None,
            that of `seed_everything`.
        num_workers: Number of processes that load batches.
        plans: Add the plans of plstm_dag to batches, for nets that use it.

    Raises:
        ValueError: order is unknown; random_walk or laplacian is negative.
    """

    def __init__(
        self,
        batch_size: int = 64,
        order: str = "bfs",
        random_walk: int = 0,
        laplacian: int = 0,
        seed: int | None = None,
        num_workers: int = 0,
        plans: bool = True,
    ) -> None:
        super().__init__()
        self.seed = chosen_seed(seed)
        self.save_hyperparameters(logger=False)
        self.to_dag = ToDag(order, seed=self.seed if order == "random" else None)
        self.codes = AddPositionEncodings(random_walk, laplacian)

    @property
    @abstractmethod
    def dataset(self) -> InMemoryDataset:
        """All graphs, prepared by `pre_transform`."""

    @property
    @abstractmethod
    def splits(self) -> dict[str, np.ndarray]:
        """Indices of the graphs in train, val and test, each ascending."""

    def prepared(self, graphs: Sequence[Data]) -> StoredGraphs:
        """Graphs with x, edge_index, y, DAGs and position encodings, kept in memory."""
        dags = prepare_together(graphs, self.to_dag)
        return StoredGraphs([self.codes(dag) if self.codes.width else dag for dag in dags])

    @property
    def pre_transform(self) -> BaseTransform:
        """Transform that prepares a graph once; its repr has every option, for caches."""
        return Compose([self.to_dag, self.codes]) if self.codes.width else self.to_dag

    @property
    def in_dim(self) -> int:
        return max(1, self.dataset.num_node_features)  # without features they get ones

    @property
    def net_args(self) -> dict[str, int | bool]:
        codes = {"encoding_dim": self.codes.width} if self.codes.width else {}
        return {"edge_dim": self.dataset.num_edge_features} | codes

    def train_dataloader(self) -> DataLoader:
        graphs = self.splits["train"].tolist()
        sampler = EpochSampler(len(graphs), self.seed, self.train_epoch())
        new_orders = self.to_dag.order == "random"
        batcher = TrainingBatcher(self._batcher(), graphs, self.seed, new_orders)
        numbers = range(sys.maxsize)  # sample i is index i
        return self._loader(numbers, batcher, batch_sampler=self.train_batches(sampler))

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        graphs = self.splits[split].tolist()
        batches = self.eval_batches(len(graphs))
        return self._loader(graphs, self._batcher(), batch_sampler=batches)

    def transfer_batch_to_device(
        self, batch: DagData, device: torch.device, dataloader_idx: int
    ) -> DagData:
        """Copy pinned batches asynchronously."""
        return batch.to(device, non_blocking=True)

    def _batcher(self) -> GraphBatcher:
        return GraphBatcher(self.dataset, plans=self.hparams.plans, signed=self.codes.laplacian)

    def _loader(
        self,
        samples: Sequence[int],
        batcher: Callable[[Sequence[int]], DagData],
        **options: object,
    ) -> DataLoader:
        return DataLoader(
            samples,
            collate_fn=batcher,
            num_workers=self.hparams.num_workers,
            persistent_workers=self.hparams.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
