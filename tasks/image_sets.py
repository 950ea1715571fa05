"""Labelled images: from IDX files in memory, or from a folder, decoded on access."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tasks.data import SPLITS, UNLABELLED, checksum
from tasks.idx import idx_files, read_idx
from tasks.image_files import (
    ENDINGS,
    SHOWN,
    Facts,
    as_float,
    examine,
    find_pictures,
    is_hidden,
    moments,
    read_picture,
    resized,
    some,
)

FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val"}
FOLDERS |= {"validation": "val", "test": "test", "testing": "test"}


class PictureSet(ABC):
    """Images with labels (n,), their names, and class names.

    Labels of images without a class are `UNLABELLED`.
    """

    labels: Tensor
    names: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of all images; a ValueError if sizes differ."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """1 if all images are grey, else 3."""

    @property
    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the values in [0, 1] and of their squares, (channels,); images count equally."""

    @property
    @abstractmethod
    def checksums(self) -> dict[str, str]:
        """Checksum of every file, or of all of them together, by name."""

    @abstractmethod
    def check(self) -> None:
        """Raise a ValueError if an image cannot be read."""

    @abstractmethod
    def subset(self, numbers: Tensor) -> Self:
        """Select the images with indices `numbers` (n,)."""

    @abstractmethod
    def read(self, numbers: Sequence[int], shape: tuple[int, int], channels: int) -> Tensor:
        """The images with indices `numbers` at a size, (B, channels, *shape), values in [0, 1]."""


class IdxPictures(PictureSet):
    """Grey images of an IDX file, uint8 in memory; their names are their indices.

    Args:
        images: File of the images.
        labels: File of their labels, None for unlabelled images.
        classes: Names of the classes; the indices up to the largest label if None.

    Raises:
        ValueError: file shapes do not match; a label is out of range.
    """

    def __init__(
        self, images: Path, labels: Path | None = None, classes: list[str] | None = None
    ) -> None:
        self.files = [images] if labels is None else [images, labels]
        self.images = read_idx(images)
        if self.images.ndim != 3 or not self.images.numel():
            raise ValueError(
                f"ImageData: {images} must have shape (number, rows, columns), got "
                f"{tuple(self.images.shape)}; pass the file of the images"
            )
        self.names = [str(number) for number in range(len(self.images))]
        self.labels = torch.full((len(self.images),), UNLABELLED)
        if labels is not None:
            self.labels = read_idx(labels).long()
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"ImageData: {labels} must have a label for each of the {len(self.images)} "
                f"images of {images.name}, got {tuple(self.labels.shape)}"
            )
        greatest = int(self.labels.max())
        self.classes = classes or [str(number) for number in range(greatest + 1)]
        if greatest >= len(self.classes):
            raise ValueError(
                f"ImageData: labels must be classes 0..{len(self.classes) - 1}, got {greatest} in "
                f"{labels}; list all of them in classes"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.images.shape[1:])

    @property
    def channels(self) -> int:
        return 1

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        return moments(self.images[None])

    @cached_property
    def checksums(self) -> dict[str, str]:
        return {file.name: checksum(file) for file in self.files}

    def check(self) -> None:
        """All images are already in memory."""

    def subset(self, numbers: Tensor) -> Self:
        part = object.__new__(type(self))
        part.files, part.classes = self.files, self.classes
        part.images, part.labels = self.images[numbers], self.labels[numbers]
        part.names = [self.names[number] for number in numbers.tolist()]
        return part

    def read(self, numbers: Sequence[int], shape: tuple[int, int], channels: int) -> Tensor:
        images = as_float(resized(self.images[numbers][:, None], shape))
        return images.expand(-1, channels, -1, -1)


