"""Shared parts of the data of all tasks."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Sampler

from plstm.checks import check_positive

T = TypeVar("T")
SPLITS = ("train", "val", "test")
LISTED = 2**16  # indices converted to a list at a time
Row = Sequence[object]  # of a table
UNLABELLED = -100  # target of a position without a label; PyTorch's losses ignore it


class Shard(NamedTuple):
    """The samples of one process: every `count`-th, starting at `rank`."""

    rank: int = 0
    count: int = 1


class DataModule(LightningDataModule, ABC):
    """A LightningDataModule that defines its own shapes, so that no config repeats them.

    Its loaders give every process a disjoint share of the samples.
    """

    @property
    @abstractmethod
    def in_dim(self) -> int:
        """Size of one input: channels, features or vocabulary size."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Number of classes, or of targets."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, for plots; their indices by default."""
        return [str(number) for number in range(self.out_dim)]

    @property
    def target_names(self) -> list[str]:
        """Names of the targets of a TargetModule; their indices by default."""
        return [str(number) for number in range(self.out_dim)]

    @property
    def training_targets(self) -> Tensor:
        """Targets of the training set, (n, T) or (n,), for the standardization in Regression.

        Raises:
            ValueError: the task has classes.
        """
        raise ValueError(
            f"{type(self).__name__}: a classification task has no targets to standardize; use the "
            "module of its config instead of Regression"
        )

    @property
    def node_names(self) -> list[str] | None:
        """Names of the node features, if these are known node kinds, for plots."""
        return None

    @property
    def net_args(self) -> dict[str, int | bool]:
        """Other keyword arguments of the net that depend on the data."""
        return {}

    @property
    def eval_names(self) -> list[str]:
        """Suffix of the metric names, one per validation (and test) loader."""
        return [""]

    @property
    def sizes(self) -> list[int]:
        """Sizes of the sets of `eval_names`, for plots; the first is the training size."""
        return []

    @property
    def size_name(self) -> str:
        """Name of the quantity in `sizes`."""
        return "size"

    @property
    def checksums(self) -> dict[str, str]:
        """Checksum of every data file, by name; empty for generated data.

        A run resumes only with the same files, at any path.
        """
        return {}

    @property
    def checkpoint_arguments(self) -> dict[str, object]:
        """Data arguments that a trained net depends on, by name; stored in its checkpoints.

        The command line passes them to the data when it tests a checkpoint.
        """
        return {}

    def prediction_tables(self, predictions: dict[str, Tensor]) -> dict[str, Iterable[Row]]:
        """Tables of predictions, header first, by the name of their CSV file.

        Args:
            predictions: See `prediction_pictures`.
        """
        return {}

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """Task-specific plots of predictions, by name.

        Args:
            predictions: Predictions of the module (class probabilities, targets) for the first
                samples of every test set, in the order of the data, by entry of `eval_names`.
        """
        return {}

    def predict_dataloader(self) -> EVAL_DATALOADERS:
        """The test sets."""
        return self.test_dataloader()

    def train_epoch(self) -> int:
        """Current epoch of the trainer, or 0; part of the seed of the sample order."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def trained_batches(self) -> int:
        """Batches of the epoch that a resumed run has already processed, otherwise 0."""
        if self.trainer is None:
            return 0
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return int(batches % max(1, self.trainer.num_training_batches))

    @property
    def shard(self) -> Shard:
        """Shard of this process; all samples without a trainer."""
        several = getattr(self.trainer, "distributed_sampler_kwargs", None)
        return Shard(several["rank"], several["num_replicas"]) if several else Shard()

    def train_batches(self, sampler: Sampler[int], drop_last: bool = False) -> "ShardedBatches":
        """Training batches of this process; the sampler defines the order of all samples."""
        size, skip = self.hparams.batch_size, self.trained_batches
        if self.trainer is not None and self.trainer.overfit_batches > 0:
            sampler = range(len(sampler))  # the same batches in every epoch
        return ShardedBatches(sampler, size, self.shard, drop_last=drop_last, skip=skip)

    def eval_batches(self, size: int, batch_size: int | None = None) -> "ShardedBatches":
        """Evaluation batches of this process for `size` samples: each once, in order.

        All processes have equally many batches, since a net may synchronize in each.
        """
        return ShardedBatches(range(size), batch_size or self.hparams.batch_size, self.shard)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(data: LightningDataModule | None) -> dict[str, str]:
    """`DataModule.checksums` of any data module."""
    return getattr(data, "checksums", {})


class ShuffledSampler(Sampler[int]):
    """Distinct indices in an order that depends only on (seed, epoch).

    Args:
        size: Number of samples.
        seed: Seed of the run.
        epoch: First epoch; later ones come from `set_epoch`, which Lightning calls.
        count: Samples per epoch, all if None.
    """

    def __init__(self, size: int, seed: int = 0, epoch: int = 0, count: int | None = None) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch
        self.count = size if count is None else min(count, size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) & (2**63 - 1))
        order = torch.randperm(self.size, generator=generator)[: self.count]
        for part in order.split(LISTED):  # one list of all takes four times the memory
            yield from part.tolist()


class EpochSampler(ShuffledSampler):
    """Indices that continue from epoch to epoch, so that an index also determines the epoch."""

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            yield self.epoch * self.size + index


class FreshSampler(ShuffledSampler):
    """The next `size` indices in every epoch, so that no sample repeats."""

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.size, (self.epoch + 1) * self.size)


class ShardedBatches(Sampler[list[int]]):
    """Batches of one of several processes; together they form larger batches.

    With batches of 2 on 2 processes, samples a b c d e f g become ac, eg and bd, f. Every sample
    occurs once, all processes have equally many batches, and their numbers of samples differ by at
    most 1. If the last batch has fewer samples than processes, they join the previous batch.

    Args:
        sampler: Order of all samples, any iterable with a length.
        batch_size: Batch size per process.
        shard: Rank and number of processes.
        drop_last: Drop the last batch if it is not full.
        skip: Returns the number of batches to skip; called at the start of every epoch.

    Raises:
        ValueError: batch_size is below 1; an epoch has no batch.
    """

    def __init__(
        self,
        sampler: Sampler[int] | range,
        batch_size: int,
        shard: Shard = Shard(),  # noqa: B008 it is a tuple
        *,
        drop_last: bool = False,
        skip: Callable[[], int] = int,
    ) -> None:
        check_positive("ShardedBatches", batch_size=batch_size)
        self.sampler, self.shard, self.skip = sampler, shard, skip
        together, size = batch_size * shard.count, len(sampler)
        self.bounds = list(range(0, size + 1, together))
        if (rest := size % together) and not drop_last:
            if rest < shard.count:
                self.bounds.pop()
            self.bounds.append(size)
        if len(self.bounds) < 2 or size < shard.count:
            raise ValueError(
                f"ShardedBatches: an epoch needs a batch of {together if drop_last else 1} samples "
                f"for {shard.count} processes, got {size} samples; use more data or fewer devices"
                f"{', or smaller batches' if drop_last else ''}"
            )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        rank, count = self.shard
        bounds = list(pairwise(self.bounds))[self.skip() :]
        order = islice(self.sampler, bounds[0][0] if bounds else 0, None)
        for start, stop in bounds:
            yield list(islice(order, stop - start))[rank::count]


def chosen_seed(seed: int | None) -> int:
    """The seed of the data: if None, that of Lightning's `seed_everything`, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def as_is(batch: T) -> T:
    """Passes on batches that `__getitems__` of a data set returns."""
    return batch
