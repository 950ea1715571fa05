"""What tasks of drawn, labelled sequences have in common: lengths, splits, loaders, a picture."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from tasks.accuracy_by_length import accuracy_by_length
from tasks.data import UNLABELLED, chosen_seed
from tasks.drawn import MAX_SIZE, DrawnData
from tasks.draws import integers
from tasks.packing import Packed, pack

Length = int | tuple[int, int]  # one, or the least and the greatest
Draw = Callable[[int, Tensor, tuple[int, int]], tuple[Tensor, Tensor]]


class SequenceDataset(Dataset):
    """Sequences of one split at one range of lengths; a batch is drawn at once.

    Args:
        draw: Makes tokens and targets from a seed, indices (B,) and the range.
        seed: Seed of the split.
        size: Number of sequences.
        lengths: Least and greatest length.
        first_length: Greatest length of the first `size` sequences; it doubles for the next ones
            until the greatest. None for the same lengths everywhere.
    """

    def __init__(
        self,
        draw: Draw,
        seed: int,
        size: int,
        lengths: tuple[int, int],
        first_length: int | None = None,
    ) -> None:
        self.draw, self.seed, self.size, self.lengths = draw, seed, size, lengths
        self.first_length = first_length

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        lengths = epoch_lengths(self.lengths, self.first_length, indices[0] // self.size)
        return self.draw(self.seed, torch.tensor(indices), lengths)


class SequenceData(DrawnData):
    """Drawn sequences: train at some lengths, validate and test there and at further ones.

    A batch is tokens (B, L) and targets (B, L), of which `UNLABELLED` ones count nowhere. Sequences
    shorter than the greatest length of their set end in the padding token, the last of the
    vocabulary. Metrics of further lengths end in @ and the greatest one.

    Args:
        length: Length in training, or the least and the greatest, between which all are as likely.
        extrapolation_lengths: Lengths of further validation and test sets, each as `length`.
        first_length: Greatest length in the first epoch of training; it doubles with every epoch
            until that of `length`. None for `length` in all epochs; needs `fresh`.
        train_size: Sequences of an epoch.
        fresh: Draw new sequences in every epoch instead of the same ones in another order.
        val_size: Validation sequences of every set.
        test_size: Test sequences of every set.
        batch_size: Sequences of a batch.
        packed: Put the sequences of a batch one after another instead of padding them, which
            saves the work on the padding; loss and metrics are the same. For nets that take
            cu_seqlens.
        seed: Seed of the data; the splits and sets of one seed share no random number. None takes
            that of `seed_everything`.

    Raises:
        ValueError: lengths that are none, or two sets of the same greatest length; first_length
            beyond `length` or without `fresh`; packed without a range of lengths; seed out of
            range.
    """

    def __init__(
        self,
        length: int | tuple[int, int] = 64,
        extrapolation_lengths: tuple[int | tuple[int, int], ...] = (),
        first_length: int | None = None,
        train_size: int = 25_600,
        fresh: bool = True,
        val_size: int = 512,
        test_size: int = 2_048,
        batch_size: int = 128,
        packed: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = chosen_seed(seed)
        self.save_hyperparameters(logger=False)
        self.ranges = [self._range(x) for x in (length, *extrapolation_lengths)]
        self.check_settings()
        if packed and all(low == high for low, high in self.ranges):
            raise ValueError(
                f"{type(self).__name__}: packed is for sequences of many lengths, got "
                f"length={length}; give a range such as [1, {self.sizes[0]}], or set packed to "
                "false"
            )
        if first_length is not None and not (fresh and 1 <= first_length <= self.sizes[0]):
            raise ValueError(
                f"{type(self).__name__}: first_length must lie in 1..{self.sizes[0]}, the length "
                f"in training, and needs fresh, got {first_length} and fresh={fresh}; leave it out "
                "to train at one length"
            )

    def _range(self, length: Length) -> tuple[int, int]:
        low, high = (length, length) if isinstance(length, int) else length
        if not 1 <= low <= high <= MAX_SIZE:
            raise ValueError(
                f"{type(self).__name__}: a length must be a number in 1..{MAX_SIZE}, or the "
                f"least and the greatest of a range in it, got {length}"
            )
        return low, high

    @abstractmethod
    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and targets, both (B, greatest length), of the sequences `index` (B,)."""

    def draw_training(
        self, seed: int, index: Tensor, lengths: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """As `draw`, for training; a task may label more there."""
        return self.draw(seed, index, lengths)

    def collate(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor | Packed, Tensor]:
        """Pack the tokens on request; the targets stay as they are."""
        tokens, targets = batch
        if self.hparams.packed:
            return pack(tokens, tokens != self.in_dim - 1), targets
        return batch

    @property
    def sizes(self) -> list[int]:
        """Greatest length of every set; the first one is that of training."""
        return [high for _, high in self.ranges]

    @property
    def size_name(self) -> str:
        return "length of the sequences"

    def dataset(self, split: str, size: int) -> Dataset:
        """Sequences of a split, in the set whose greatest length is `size`."""
        seed, lengths = self.split_seed(split, size), self.ranges[self.sizes.index(size)]
        draw, first = self.draw, None
        if split == "train":
            draw, first = self.draw_training, self.hparams.first_length
        return SequenceDataset(draw, seed, self.split_size(split), lengths, first)

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """`accuracy_by_length`: accuracy against the position of the label."""
        results = {}
        for name, size in zip(self.eval_names, self.sizes, strict=True):
            probabilities = predictions[name]
            dataset = self.dataset("test", size)
            _, targets = dataset.__getitems__(list(range(len(probabilities))))
            hits = probabilities.argmax(-1) == targets
            results[f"test{name}"] = hits, targets != UNLABELLED
        return {"accuracy_by_length": accuracy_by_length(results, self.sizes[0])}


def epoch_lengths(
    lengths: tuple[int, int], first_length: int | None, epoch: int
) -> tuple[int, int]:
    """Least and greatest length in an epoch of training; see `first_length` of `SequenceData`."""
    low, high = lengths
    if first_length is not None:
        high = min(high, first_length << min(epoch, high.bit_length()))
    return min(low, high), high


def draw_lengths(seed: int, index: Tensor, lengths: tuple[int, int]) -> Tensor:
    """Lengths of sequences, (B,), uniform in the range; takes draw 0 of their random numbers."""
    low, high = lengths
    return low + integers(seed, index, 1, high - low + 1)[:, 0]


def inside(lengths: Tensor, greatest: int) -> Tensor:
    """Which positions (B, greatest) belong to sequences of `lengths` (B,)."""
    return torch.arange(greatest, device=lengths.device) < lengths[:, None]


def at_the_end(labels: Tensor, lengths: Tensor) -> Tensor:
    """Targets (B, L): of the labels (B, L) of all positions only those of the last of each."""
    targets, last = torch.full_like(labels, UNLABELLED), lengths[:, None] - 1
    return targets.scatter(1, last, labels.gather(1, last))
