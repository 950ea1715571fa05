"""Files in the IDX format, as used by MNIST and similar data sets."""

import gzip
import lzma
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
NAME = re.compile(r"(images|labels).?idx\d.?ubyte(\.gz|\.xz)?$")
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test", "t10k")}  # in file names
BYTES = 8  # type code of the values of images


def read_idx(file: Path) -> Tensor:
    """Read an IDX file of bytes, which may be compressed by gzip or xz, as a uint8 tensor.

    The file has two zero bytes, a type code, the number of axes, their sizes as 4 bytes each in
    big-endian order, and the values in row-major order.

    Raises:
        ValueError: the file is not in this format, or incomplete.
    """
    try:
        with OPENERS.get(file.suffix, open)(file, "rb") as stream:
            content = stream.read()
    except (EOFError, OSError, lzma.LZMAError) as error:
        raise ValueError(f"read_idx: {file} cannot be read ({error}); copy it again") from error
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:3] != bytes((0, 0, BYTES)) or len(content) < start:
        raise ValueError(
            f"read_idx: {file} must be an IDX file of bytes, which begins with 0, 0, {BYTES} and "
            f"the number of axes, got {list(content[:4])}; is it another format, or compressed?"
        )
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"read_idx: {file} must have {math.prod(shape)} values for its shape {tuple(shape)}, "
            f"got {len(content) - start}; copy it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def idx_files(folder: Path) -> dict[str, dict[str, Path]]:
    """IDX files in a folder by split (train, val, test) and kind (images, labels).

    File names contain train, val, or test or t10k, then images or labels, and end in idx3-ubyte or
    similar, before .gz or .xz. If a file is present both with and without compression, the
    uncompressed one is used.

    Raises:
        ValueError: two files for the same split and kind; labels without images.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):  # uncompressed files before compressed ones
        match = NAME.search(file.name)
        names = (s for s, words in SPLITS.items() if any(word in file.name for word in words))
        split = next(names, None)
        if match is None or split is None:
            continue
        kinds = found.setdefault(split, {})
        other = kinds.setdefault(match[1], file)
        if _unpacked(other) != _unpacked(file):
            raise ValueError(
                f"idx_files: {folder} must have one file of {split} {match[1]}, got {other.name} "
                f"and {file.name}; put every data set into its own folder"
            )
    for split, kinds in found.items():
        if "images" not in kinds:
            raise ValueError(f"idx_files: {kinds['labels']} has labels without {split} images")
    return found


def _unpacked(file: Path) -> str:
    return file.stem if file.suffix in OPENERS else file.name
