"""What every task's data has in common."""

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
LISTED = 2**16  # indices in a list at once
Row = Sequence[object]  # of a table
UNLABELLED = -100  # target of a position that nothing is asked of; PyTorch's losses leave it out


class Shard(NamedTuple):
    """The part of all samples that a process takes: every `count`-th from the `rank`-th on."""

    rank: int = 0
    count: int = 1


class DataModule(LightningDataModule, ABC):
    """A LightningDataModule that knows its own shapes, so that they are written nowhere else.

    Its loaders give every process its own share of the samples, each of them once.
    """

    @property
    @abstractmethod
    def in_dim(self) -> int:
        """Size of one input: channels, features or vocabulary."""

    @property
    @abstractmethod
    def out_dim(self) -> int:
        """Number of classes, or of targets."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, for pictures; their numbers unless a task knows better."""
        return [str(number) for number in range(self.out_dim)]

    @property
    def target_names(self) -> list[str]:
        """Names of the targets of a TargetModule; their numbers unless a task knows better."""
        return [str(number) for number in range(self.out_dim)]

    @property
    def training_targets(self) -> Tensor:
        """Targets of the training set, (n, T) or (n,), by which Regression standardises.

        Raises:
            ValueError: the task has classes.
        """
        raise ValueError(
            f"{type(self).__name__}: a task of classes has no targets to standardise; take the "
            "module of its config instead of Regression"
        )

    @property
    def node_names(self) -> list[str] | None:
        """Names of the node features where these are kinds of nodes and known, for pictures."""
        return None

    @property
    def net_args(self) -> dict[str, int | bool]:
        """Further sizes and choices the net is built with, by keyword."""
        return {}

    @property
    def eval_names(self) -> list[str]:
        """Suffix of the metric names, one per validation (and test) loader."""
        return [""]

    @property
    def sizes(self) -> list[int]:
        """What tells the sets of `eval_names` apart, for a picture; the first one is trained at."""
        return []

    @property
    def size_name(self) -> str:
        """What `sizes` are."""
        return "size"

    @property
    def checksums(self) -> dict[str, str]:
        """Checksum of every file the data are read from, by its name; none of data that are drawn.

        A run goes on with the same files only, wherever they are.
        """
        return {}

    @property
    def checkpoint_arguments(self) -> dict[str, object]:
        """Arguments of the data that a trained net goes with, by name; its checkpoints keep them.

        The command line gives them to the data that the net of a checkpoint is tested on.
        """
        return {}

    def prediction_tables(self, predictions: dict[str, Tensor]) -> dict[str, Iterable[Row]]:
        """Tables of what was predicted, heading first, by the name of their CSV file.

        Args:
            predictions: As for `prediction_pictures`.
        """
        return {}

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """Further pictures of what was predicted, by name; a task may have some.

        Args:
            predictions: What the module predicts (class probabilities, targets) of the first
                samples of every test set, in the order of the data, by its entry of `eval_names`.
        """
        return {}

    def predict_dataloader(self) -> EVAL_DATALOADERS:
        """Predictions are made for the test sets."""
        return self.test_dataloader()

    def train_epoch(self) -> int:
        """The epoch the trainer is in, 0 without a trainer; seeds the order of the samples."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def trained_batches(self) -> int:
        """Batches of the epoch that a resumed run has trained on already, 0 for other runs."""
        if self.trainer is None:
            return 0
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return int(batches % max(1, self.trainer.num_training_batches))

    @property
    def shard(self) -> Shard:
        """The share of this process; all samples without a trainer."""
        several = getattr(self.trainer, "distributed_sampler_kwargs", None)
        return Shard(several["rank"], several["num_replicas"]) if several else Shard()

    def train_batches(self, sampler: Sampler[int], drop_last: bool = False) -> "ShardedBatches":
        """Batches of this process for training; the sampler gives the order of all samples."""
        size, skip = self.hparams.batch_size, self.trained_batches
        if self.trainer is not None and self.trainer.overfit_batches > 0:
            sampler = range(len(sampler))  # the same batches in every epoch
        return ShardedBatches(sampler, size, self.shard, drop_last=drop_last, skip=skip)

    def eval_batches(self, size: int, batch_size: int | None = None) -> "ShardedBatches":
        """Batches of this process for evaluation: every sample once, in order, of `size`.

        Every process has as many batches, for a net may exchange numbers in each of them.
        """
        return ShardedBatches(range(size), batch_size or self.hparams.batch_size, self.shard)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(data: LightningDataModule | None) -> dict[str, str]:
    """`DataModule.checksums` of data that have them."""
    return getattr(data, "checksums", {})


class ShuffledSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) only, none of them twice.

    Args:
        size: Number of samples to choose from.
        seed: Seed of the run.
        epoch: First epoch; later ones come from `set_epoch`, which Lightning calls.
        count: Samples of an epoch, all of them if None.
    """

    def __init__(self, size: int, seed: int = 0, epoch: int = 0, count: int | None = None) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch
        self.count = size if count is None else min(count, size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) & (2**63 - 1))
        order = torch.randperm(self.size, generator=generator)[: self.count]
        for part in order.split(LISTED):  # a list of all of them takes four times the memory
            yield from part.tolist()


class EpochSampler(ShuffledSampler):
    """Indices that run on from epoch to epoch, so that a sample also says which epoch it is in."""

    def __iter__(self) -> Iterator[int]:
        for index in super().__iter__():
            yield self.epoch * self.size + index


class FreshSampler(ShuffledSampler):
    """The next `size` indices in every epoch, so that no sample comes twice."""

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.size, (self.epoch + 1) * self.size)


class ShardedBatches(Sampler[list[int]]):
    """Batches of one of several processes: together they are those of one process, larger ones.

    With batches of 2 on 2 processes, samples a b c d e f g become ac, eg and bd, f. Every sample
    comes once, in as many batches on every process, and processes differ by a sample at most. Fewer
    samples than processes at the end join the batch before.

    Args:
        sampler: Order of all samples, anything that can be iterated and has a length.
        batch_size: Samples of a batch of one process.
        shard: Which process this is, and of how many.
        drop_last: Leave out the last batch if it is not full.
        skip: Batches to leave out at the beginning; asked for whenever an epoch begins.

    Raises:
        ValueError: batch_size below 1; not one batch in an epoch.
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
                f"for {shard.count} processes, got {size} samples; take more data or fewer devices"
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
    """The seed of data: if None that of Lightning's `seed_everything`, and 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def as_is(batch: T) -> T:
    """Collates what `__getitems__` of a data set returns as whole batches."""
    return batch
