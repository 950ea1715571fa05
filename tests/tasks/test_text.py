import random

import pytest
import torch

from plstm import SequenceModel
from tasks.text import TextData, WindowDataset
from tests.models.nets import SEQUENCE

TEXT = "".join(random.Random(0).choices("abcdefgh .", k=200)) + "é\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "input.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


def data(path, **kwargs):
    return TextData(path, **{"context": 5, "batch_size": 3, "val_share": 0.2, **kwargs})


def test_windows_and_their_targets():
    dataset = WindowDataset(torch.arange(10), 3, torch.tensor([0, 6]))
    assert len(dataset) == 2
    assert [x.tolist() for x in dataset[1]] == [[6, 7, 8], [7, 8, 9]]


def test_vocabulary(path):
    text = data(path)
    assert text.vocabulary == sorted(set(TEXT))
    assert text.in_dim == text.out_dim == len(set(TEXT))
    assert "é" in text.vocabulary
    assert text.decode(text.encode(TEXT)) == TEXT
    assert text.encode(TEXT).unique().tolist() == list(range(text.in_dim))


def test_parts_are_the_text(path):
    text = data(path, test_share=0.1)
    assert "".join(text.decode(text.parts[s]) for s in ("train", "val", "test")) == TEXT
    assert [len(text.parts[s]) for s in ("val", "test")] == [40, 20]
    assert torch.equal(data(path).parts["test"], data(path).parts["val"])


@pytest.mark.parametrize("context", [1, 4, 5, 7])
@pytest.mark.parametrize("split", ["val", "test"])
def test_tiles_predict_every_character_once(split, context, path):
    """All but the first, and but a rest shorter than a window."""
    text = data(path, context=context, test_share=0.2)
    loader = getattr(text, f"{split}_dataloader")()
    inputs, targets = (torch.cat(x).flatten() for x in zip(*loader, strict=True))
    part = text.parts[split]
    assert torch.equal(inputs, part[: len(inputs)])
    assert torch.equal(targets, part[1 : len(targets) + 1])
    assert len(part) - 1 - len(targets) < context


def test_train_windows(path):
    text = data(path, train_windows=30)
    batches = list(text.train_dataloader())
    assert len(batches) == 10
    train = text.decode(text.parts["train"])
    starts = set()
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (3, 5)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for window, target in zip(inputs, targets, strict=True):
            written = text.decode(window) + text.decode(target[-1:])
            assert written in train
            starts.add(written)
    assert len(starts) > 20


def test_train_windows_reach_both_ends(path):
    text = data(path, train_windows=10_000)
    dataset = text.train_dataloader().dataset
    part = text.parts["train"]
    assert torch.equal(dataset[0][0], part[:5])
    assert torch.equal(dataset[len(dataset) - 1][1], part[-5:])
    assert len(text.train_dataloader().batch_sampler.sampler) == len(part) - 5


def test_train_order_depends_on_seed_and_epoch(path):
    def order(seed, epoch):
        loader = data(path, seed=seed, train_windows=20).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        return tuple(loader.batch_sampler.sampler)

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_generated_tokens_decode(path):
    text = data(path)
    net = SequenceModel(text.in_dim, text.out_dim, dim=8, depth=1, mixers=SEQUENCE["plstm"])
    written = text.decode(net.generate(text.encode("ab")[None], 9)[0])
    assert len(written) == 11
    assert written.startswith("ab")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"TextData: path must be a text file.*no such file"):
        TextData(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"val_share": 0.0},
        {"val_share": 0.5, "test_share": 0.5},
        {"test_share": -0.1},
        {"val_share": 1},
    ],
    ids=str,
)
def test_wrong_shares(kwargs, path):
    with pytest.raises(ValueError, match="val_share and test_share must leave something to train"):
        data(path, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "split"),
    [
        ({"context": 40}, "val"),
        ({"context": 30, "test_share": 0.1}, "test"),
        ({"context": 200}, "train"),
    ],
    ids=["val", "test", "train"],
)
def test_too_little_text(kwargs, split, path):
    with pytest.raises(ValueError, match=rf"every part needs more than context=.* for {split}"):
        _ = data(path, **kwargs).parts


def test_unknown_character(path):
    with pytest.raises(KeyError, match="Z"):
        data(path).encode("Z")
