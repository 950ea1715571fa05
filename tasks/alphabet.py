"""Characters and their indices."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20  # characters encoded at a time
SHOWN = 8  # unknown characters listed in a message


class Alphabet:
    """Maps the characters of a text to 0, 1, ... in the order of their code points.

    Args:
        text: Text with every character of the alphabet in it.

    Raises:
        ValueError: empty text.
    """

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("Alphabet: needs one character or more, got an empty text")
        self.characters = "".join(sorted(set(text)))
        self._codes = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Indices of all characters, (len(text),), int64.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        tokens, unknown = self.encode_known(text)
        if unknown:
            raise ValueError(
                f"Alphabet: every character must be one of {self.characters!r}, got "
                f"{describe(unknown)}; leave it out"
            )
        return tokens.long()

    def encode_known(self, text: str) -> tuple[Tensor, Counter[str]]:
        """Indices of the characters in the alphabet, and counts of the others.

        An index takes one byte in an alphabet of up to 256 characters, four otherwise.
        """
        dtype = torch.uint8 if len(self) <= 256 else torch.int32
        tokens, unknown = [torch.empty(0, dtype=dtype)], Counter()
        for start in range(0, len(text), BLOCK):
            codes = _code_points(text[start : start + BLOCK])
            places = np.searchsorted(self._codes, codes).clip(max=len(self) - 1)
            known = self._codes[places] == codes
            tokens.append(torch.from_numpy(places[known]).to(dtype))
            unknown.update(map(chr, codes[~known].tolist()))
        return torch.cat(tokens), unknown

    def decode(self, tokens: Tensor) -> str:
        """Text of tokens (L,)."""
        return "".join(self.characters[token] for token in tokens.tolist())


def describe(unknown: Counter[str]) -> str:
    """Describe unknown characters, most frequent first: 'é' (2 times)."""
    parts = [f"{character!r} ({count} times)" for character, count in unknown.most_common(SHOWN)]
    rest = len(unknown) - len(parts)
    return ", ".join(parts) + (f" and {rest} other characters" if rest > 0 else "")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
