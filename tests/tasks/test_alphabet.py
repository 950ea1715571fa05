import random

import pytest
import torch

from tasks import alphabet
from tasks.alphabet import Alphabet

TEXT = "".join(random.Random(0).choices("zab \né\U0001f600", k=50))


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_encode_and_decode(block, monkeypatch):
    monkeypatch.setattr(alphabet, "BLOCK", block)
    letters = Alphabet(TEXT)
    assert letters.characters == "\n abzé\U0001f600"
    assert letters.encode(TEXT).tolist() == [letters.characters.index(x) for x in TEXT]
    assert letters.decode(letters.encode(TEXT)) == TEXT
    assert letters.encode("").tolist() == []


def test_numbers_do_not_depend_on_the_text():
    assert Alphabet("cab").characters == Alphabet("abcabc").characters == "abc"


@pytest.mark.parametrize(("size", "dtype"), [(256, torch.uint8), (257, torch.int32)])
def test_tokens_are_small(size, dtype):
    letters = Alphabet("".join(map(chr, range(size))))
    tokens, _ = letters.encode_known(letters.characters)
    assert tokens.dtype == dtype
    assert tokens.tolist() == list(range(size))


def test_unknown_characters():
    letters = Alphabet("ace")
    tokens, unknown = letters.encode_known("abcdbe!")
    assert letters.decode(tokens) == "ace"
    assert unknown == {"b": 2, "d": 1, "!": 1}
    with pytest.raises(ValueError, match=r"must be one of 'ace', got 'b' \(2 times\), 'd' \(1 tim"):
        letters.encode("abcdbe!")
    with pytest.raises(ValueError, match=r"'8' \(1 times\) and 2 other characters; leave"):
        letters.encode("123456789x")


def test_empty():
    with pytest.raises(ValueError, match="one character or more"):
        Alphabet("")
