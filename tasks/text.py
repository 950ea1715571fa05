"""Characters of a text file: windows, documents or streams."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plstm.checks import check_positive
from tasks.alphabet import Alphabet, describe
from tasks.data import (
    DataModule,
    FreshSampler,
    ShardedBatches,
    ShuffledSampler,
    chosen_seed,
)
from tasks.windows import DocumentDataset, StreamDataset, WindowDataset, collate_documents

EVAL_BATCHES = 8  # evaluation batches are larger, as they need no gradients

VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}  # symbols for invisible characters


class TextData(DataModule):
    """Windows or streams of a text file, split into training, validation and test parts.

    Training windows start anywhere; validation and test windows tile their part, so every character
    is predicted once. With the text "abcab" and context 2, a sample is ("ab", "bc").

    Args:
        path: The text file, UTF-8. Its characters are the vocabulary.
        context: Characters per window, or per piece of a stream.
        batch_size: Windows per batch.
        train_windows: Training windows per epoch.
        train_streams: Train on streams: row b of a batch continues row b of the previous batch, and
            the net carries its state over (truncated backpropagation through time).
        eval_streams: Validate and test on the whole part as one stream, where every character is
            predicted from all previous ones, in constant memory; all processes do the same.
        documents: Separator of documents, for example a blank line. A window then has characters of
            one document only, the last one may be shorter, and batches are padded.
        packed: Concatenate the windows of documents instead of padding them, which saves the work
            on padding; loss and metrics are the same. For nets that accept cu_seqlens.
        val_share: Fraction of the file for validation.
        test_share: Fraction of the file for testing; with 0 the validation part is the test part.
        test_path: Another text file to test on and to predict.
        vocabulary: Characters that the net knows; those of the file if None. Checkpoints store
            them. Other characters are left out, with a warning.
        num_workers: Number of processes that cut windows.
        seed: Seed of the training windows; if None, that of `seed_everything`.

    Raises:
        ValueError: no such file, not UTF-8, or too little text for a window in every part.
    """

    def __init__(
        self,
        path: str,
        context: int = 64,
        batch_size: int = 12,
        train_windows: int = 12_000,
        train_streams: bool = False,
        eval_streams: bool = False,
        documents: str | None = None,
        packed: bool = False,
        val_share: float = 0.1,
        test_share: float = 0.0,
        test_path: str | None = None,
        vocabulary: str | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = chosen_seed(seed)
        self.save_hyperparameters(logger=False)
        _check_file(path if test_path is None else test_path)
        check_positive("TextData", context=context, train_windows=train_windows)
        if val_share <= 0 or test_share < 0 or val_share + test_share >= 1:
            raise ValueError(
                "TextData: val_share and test_share must leave something to train on, "
                f"got {val_share} and {test_share}"
            )
        if documents == "" or (documents and (train_streams or eval_streams)):
            raise ValueError(
                "TextData: documents must be a nonempty text and excludes streams, which continue "
                f"from one to the next, got {documents!r}, train_streams={train_streams} and "
                f"eval_streams={eval_streams}"
            )
        if packed and documents is None:
            raise ValueError(
                "TextData: packed is for documents, as windows have equal lengths, got packed=True "
                "and documents=None; set documents, or set packed to false"
            )
        if test_path is not None and test_share > 0:
            raise ValueError(
                f"TextData: test_path and test_share both define the test part, got "
                f"{test_path!r} and {test_share}; omit one of them"
            )

    @cached_property
    def checksums(self) -> dict[str, str]:
        return {"the text": hashlib.sha256(_read(self.hparams.path).encode()).hexdigest()}

    @cached_property
    def alphabet(self) -> Alphabet:
        """The alphabet of the net."""
        return Alphabet(self.hparams.vocabulary or _read(self.hparams.path))

    @property
    def vocabulary(self) -> str:
        """The characters of the alphabet, in order."""
        return self.alphabet.characters

    @property
    def in_dim(self) -> int:
        return len(self.alphabet)

    @property
    def out_dim(self) -> int:
        return len(self.alphabet)

    @property
    def class_names(self) -> list[str]:
        """The characters, with symbols for invisible ones."""
        return [VISIBLE.get(character, character) for character in self.vocabulary]

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Tokens of the parts of `path`."""
        tokens = self._tokens(self.hparams.path)
        test_size = int(len(tokens) * self.hparams.test_share)
        val_size = int(len(tokens) * self.hparams.val_share)
        sizes = [len(tokens) - val_size - test_size, val_size, test_size]
        parts = dict(zip(("train", "val", "test"), tokens.split(sizes), strict=True))
        if test_size == 0:
            parts["test"] = parts["val"]
        for split, part in parts.items():
            self._check_length(part, split)
        return parts

    @cached_property
    def test_part(self) -> Tensor:
        """Tokens to test on."""
        if self.hparams.test_path is None:
            return self.parts["test"]
        tokens = self._tokens(self.hparams.test_path)
        self._check_length(tokens, "test")
        return tokens

    def _tokens(self, path: str) -> Tensor:
        text = _read(path)
        tokens, unknown = self.alphabet.encode_known(text)
        if unknown:
            rank_zero_warn(
                f"TextData: {unknown.total():,} of the {len(text):,} characters of {path} are not "
                f"in the alphabet of the net and are left out: {describe(unknown)}"
            )
        return tokens

    def _check_length(self, part: Tensor, split: str) -> None:
        if len(part) <= self.hparams.context:
            raise ValueError(
                f"TextData: every part needs more than context={self.hparams.context} "
                f"characters, got {len(part)} for {split}; use a longer text or "
                "a shorter context"
            )

    def train_dataloader(self) -> DataLoader:
        part, h = self.parts["train"], self.hparams
        if h.train_streams:
            return self._stream_loader(part)
        if h.documents:
            dataset = self._documents(part)
        else:
            dataset = WindowDataset(part, h.context, torch.arange(len(part) - h.context))
        sampler = ShuffledSampler(
            len(dataset), self.seed, self.train_epoch(), count=h.train_windows
        )
        return self._loader(
            dataset, batch_sampler=self.train_batches(sampler), collate_fn=self._collate
        )

    def _documents(self, part: Tensor) -> DocumentDataset:
        separator = self.alphabet.encode(self.hparams.documents)
        return DocumentDataset(part, self.hparams.context, separator)

    @property
    def _collate(self) -> Callable[[list], object] | None:
        h = self.hparams
        if not h.documents:
            return None  # the default of PyTorch
        return partial(collate_documents, context=h.context, packed=h.packed)

    def _stream_loader(self, part: Tensor) -> DataLoader:
        """The next pieces of all streams in every batch; every process has its own streams."""
        h = self.hparams
        streams = h.batch_size * self.shard.count
        if h.train_windows < streams:
            raise ValueError(
                f"TextData: an epoch needs a piece of each of the {streams} streams, got "
                f"train_windows={h.train_windows}; raise it, or lower batch_size"
            )
        sampler = FreshSampler(
            h.train_windows // streams * streams, self.seed, epoch=self.train_epoch()
        )
        dataset = StreamDataset(part, h.context, streams)
        return self._loader(dataset, batch_sampler=self.train_batches(sampler))

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.parts["val"])

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_part)

    def predict_dataloader(self) -> DataLoader:
        """The windows of the test part."""
        return self._window_loader(self.test_part)

    def _eval_loader(self, part: Tensor) -> DataLoader:
        if self.hparams.documents:
            dataset = self._documents(part)
            batches = self.eval_batches(len(dataset), EVAL_BATCHES * self.hparams.batch_size)
            return self._loader(dataset, batch_sampler=batches, collate_fn=self._collate)
        if not self.hparams.eval_streams:
            return self._window_loader(part)
        size = EVAL_BATCHES * self.hparams.batch_size * self.hparams.context
        pieces = WindowDataset(part, size, torch.arange(0, len(part) - 1, size))
        return self._loader(pieces, batch_sampler=ShardedBatches(range(len(pieces)), 1))

    def _window_loader(self, part: Tensor) -> DataLoader:
        context = self.hparams.context
        dataset = WindowDataset(part, context, torch.arange(0, len(part) - context, context))
        batches = self.eval_batches(len(dataset), EVAL_BATCHES * self.hparams.batch_size)
        return self._loader(dataset, batch_sampler=batches)

    def _loader(self, dataset: Dataset, **options: object) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.hparams.num_workers,
            persistent_workers=self.hparams.num_workers > 0,
            **options,
        )


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"TextData: path must be a text file, got {path!r}; no such file")


def _read(path: str) -> str:
    _check_file(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"TextData: {path} must be UTF-8 text, but its byte {error.start} is not"
        ) from None
    if not text:
        raise ValueError(f"TextData: {path} is empty; use a file with text")
    return text
