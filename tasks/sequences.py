"""Shared parts of tasks with generated, labelled sequences: lengths, splits, loaders."""

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

Length = int | tuple[int, int]  # one length, or minimum and maximum
Draw = Callable[[int, Tensor, tuple[int, int]], tuple[Tensor, Tensor]]


class SequenceDataset(Dataset):
    """Sequences of one split with one range of lengths, drawn a batch at a time.

    Args:
        draw: Draws tokens and targets from a seed, indices (B,) and the range.
        seed: Seed of the split.
        size: Number of sequences.
        lengths: Minimum and maximum length.
        first_length: Maximum length of the first `size` sequences; it doubles for every further
            `size` sequences, up to the maximum. None for the same lengths everywhere.
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
    """Generated sequences: train at some lengths, validate and test there and at other lengths.

    A batch is tokens (B, L) and targets (B, L), where `UNLABELLED` targets are ignored. Sequences
    shorter than the maximum length of their set are padded with the last token of the vocabulary.
    Metrics of other lengths have the suffix @ and the maximum length.

    Args:
        length: Training length, or minimum and maximum, sampled uniformly.
        extrapolation_lengths: Lengths of additional validation and test sets, each like `length`.
        first_length: Maximum length in the first training epoch; it doubles with every epoch up to
            that of `length`. None for `length` in all epochs; needs `fresh`.
        train_size: Sequences per epoch.
        fresh: Draw new sequences in every epoch, instead of shuffling the same ones.
        val_size: Sequences per validation set.
        test_size: Sequences per test set.
        batch_size: Sequences per batch.
        packed: Concatenate the sequences of a batch instead of padding them, which saves the work
            on padding; loss and metrics are the same. For nets that accept cu_seqlens.
        seed: Seed of the data; splits and sets of one seed share no random numbers. If None, that
            of `seed_everything`.

    Raises:
        ValueError: a length is invalid, or two sets have the same maximum length; first_length is
            above `length` or without `fresh`; packed without a range of lengths; seed is out of
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
                f"{type(self).__name__}: packed is for sequences of different lengths, got "
                f"length={length}; use a range such as [1, {self.sizes[0]}], or set packed to "
                "false"
            )
        if first_length is not None and not (fresh and 1 <= first_length <= self.sizes[0]):
            raise ValueError(
                f"{type(self).__name__}: first_length must lie in 1..{self.sizes[0]}, the length "
                f"in training, and needs fresh, got {first_length} and fresh={fresh}; omit it "
                "to train at one length"
            )

    def _range(self, length: Length) -> tuple[int, int]:
        low, high = (length, length) if isinstance(length, int) else length
        if not 1 <= low <= high <= MAX_SIZE:
            raise ValueError(
                f"{type(self).__name__}: a length must be a number in 1..{MAX_SIZE}, or the "
                f"minimum and the maximum of a range in it, got {length}"
            )
        return low, high

    @abstractmethod
    def draw(self, seed: int, index: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and targets, both (B, maximum length), of the sequences `index` (B,)."""

    def draw_training(
        self, seed: int, index: Tensor, lengths: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Like `draw`, for training, where a task may add labels."""
        return self.draw(seed, index, lengths)

    def collate(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor | Packed, Tensor]:
        """Pack the tokens if requested; the targets stay padded."""
        tokens, targets = batch
        if self.hparams.packed:
            return pack(tokens, tokens != self.in_dim - 1), targets
        return batch

    @property
    def sizes(self) -> list[int]:
        """Maximum length of every set; the first is the training length."""
        return [high for _, high in self.ranges]

    @property
    def size_name(self) -> str:
        return "sequence length"

    def dataset(self, split: str, size: int) -> Dataset:
        """Sequences of a split, in the set whose maximum length is `size`."""
        seed, lengths = self.split_seed(split, size), self.ranges[self.sizes.index(size)]
        draw, first = self.draw, None
        if split == "train":
            draw, first = self.draw_training, self.hparams.first_length
        return SequenceDataset(draw, seed, self.split_size(split), lengths, first)

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """The plot `accuracy_by_length`: accuracy against the position of the label."""
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
    """Minimum and maximum length in a training epoch; see `first_length` of `SequenceData`."""
    low, high = lengths
    if first_length is not None:
        high = min(high, first_length << min(epoch, high.bit_length()))
    return min(low, high), high


def draw_lengths(seed: int, index: Tensor, lengths: tuple[int, int]) -> Tensor:
    """Lengths of sequences, (B,), uniform in the range; uses draw 0 of their random numbers."""
    low, high = lengths
    return low + integers(seed, index, 1, high - low + 1)[:, 0]


def inside(lengths: Tensor, greatest: int) -> Tensor:
    """Mask (B, greatest) of the positions in sequences of `lengths` (B,)."""
    return torch.arange(greatest, device=lengths.device) < lengths[:, None]


def at_the_end(labels: Tensor, lengths: Tensor) -> Tensor:
    """Targets (B, L) that keep the labels (B, L) only at the last position of each sequence."""
    targets, last = torch.full_like(labels, UNLABELLED), lengths[:, None] - 1
    return targets.scatter(1, last, labels.gather(1, last))
