"""Files in the IDX format, as MNIST and its relatives come in."""

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
SPLITS = {"train": ("train",), "val": ("val",), "test": ("test", "t10k")}  # in names of files
BYTES = 8  # code of the only type of number that pictures have


def read_idx(file: Path) -> Tensor:
    """The array of bytes of an IDX file, uint8, which may be packed by gzip or xz.

    The file has two zeros, a code of the type, the number of axes, their sizes as 4 bytes each,
    the most significant first, and the numbers row-major.

    Raises:
        ValueError: the file is not such a file, or not whole.
    """
    try:
        with OPENERS.get(file.suffix, open)(file, "rb") as stream:
            content = stream.read()
    except (EOFError, OSError, lzma.LZMAError) as error:
        raise ValueError(f"read_idx: {file} cannot be read ({error}); copy it anew") from error
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:3] != bytes((0, 0, BYTES)) or len(content) < start:
        raise ValueError(
            f"read_idx: {file} must be an IDX file of bytes, which begins with 0, 0, {BYTES} and "
            f"the number of axes, got {list(content[:4])}; is it another format, or packed?"
        )
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"read_idx: {file} must have {math.prod(shape)} numbers for its shape {tuple(shape)}, "
            f"got {len(content) - start}; copy it anew"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def idx_files(folder: Path) -> dict[str, dict[str, Path]]:
    """IDX files in a folder by split (train, val, test) and kind (images, labels).

    Their names hold train, val, or test or t10k, then images or labels, and end in idx3-ubyte or
    the like, before .gz or .xz. Of a file that is there packed and unpacked, the latter is taken.

    Raises:
        ValueError: two files for the same split and kind; labels without images.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):  # unpacked ones before packed ones
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
                f"and {file.name}; put every data set into a folder of its own"
            )
    for split, kinds in found.items():
        if "images" not in kinds:
            raise ValueError(f"idx_files: {kinds['labels']} are labels of no {split} images")
    return found


def _unpacked(file: Path) -> str:
    return file.stem if file.suffix in OPENERS else file.name