class FilePictures(PictureSet):
    """Images of a folder with one subfolder per class, or without classes.

    Files stay in place; an image is decoded on every access.

    Args:
        folder: The folder, or a single image file.
        classes: Names of the classes; those of the subfolders if None.
        num_workers: Number of processes that check all images once.
        split: Name of the split, for messages.

    Raises:
        ValueError: no images; some images are in class folders and some are not; an unknown class;
            a class without images.
    """

    def __init__(
        self, folder: Path, classes: list[str] | None, num_workers: int, split: str
    ) -> None:
        self.folder, self.split, self.num_workers = folder, split, num_workers
        self.whole, self.numbers = None, []
        if folder.is_file():
            self.folder, self.files = folder.parent, [folder]
        else:
            self.files = find_pictures(folder)
        places = [file.relative_to(self.folder).parts for file in self.files]
        self.names = ["/".join(parts) for parts in places]
        owners = [parts[0] if len(parts) > 1 else None for parts in places]
        self._check(owners)
        self.classes = classes or _in_order([x.name for x in self.folder.iterdir() if x.is_dir()])
        self._check_classes(_in_order({owner for owner in owners if owner is not None}))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = torch.tensor([numbers.get(owner, UNLABELLED) for owner in owners])

    def _check_classes(self, found: list[str]) -> None:
        if unknown := [name for name in found if name not in self.classes]:
            raise ValueError(
                f"ImageData: the folders in {self.folder} must be among the classes "
                f"{some(self.classes)}, got {some(unknown)}; put images without a class into "
                "no folder"
            )
        missing = [name for name in self.classes if name not in found]
        if missing and self.split == "train":
            raise ValueError(
                f"ImageData: every class must have training images, {self.folder} has none of "
                f"{some(missing)}; add some, or remove the class"
            )

    def _check(self, owners: list[str | None]) -> None:
        if not owners:
            raise ValueError(
                f"ImageData: {self.folder} must have images, got none; pass a folder with one "
                "folder per class, or with IDX files like those of MNIST"
            )
        loose = [name for name, owner in zip(self.names, owners, strict=True) if owner is None]
        if 0 < len(loose) < len(owners):
            raise ValueError(
                f"ImageData: images of {self.folder} must all be in class folders, or none of "
                f"them, got {len(loose)} beside {len(owners) - len(loose)} of classes: "
                f"{some(loose)}"
            )

    @cached_property
    def facts(self) -> list[Facts]:
        """Facts of every image; the first access reads all images once."""
        if self.whole is not None:
            return [self.whole.facts[number] for number in self.numbers]
        return examine(self.files, self.folder, self.num_workers)

    @property
    def shape(self) -> tuple[int, int]:
        first: dict[tuple[int, int], str] = {}
        for fact, name in zip(self.facts, self.names, strict=True):
            first.setdefault(fact.shape, name)
        if len(first) > 1:
            shown = [f"{y} x {x} ({name})" for (y, x), name in list(first.items())[:SHOWN]]
            raise ValueError(
                f"ImageData: the images of {self.folder} have {len(first)} sizes: "
                f"{', '.join(shown)}{' and more' if len(first) > SHOWN else ''}; set data.size, as "
                "in --data.size 64, to resize all of them"
            )
        return next(iter(first))

    @property
    def channels(self) -> int:
        return max(fact.channels for fact in self.facts)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor([[f.mean, f.square] for f in self.facts], dtype=torch.float64)
        return tuple(numbers.mean(0)[:, : self.channels])

    @property
    def checksums(self) -> dict[str, str]:
        digest = hashlib.sha256()
        for name, fact in zip(self.names, self.facts, strict=True):
            digest.update(f"{name} {fact.checksum}\n".encode())
        return {f"the folder of {self.split} images": digest.hexdigest()}

    def check(self) -> None:
        _ = self.facts  # reads all images

    def subset(self, numbers: Tensor) -> Self:
        part = object.__new__(type(self))
        part.folder, part.split, part.num_workers = self.folder, self.split, self.num_workers
        part.whole, part.numbers = self, numbers.tolist()
        part.files = [self.files[number] for number in part.numbers]
        part.names = [self.names[number] for number in part.numbers]
        part.classes, part.labels = self.classes, self.labels[numbers]
        return part

    def read(self, numbers: Sequence[int], shape: tuple[int, int], channels: int) -> Tensor:
        pictures = (read_picture(self.files[number], channels) for number in numbers)
        return torch.stack([as_float(resized(picture, shape)) for picture in pictures])


def read_sets(path: Path, num_workers: int, classes: list[str] | None) -> dict[str, PictureSet]:
    """The sets of a folder by split (train, val, test), from IDX files or image files.

    IDX file names contain their split; image folders may have subfolders train, val and test.
    Without a folder train, all images are training images. The training set defines the classes.

    Args:
        path: The folder.
        num_workers: Number of processes that decode images.
        classes: Names of the classes, if known.

    Raises:
        ValueError: no such folder, no training set, or an invalid set.
    """
    if not path.is_dir():
        raise ValueError(
            f"ImageData: path must be a folder of images or of IDX files, got {str(path)!r}; "
            "there is none"
        )
    files = idx_files(path)
    folders = {split: path / name for name, split in FOLDERS.items() if (path / name).is_dir()}
    if not files and "train" not in folders:
        folders = {"train": path}
    sets: dict[str, PictureSet] = {}
    for split in SPLITS:
        if kinds := files.get(split):
            sets[split] = IdxPictures(kinds["images"], kinds.get("labels"), classes)
        elif not files and split in folders:
            sets[split] = FilePictures(folders[split], classes, num_workers, split)
        elif split == "train":
            raise ValueError(
                f"ImageData: {path} must have training images, got IDX files of "
                f"{', '.join(files)} only; pass test images as test_path"
            )
        classes = sets["train"].classes
    return sets


def read_test_set(path: Path, num_workers: int, classes: list[str] | None) -> PictureSet:
    """Images to test on, or without classes to predict.

    Args:
        path: A folder with the IDX files of a test set, a folder of images, or an image file.
        num_workers: Number of processes that decode images.
        classes: Class names of the net.

    Raises:
        ValueError: no such file or folder, or an invalid set.
    """
    if not path.exists():
        raise ValueError(
            f"ImageData: test_path must be a folder of images or of IDX files, or one file, got "
            f"{str(path)!r}; there is none"
        )
    if path.is_file() and path.suffix.lower() not in ENDINGS:
        return IdxPictures(path, None, classes)
    kinds = idx_files(path).get("test") if path.is_dir() else None
    if kinds:
        return IdxPictures(kinds["images"], kinds.get("labels"), classes)
    return FilePictures(path, classes, num_workers, "test")


def _in_order(names: Iterable[str]) -> list[str]:
    """Names that are not hidden, sorted; numerically if all are numbers."""
    names = [name for name in names if not is_hidden(Path(name))]
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))
