"""Pieces of a text and the same pieces one character later: windows, and streams."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class WindowDataset(Dataset):
    """Windows of a text and the same windows one character later.

    Args:
        tokens: The text as integers, (T,).
        context: Characters of a window; the last one may be shorter, where the text ends.
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


class StreamDataset(Dataset):
    """Pieces of parallel streams: piece s of a stream begins where its piece s - 1 ended.

    The streams begin at even distances in the text and go round it without end, from its last
    character on to its first. Index n is piece n // streams of stream n % streams. With the text
    "abcdef", pieces of 2 and 2 streams, the pieces are ab de cd fa ef bc, and so on.

    Args:
        tokens: The text as integers, (T,).
        context: Characters of a piece.
        streams: Number of streams.

    Raises:
        ValueError: less than a piece of text for every stream.
    """

    def __init__(self, tokens: Tensor, context: int, streams: int) -> None:
        self.tokens, self.context, self.streams = tokens, context, streams
        self.distance = len(tokens) // streams
        if self.distance < context:
            raise ValueError(
                f"StreamDataset: {streams} streams with pieces of {context} characters need "
                f"{streams * context} characters, got {len(tokens)}; take a longer text, smaller "
                "batches or a shorter context"
            )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece, stream = divmod(index, self.streams)
        start = stream * self.distance + piece * self.context
        places = torch.arange(start, start + self.context + 1) % len(self.tokens)
        window = self.tokens[places].long()
        return window[:-1], window[1:]
