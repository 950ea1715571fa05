import random

import pytest
import torch

from plstm import SequenceModel
from tasks.alphabet import Alphabet
from tasks.data import UNLABELLED, Shard
from tasks.text import TextData
from tasks.windows import DocumentDataset, StreamDataset, WindowDataset
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
    assert text.vocabulary == "".join(sorted(set(TEXT)))
    assert text.in_dim == text.out_dim == len(set(TEXT))
    assert "é" in text.vocabulary


def test_parts_are_the_text(path):
    text = data(path, test_share=0.1)
    assert "".join(text.alphabet.decode(text.parts[s]) for s in ("train", "val", "test")) == TEXT
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
    assert inputs.tolist() == part[: len(inputs)].tolist()
    assert targets.tolist() == part[1 : len(targets) + 1].tolist()
    assert len(part) - 1 - len(targets) < context


def test_train_windows(path):
    text = data(path, train_windows=30)
    batches = list(text.train_dataloader())
    assert len(batches) == 10
    train = text.alphabet.decode(text.parts["train"])
    starts = set()
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (3, 5)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for window, target in zip(inputs, targets, strict=True):
            written = text.alphabet.decode(window) + text.alphabet.decode(target[-1:])
            assert written in train
            starts.add(written)
    assert len(starts) > 20


def test_train_windows_reach_both_ends(path):
    text = data(path, train_windows=10_000)
    dataset = text.train_dataloader().dataset
    part = text.parts["train"]
    assert dataset[0][0].tolist() == part[:5].tolist()
    assert dataset[len(dataset) - 1][1].tolist() == part[-5:].tolist()
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
    written = text.alphabet.decode(net.generate(text.alphabet.encode("ab")[None], 9)[0])
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


