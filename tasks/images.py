"""Image classification: IDX files such as those of MNIST, or folders of image files.

Example: a grey image of 28 x 28 pixels shows the digit 7, and its class is 7.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plstm.checks import check_positive
from tasks.augmentation import Augmentation
from tasks.data import (
    UNLABELLED,
    DataModule,
    EpochSampler,
    Row,
    ShardedBatches,
    as_is,
    chosen_seed,
)
from tasks.image_mistakes import mistakes, worst
from tasks.image_sets import PictureSet, read_sets, read_test_set

LEVELS = 256  # vocabulary size of pixel sequences
ROUNDING = 1e-6  # largest standard deviation that counts as 0, a constant channel
VERBS = {"train": "train on", "val": "validate on", "test": "test on"}

Inputs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ImageDataset(Dataset):
    """Inputs and targets of images at one size, a batch at a time.

    Args:
        pictures: The images; index n is image n % their number.
        shape: Rows and columns.
        channels: 1 for grey, 3 for RGB.
        finish: Computes inputs and targets from images (B, C, Y, X) in [0, 1] and labels (B,).
        augment: Augments images, given their indices (B,).
    """

    def __init__(
        self,
        pictures: PictureSet,
        shape: tuple[int, int],
        channels: int,
        finish: Inputs,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.pictures, self.shape, self.channels = pictures, shape, channels
        self.finish, self.augment = finish, augment

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        numbers = [index % len(self) for index in indices]
        images = self.pictures.read(numbers, self.shape, self.channels)
        if self.augment is not None:
            images = self.augment(images, torch.tensor(indices))
        return self.finish(images, self.pictures.labels[numbers])


class ImageData(DataModule):
    """Images of IDX files or folders, as images or as sequences of pixels.

    A folder has one subfolder per class, or subfolders train, val and test that do; IDX files are
    named like those of MNIST and may be compressed (.gz, .xz). A missing set is a stratified random
    fraction of the training set. All images of a folder are decoded once when a command starts, to
    find broken files, sizes, channels, mean and checksums.

    Image channels have mean 0 and standard deviation 1 over the training set. A sequence has the
    values of all pixels as tokens 0..255, row by row, with the channels of a pixel adjacent; its
    label is at the last token.

    Args:
        path: The folder.
        size: Side of a square, or rows and columns, to which all images are resized; None if all
            images have one size.
        extrapolation_sizes: Rows of additional validation and test sets, which have the same images
            resized, with the same aspect ratio.
        val_share: Fraction of the training images for validation, if there is no validation set.
        test_share: Fraction for testing, if there is no test set; with 0, the validation set is the
            test set.
        test_path: Other images to test on and to predict: a folder as above, with or without
            classes, or a file.
        as_sequence: Return sequences of tokens (B, L) and targets (B, L) instead of images.
        permutation_seed: Seed of a fixed permutation of the tokens of all sequences; None for the
            order of the pixels.
        flip: Flip training images horizontally with probability 1/2.
        max_shift: Shift training images by up to this many pixels, replicating the border.
        erase: Probability to fill a rectangle of a training image with the mean.
        classes: Names of the classes; those of the folders, or indices, if None. Checkpoints store
            them, as well as mean and std.
        mean: Mean of every channel, of values in [0, 1]; that of the training set if None.
        std: Standard deviation of every channel; that of the training set if None.
        batch_size: Images per batch.
        seed: Seed of the splits, of the sample order and of augmentation; if None, that of
            `seed_everything`.
        num_workers: Number of processes that decode.

    Raises:
        ValueError: no such folder; images cannot be read or have several sizes; an unknown class;
            an empty set; an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] | None = None,
        extrapolation_sizes: tuple[int, ...] = (),
        val_share: float = 0.1,
        test_share: float = 0.1,
        test_path: str | None = None,
        as_sequence: bool = False,
        permutation_seed: int | None = None,
        flip: bool = False,
        max_shift: int = 0,
        erase: float = 0.0,
        classes: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 128,
        seed: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.seed = chosen_seed(seed)
        self.save_hyperparameters(logger=False)
        sides = () if size is None else (size,) if isinstance(size, int) else size
        check_positive(
            "ImageData",
            size=min(sides, default=1),
            extrapolation_sizes=min(extrapolation_sizes, default=1),
        )
        if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
            raise ValueError(
                "ImageData: val_share must be above 0, test_share 0 or more, and some images must "
                f"be left for training, got {val_share} and {test_share}"
            )
        if max_shift < 0 or not 0 <= erase <= 1:
            raise ValueError(
                "ImageData: max_shift must be 0 or more pixels and erase a probability in [0, 1], "
                f"got {max_shift} and {erase}"
            )
        if permutation_seed is not None and not as_sequence:
            raise ValueError(
                "ImageData: permutation_seed is for sequences of pixels, got "
                f"permutation_seed={permutation_seed} and as_sequence=False; set as_sequence to "
                "true or omit it"
            )
        channels = [None if numbers is None else len(numbers) for numbers in (mean, std)]
        if channels not in ([None, None], [1, 1], [3, 3]):
            raise ValueError(
                "ImageData: mean and std must have a value for each of 1 or 3 channels, got "
                f"{mean} and {std}; omit both to use those of the training set"
            )

    @cached_property
    def sets(self) -> dict[str, PictureSet]:
        """The sets in `path`, by split."""
        return read_sets(Path(self.hparams.path), self.hparams.num_workers, self.hparams.classes)

    @cached_property
    def parts(self) -> dict[str, PictureSet]:
        """Images of `path` for training, validation and testing."""
        h, parts = self.hparams, dict(self.sets)
        missing = {"test": h.test_share, "val": h.val_share}
        shares = {split: share for split, share in missing.items() if split not in parts}
        left = 1.0
        for split, share in shares.items():
            if share:
                parts["train"], parts[split] = _split(parts["train"], share / left, self.seed)
                left -= share
        parts.setdefault("test", parts["val"])
        for split, part in parts.items():
            if not len(part):
                raise ValueError(
                    f"ImageData: every set needs images, got none for {split} of the "
                    f"{sum(map(len, self.sets.values()))} of {h.path}; raise {split}_share, or "
                    "add pictures"
                )
        for split in ("train", "val"):
            _check_labelled(parts[split], split)
        return parts

    @cached_property
    def test_set(self) -> PictureSet:
        """Images to test on and to predict."""
        h = self.hparams
        if h.test_path is None:
            return self.parts["test"]
        return read_test_set(Path(h.test_path), h.num_workers, self.class_names)

    @property
    def checksums(self) -> dict[str, str]:
        return {name: x for part in self.sets.values() for name, x in part.checksums.items()}

    @property
    def class_names(self) -> list[str]:
        return self.hparams.classes or self.sets["train"].classes

    @cached_property
    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel of the training set, (channels,)."""
        if self.hparams.mean is not None:
            return torch.tensor(self.hparams.mean), torch.tensor(self.hparams.std)
        mean, square = self.parts["train"].moments
        std = (square - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(std > ROUNDING, std, 1).float()

    @property
    def checkpoint_arguments(self) -> dict[str, object]:
        mean, std = (x.tolist() for x in self.mean_and_std)
        return {"classes": self.class_names, "mean": mean, "std": std}

    @property
    def in_dim(self) -> int:
        return LEVELS if self.hparams.as_sequence else len(self.mean_and_std[0])

    @property
    def out_dim(self) -> int:
        return len(self.class_names)

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns in training and in each additional evaluation."""
        h, size = self.hparams, self.hparams.size
        if size is None:  # prediction does not need the training images
            alone = h.test_path is not None and h.mean is not None
            size = (self.test_set if alone else self.parts["train"]).shape
        rows, columns = (size, size) if isinstance(size, int) else size
        shapes = [(rows, columns)]
        shapes += [(n, max(1, round(n * columns / rows))) for n in h.extrapolation_sizes]
        if len({n for n, _ in shapes}) < len(shapes):
            raise ValueError(
                "ImageData: the sizes of the sets must differ, because they name the metrics, got "
                f"{[n for n, _ in shapes]}"
            )
        return shapes

    @property
    def sizes(self) -> list[int]:
        return [rows for rows, _ in self.shapes]

    @property
    def size_name(self) -> str:
        return "rows of pixels"

    @property
    def eval_names(self) -> list[str]:
        return ["", *(f"@{rows}" for rows in self.sizes[1:])]

    def dataset(self, pictures: PictureSet, shape: tuple[int, int], train: bool) -> ImageDataset:
        """Inputs and targets of images at a size; augmented for training."""
        h, (mean, std) = self.hparams, self.mean_and_std
        pictures.check()
        if h.size is None and pictures.shape != self.shapes[0]:
            raise ValueError(
                f"ImageData: images of {pictures.shape} do not match the training images of "
                f"{self.shapes[0]} rows and columns; set data.size, as in --data.size 64"
            )
        finish = partial(as_images, mean=mean, std=std)
        if h.as_sequence:
            finish = partial(as_sequences, permutation_seed=h.permutation_seed)
        augment = Augmentation(h.flip, h.max_shift, h.erase) if train else None
        if augment is not None:
            augment = partial(augment, mean=mean, seed=self.seed)
        return ImageDataset(pictures, shape, len(mean), finish, augment)

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset(self.parts["train"], self.shapes[0], train=True)
        sampler = EpochSampler(len(dataset), self.seed, self.train_epoch())
        return self._loader(dataset, self.train_batches(sampler))

    def val_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders(self.parts["val"])

    def test_dataloader(self) -> list[DataLoader]:
        _check_labelled(self.test_set, "test")
        return self._eval_loaders(self.test_set)

    def predict_dataloader(self) -> list[DataLoader]:
        """The test set, with or without classes."""
        return self._eval_loaders(self.test_set)

    def _eval_loaders(self, pictures: PictureSet) -> list[DataLoader]:
        datasets = [self.dataset(pictures, shape, train=False) for shape in self.shapes]
        return [self._loader(dataset, self.eval_batches(len(dataset))) for dataset in datasets]

    def _loader(self, dataset: ImageDataset, batches: ShardedBatches) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=as_is,
            num_workers=self.hparams.num_workers,
            persistent_workers=self.hparams.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def prediction_pictures(self, predictions: dict[str, Tensor]) -> dict[str, Figure]:
        """The plot `mistakes`: misclassified test images with the highest confidence."""
        probabilities = self._of_pictures(predictions[""])
        labels = self.test_set.labels[: len(probabilities)]
        numbers = worst(probabilities, labels)
        if not numbers:
            return {}
        images = self.test_set.read(numbers, self.shapes[0], len(self.mean_and_std[0]))
        figure = mistakes(images, probabilities[numbers], labels[numbers], self.class_names)
        return {"mistakes": figure}

    def prediction_tables(self, predictions: dict[str, Tensor]) -> dict[str, Iterable[Row]]:
        """The table `predictions`: name, class, predicted class and probabilities per image."""
        return {
            f"predictions{name}": self._table(self._of_pictures(probabilities))
            for name, probabilities in predictions.items()
        }

    def _of_pictures(self, probabilities: Tensor) -> Tensor:
        """Class probabilities, (n, C); those of sequences are at their last token."""
        return probabilities[:, -1] if self.hparams.as_sequence else probabilities

    def _table(self, probabilities: Tensor) -> Iterable[Row]:
        names, pictures = self.class_names, self.test_set
        yield ["picture", "class", "predicted", *names]
        for name, label, row in zip(
            pictures.names, pictures.labels.tolist(), probabilities, strict=False
        ):
            given = "" if label == UNLABELLED else names[label]
            yield [name, given, names[int(row.argmax())], *(f"{x:.6f}" for x in row.tolist())]


