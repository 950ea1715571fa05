"""Image files: finding, decoding and checking them."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.data import as_is

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY = ("1", "L", "LA", "La")  # modes of Pillow with at most 8 bits
DEEP = ("I", "I;16", "I;16B", "I;16L")  # with 16 bits
DEEPEST = 2**16 - 1
SHOWN = 5  # maximum files listed in a message


class Facts(NamedTuple):
    """Properties of an image that stay in memory."""

    checksum: str
    shape: tuple[int, int]  # rows, columns
    channels: int
    mean: list[float]  # of red, green and blue, in [0, 1]
    square: list[float]  # mean of their squares


def find_pictures(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders, sorted by name.

    Other files that are not hidden are left out with a warning.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = [file for file in files if not is_hidden(file.relative_to(folder))]
    pictures = [file for file in files if file.suffix.lower() in ENDINGS]
    if len(pictures) < len(files):
        others = [str(file.relative_to(folder)) for file in files if file not in set(pictures)]
        rank_zero_warn(
            f"ImageData: {len(others)} files in {folder} are left out, because their names do not "
            f"end like those of images ({', '.join(sorted(ENDINGS))}): {some(others)}"
        )
    return pictures


def is_hidden(place: Path) -> bool:
    """Whether a file, or a folder above it, is a hidden file of file managers or tools."""
    return any(part.startswith(".") for part in place.parts) or place.name == "Thumbs.db"


def read_picture(file: Path | io.BytesIO, channels: int | None = None) -> Tensor:
    """Decode an image, (channels, rows, columns), rotated according to its EXIF orientation.

    Transparency is dropped, palettes are resolved; of an animation, the first frame is used.

    Args:
        file: The file.
        channels: 1 for grey, 3 for RGB; those of the file if None.

    Returns:
        uint8, or float32 in [0, 1] for 16-bit images.
    """
    with Image.open(file) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in DEEP:
            return _deep(np.array(picture), channels or 1)
        if picture.mode == "F":
            raise ValueError("its pixels are floats with unknown range")
        if picture.mode in ("P", "PA"):
            picture = picture.convert("RGBA")
        own = 1 if picture.mode in GREY else 3
        pixels = np.array(picture.convert("L" if (channels or own) == 1 else "RGB"))
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(-1, 0)


def _deep(pixels: np.ndarray, channels: int) -> Tensor:
    if pixels.min() < 0 or pixels.max() > DEEPEST:
        raise ValueError(f"its pixels must lie in 0..{DEEPEST}")
    grey = torch.from_numpy(pixels.astype(np.float32) / DEEPEST)
    return grey.expand(channels, -1, -1)


def as_float(picture: Tensor) -> Tensor:
    """Convert bytes to float32 in [0, 1]; floats stay unchanged."""
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture


def resized(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize images (C, rows, columns) or (B, C, rows, columns).

    Bilinear, with antialiasing when the size decreases.
    """
    if tuple(picture.shape[-2:]) == shape:
        return picture
    whole = picture if picture.ndim == 4 else picture[None]
    whole = torch.nn.functional.interpolate(whole, shape, mode="bilinear", antialias=True)
    return whole.view(*picture.shape[:-2], *shape)


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of pixels (C, ...), as values in [0, 1], and of their squares, (C,) in float64.

    For bytes, uses a histogram, which avoids a copy.
    """
    if pixels.dtype != torch.uint8:
        values = pixels.flatten(1).double()
        return values.mean(1), values.square().mean(1)
    counts = [torch.bincount(channel, minlength=256) for channel in pixels.flatten(1)]
    shares = torch.stack(counts).double() / pixels[0].numel()
    values = torch.arange(256).double() / 255
    return shares @ values, shares @ values.square()


def examine(files: Sequence[Path], folder: Path, num_workers: int) -> list[Facts]:
    """Decode every image once.

    Args:
        files: The image files.
        folder: Their folder, for messages.
        num_workers: Number of processes that decode.

    Raises:
        ValueError: images cannot be read; the message lists some and counts all.
    """
    rank_zero_info(f"ImageData: reading {len(files):,} images of {folder} to check them")
    loader = DataLoader(
        _Examined(files), batch_size=None, collate_fn=as_is, num_workers=num_workers
    )
    facts = list(loader)
    broken = [
        f"{file.relative_to(folder)} ({fact})"
        for file, fact in zip(files, facts, strict=True)
        if isinstance(fact, str)
    ]
    if broken:
        raise ValueError(
            f"ImageData: {len(broken)} of the {len(files)} images in {folder} cannot be read: "
            f"{some(broken)}; repair or remove them"
        )
    return facts


class _Examined(Dataset):
    """Facts of images, or error messages."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Facts | str:
        try:
            content = self.files[number].read_bytes()
            picture = read_picture(io.BytesIO(content))
        except UnidentifiedImageError:
            return "not an image in a known format"
        except Exception as error:  # decoders raise various errors
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        mean, square = (x.expand(3).tolist() for x in moments(picture))
        checksum = hashlib.sha256(content).hexdigest()
        return Facts(checksum, tuple(picture.shape[1:]), len(picture), mean, square)


def some(names: Sequence[str]) -> str:
    """The first names, and the number of others."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