def test_another_text_by_a_known_alphabet(path, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("abcabc" * 20 + "zoo", encoding="utf-8")
    text = data(path, test_path=str(other), vocabulary=TEXT)
    assert text.in_dim == len(set(TEXT))
    with pytest.warns(UserWarning, match=r"3 of the 123 characters of .*: 'o' \(2 t.*'z' \(1 t"):
        part = text.test_part
    assert text.alphabet.decode(part) == "abcabc" * 20
    whole = "".join(text.alphabet.decode(text.parts[split]) for split in ("train", "val"))
    assert whole == TEXT


def test_a_test_file_and_a_test_share(path):
    with pytest.raises(ValueError, match="both define the test part"):
        data(path, test_path=path, test_share=0.1)


def test_a_test_file_needs_no_other(path, tmp_path):
    """A net knows its alphabet, so the text it was trained on may be gone."""
    text = data(str(tmp_path / "gone.txt"), test_path=path, vocabulary=TEXT)
    assert text.alphabet.decode(text.test_part) == TEXT
    with pytest.raises(ValueError, match="no such file"):
        text.train_dataloader()


def test_pieces_of_streams():
    pieces = StreamDataset(torch.arange(6), 2, 2)
    want = [[0, 1, 2], [3, 4, 5], [2, 3, 4], [5, 0, 1], [4, 5, 0], [1, 2, 3], [0, 1, 2]]
    for index, window in enumerate(want):
        inputs, targets = pieces[index]
        assert (inputs.tolist(), targets.tolist()) == (window[:-1], window[1:])
    with pytest.raises(ValueError, match="4 streams with pieces of 2 characters need 8 char"):
        StreamDataset(torch.arange(6), 2, 4)


def test_rows_go_on_in_the_next_batch(path):
    """Over the ends of epochs, too, and whatever the text's length."""
    text = data(path, train_streams=True, train_windows=13)
    loader, part = text.train_dataloader(), text.parts["train"].tolist()
    read = [[] for _ in range(3)]
    for epoch in range(6):
        loader.batch_sampler.sampler.set_epoch(epoch)
        assert len(loader) == 4
        for inputs, targets in loader:
            for row, new, after in zip(read, inputs.tolist(), targets.tolist(), strict=True):
                row += new
                assert after[:-1] == new[1:]
    for number, row in enumerate(read):
        start = number * (len(part) // 3)
        assert row == [part[(start + i) % len(part)] for i in range(6 * 4 * 5)]


def test_processes_share_the_streams(path, monkeypatch):
    def batches(rank, count, size):
        text = data(path, train_streams=True, train_windows=13, batch_size=size)
        monkeypatch.setattr(TextData, "shard", Shard(rank, count))
        return [inputs.tolist() for inputs, _ in text.train_dataloader()]

    first, second, together = batches(0, 2, 2), batches(1, 2, 2), batches(0, 1, 4)
    assert len(first) == len(together) == 3
    for a, b, both in zip(first, second, together, strict=True):
        assert (a, b) == (both[::2], both[1::2])


def test_too_few_windows_for_the_streams(path):
    text = data(path, train_streams=True, train_windows=2)
    with pytest.raises(ValueError, match=r"a piece of each of the 3 streams.*train_windows=2"):
        text.train_dataloader()


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("context", [1, 4, 5])
def test_evaluation_streams_predict_every_character(split, context, path):
    """All but the first, in order, one row at a time."""
    text = data(path, context=context, eval_streams=True, test_share=0.2, batch_size=1)
    batches = list(getattr(text, f"{split}_dataloader")())
    inputs, targets = (torch.cat(x, 1)[0].tolist() for x in zip(*batches, strict=True))
    part = text.parts[split].tolist()
    assert (inputs, targets) == (part[:-1], part[1:])
    assert len(batches) == -(-len(inputs) // (8 * context))


def pieces_of(text, separator, context):
    """Windows of every document, by the definition."""
    documents = [x + separator for x in text.split(separator)]
    documents[-1] = documents[-1].removesuffix(separator)
    return [
        document[i : i + context + 1]
        for document in documents
        for i in range(0, len(document) - 1, context)
    ]


@pytest.mark.parametrize("separator", [";", "ab", "Z"])
@pytest.mark.parametrize("context", [1, 2, 3, 100])
def test_windows_of_documents(separator, context):
    text = "abc;de;f;;ab;aabcd;abab"
    alphabet = Alphabet(text + "Z")
    dataset = DocumentDataset(alphabet.encode(text), context, alphabet.encode(separator))
    windows = [
        alphabet.decode(inputs) + alphabet.decode(targets[-1:])
        for inputs, targets in (dataset[i] for i in range(len(dataset)))
    ]
    assert windows == pieces_of(text, separator, context)


def test_a_text_shorter_than_the_separator():
    dataset = DocumentDataset(torch.tensor([1, 2]), 5, torch.tensor([1, 2, 3]))
    assert [x.tolist() for x in dataset[0]] == [[1], [2]]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_batches_of_documents(split, path):
    """The same windows, padded and packed."""
    padded, packed = (data(path, documents=".", packed=x, context=9) for x in (False, True))
    loaders = (getattr(x, f"{split}_dataloader")() for x in (padded, packed))
    count = 0
    for (tokens, targets), (packed_tokens, same) in zip(*loaders, strict=True):
        assert torch.equal(targets, same)
        kept = packed_tokens.kept
        assert tokens.shape == targets.shape == kept.shape
        assert torch.equal(kept, targets != UNLABELLED)
        assert torch.equal(packed_tokens.tokens[0], tokens[kept])
        count += len(targets)
    assert count == len(padded._documents(padded.parts[split]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"packed": True}, "packed is for documents"),
        ({"documents": ""}, "documents must be a nonempty text"),
        ({"documents": ".", "train_streams": True}, "excludes streams"),
        ({"documents": ".", "eval_streams": True}, "excludes streams"),
    ],
    ids=str,
)
def test_wrong_documents(kwargs, message, path):
    with pytest.raises(ValueError, match=message):
        data(path, **kwargs)


def test_documents_end_in_known_characters(path):
    with pytest.raises(ValueError, match=r"got 'Z' \(1 times\)"):
        data(path, documents="Z").train_dataloader()
