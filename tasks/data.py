"""What every task's data has in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch.utils.data import Sampler


class DataModule(LightningDataModule, ABC):
    """A LightningDataModule that knows its own shapes, so that they are written nowhere else."""

    @property
    @abstractmethod
    def in_dim(self) -> int:
        """Size of one input: channels, features or vocabulary."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Number of classes."""

    @property
    def net_args(self) -> dict[str, int]:
        """Further sizes the net is built with, by keyword."""
        return {}

    @property
    def eval_names(self) -> list[str]:
        """Suffix of the metric names, one per validation (and test) loader."""
        return [""]

    def predict_dataloader(self) -> EVAL_DATALOADERS:
        """Predictions are made for the test sets."""
        return self.test_dataloader()

    def train_epoch(self) -> int:
        """The epoch the trainer is in, 0 without a trainer; seeds the order of the samples."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def trained_samples(self) -> int:
        """Samples of the epoch that a resumed run has trained on already, 0 for other runs."""
        if self.trainer is None:
            return 0
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return int(batches % max(1, self.trainer.num_training_batches)) * self.hparams.batch_size


class ShuffledSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) only, none of them twice.

    Args:
        size: Number of samples to choose from.
        seed: Seed of the run.
        epoch: First epoch; later ones come from `set_epoch`, which Lightning calls.
        count: Samples of an epoch, all of them if None.
        skip: How many of them to leave out; asked for whenever an epoch begins.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        epoch: int = 0,
        count: int | None = None,
        skip: Callable[[], int] = int,
    ) -> None:
        self.size, self.seed, self.epoch, self.skip = size, seed, epoch, skip
        self.count = size if count is None else min(count, size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) & (2**63 - 1))
        order = torch.randperm(self.size, generator=generator)
        yield from order[self.skip() : self.count].tolist()
