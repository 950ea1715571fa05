"""Generated data: every sample is a function of seed and index, at several sizes."""

from abc import abstractmethod
from collections.abc import Callable

from torch.utils.data import DataLoader, Dataset

from plstm.checks import check_positive
from tasks.data import SPLITS, DataModule, FreshSampler, ShuffledSampler, as_is

MAX_SIZE = 2**16 - 1


class DrawnData(DataModule):
    """Generated samples: train at one size, validate and test there and at other sizes.

    Hyperparameters of every such task: train_size, val_size and test_size (samples per epoch, and
    per validation and test set), fresh, batch_size, and seed, below 2^32. Metrics of other sizes
    have the suffix @ and the size.
    """

    seed: int

    @property
    @abstractmethod
    def sizes(self) -> list[int]:
        """Size of every set, at most `MAX_SIZE`; the first is the training size."""

    @abstractmethod
    def dataset(self, split: str, size: int) -> Dataset:
        """Samples of a split at one size; `__getitems__` draws a batch at a time."""

    @property
    def fresh(self) -> bool:
        """Whether every epoch has new samples."""
        return self.hparams.fresh

    def collate(self, batch: object) -> object:
        """Convert a drawn batch for training and evaluation."""
        return batch

    @property
    def eval_names(self) -> list[str]:
        return ["", *(f"@{size}" for size in self.sizes[1:])]

    def check_settings(self) -> None:
        """Raise a ValueError unless the seed is in range and sizes are distinct."""
        check_positive(
            type(self).__name__, val_size=self.hparams.val_size, test_size=self.hparams.test_size
        )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(
                f"{type(self).__name__}: the sizes of the sets must differ, because they name the "
                f"metrics, got {self.sizes}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"{type(self).__name__}: seed must lie in 0..{2**32 - 1}, got {self.seed}"
            )

    def split_seed(self, split: str, size: int) -> int:
        """One stream of random numbers per (seed, size, split)."""
        number = SPLITS.index(split)
        return (self.seed * (MAX_SIZE + 1) + size) * len(SPLITS) + number

    def split_size(self, split: str) -> int:
        """Samples of a split at one size."""
        return self.hparams[f"{split}_size"]

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train", self.sizes[0])
        sampler_class = FreshSampler if self.fresh else ShuffledSampler
        sampler = sampler_class(len(dataset), self.seed, self.train_epoch())
        batches = self.train_batches(sampler, drop_last=True)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.collate)

    def val_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("val", self.collate)

    def test_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("test", self.collate)

    def predict_dataloader(self) -> list[DataLoader]:
        """The test sets, in batches as drawn."""
        return self._eval_loaders("test", as_is)

    def _eval_loaders(self, split: str, collate: Callable[[object], object]) -> list[DataLoader]:
        datasets = [self.dataset(split, size) for size in self.sizes]
        return [
            DataLoader(x, batch_sampler=self.eval_batches(len(x)), collate_fn=collate)
            for x in datasets
        ]