def as_images(images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize images (B, C, Y, X) with mean and standard deviation (C,)."""
    return (images - mean[:, None, None]) / std[:, None, None], labels


def as_sequences(
    images: Tensor, labels: Tensor, permutation_seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens (B, Y X C) of images (B, C, Y, X) in [0, 1], and targets: the label at the last.

    Args:
        images: The images.
        labels: Their labels, (B,).
        permutation_seed: Seed of a permutation of the tokens.
    """
    tokens = (images * (LEVELS - 1)).round().long().movedim(1, -1).flatten(1)
    if permutation_seed is not None:
        generator = torch.Generator().manual_seed(permutation_seed)
        tokens = tokens[:, torch.randperm(tokens.shape[1], generator=generator)]
    targets = torch.full_like(tokens, UNLABELLED)
    targets[:, -1] = labels
    return tokens, targets


def _split(pictures: PictureSet, share: float, seed: int) -> tuple[PictureSet, PictureSet]:
    """Split off a random fraction of every class: the other images, and that fraction."""
    size = len(pictures)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    order = order[pictures.labels[order].argsort(stable=True)]  # sorted by class
    count = round(size * share)
    taken = torch.zeros(size, dtype=torch.bool)
    taken[order[((torch.arange(count) + 0.5) * size / max(count, 1)).long()]] = True
    return pictures.subset((~taken).nonzero()[:, 0]), pictures.subset(taken.nonzero()[:, 0])


def _check_labelled(pictures: PictureSet, split: str) -> None:
    if (pictures.labels == UNLABELLED).any():
        raise ValueError(
            f"ImageData: images to {VERBS[split]} must have classes; put those of each class "
            "into a folder with its name, or add the IDX file of the labels; images without "
            "classes can be predicted"
        )
