"""Pieces of a text with targets shifted by one character: windows, documents, streams."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.data import UNLABELLED
from tasks.packing import Packed, pack


class WindowDataset(Dataset):
    """Windows of a text, with targets shifted by one character.

    Args:
        tokens: The text as integers, (T,).
        context: Characters per window; the last window may be shorter.
        starts: Position of the first character of every window, (n,).
    """

    def __init__(self, tokens: Tensor, context: int, starts: Tensor) -> None:
        self.tokens, self.context, self.starts = tokens, context, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.tokens[start : start + self.context + 1].long()
        return window[:-1], window[1:]


class DocumentDataset(Dataset):
    """Windows of documents, each starting at the start of a document or the end of a window.

    A document ends after every separator. With the text "abc;de;f", the separator ";" and context
    2, the windows are "ab", "c" and "de": the last character is only a target.

    Args:
        tokens: The text as integers, (T,).
        context: Maximum characters per window.
        separator: Tokens that end a document, (n,).
    """

    def __init__(self, tokens: Tensor, context: int, separator: Tensor) -> None:
        self.tokens = tokens
        last = torch.tensor([len(tokens)])
        ends = torch.cat([ends_of(tokens, separator), last]).unique()
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
        counts = (ends - begins - 1 + context - 1) // context  # 0 for a single character
        document = torch.repeat_interleave(counts)
        number = torch.arange(len(document)) - (counts.cumsum(0) - counts)[document]
        self.starts = begins[document] + context * number
        self.stops = torch.minimum(self.starts + context + 1, ends[document])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.tokens[self.starts[index] : self.stops[index]].long()
        return window[:-1], window[1:]


def ends_of(tokens: Tensor, separator: Tensor) -> Tensor:
    """Positions after every separator (n,) in tokens (T,)."""
    size = len(tokens) - len(separator) + 1
    found = torch.ones(max(size, 0), dtype=torch.bool)
    for i, token in enumerate(separator):
        found &= tokens[i : i + len(found)] == token
    return found.nonzero()[:, 0] + len(separator)


def collate_documents(
    windows: list[tuple[Tensor, Tensor]], context: int, packed: bool
) -> tuple[Tensor | Packed, Tensor]:
    """Collate windows of up to `context` characters: inputs, padded or packed, and targets."""
    inputs, targets = zip(*windows, strict=True)
    kept = torch.arange(context) < torch.tensor([len(x) for x in inputs])[:, None]
    tokens = torch.zeros(kept.shape, dtype=torch.int64).masked_scatter(kept, torch.cat(inputs))
    padded = torch.full_like(tokens, UNLABELLED).masked_scatter(kept, torch.cat(targets))
    return pack(tokens, kept) if packed else tokens, padded


class StreamDataset(Dataset):
    """Pieces of parallel streams: piece s of a stream starts where its piece s - 1 ends.

    The streams start at equal distances in the text and wrap around from its last character to its
    first. Index n is piece n // streams of stream n % streams. With the text "abcdef", pieces of 2
    and 2 streams, the pieces are ab de cd fa ef bc, and so on.

    Args:
        tokens: The text as integers, (T,).
        context: Characters per piece.
        streams: Number of streams.

    Raises:
        ValueError: the text is shorter than one piece per stream.
    """

    def __init__(self, tokens: Tensor, context: int, streams: int) -> None:
        self.tokens, self.context, self.streams = tokens, context, streams
        self.distance = len(tokens) // streams
        if self.distance < context:
            raise ValueError(
                f"StreamDataset: {streams} streams with pieces of {context} characters need "
                f"{streams * context} characters, got {len(tokens)}; use a longer text, smaller "
                "batches or a shorter context"
            )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece, stream = divmod(index, self.streams)
        start = stream * self.distance + piece * self.context
        places = torch.arange(start, start + self.context + 1) % len(self.tokens)
        window = self.tokens[places].long()
        return window[:-1], window[1:]
