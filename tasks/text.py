"""Character language modelling on a text file."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plstm.checks import check_positive
from plstm.models import SequenceState
from tasks.alphabet import Alphabet, describe
from tasks.carried import check_carries, detached, state_of, tensors_of
from tasks.classification import Classification
from tasks.data import UNLABELLED, DataModule, FreshSampler, ShardedBatches, ShuffledSampler
from tasks.distributed import gather
from tasks.packing import Packed, packed_logits
from tasks.runs import log_text, run_folder
from tasks.windows import DocumentDataset, StreamDataset, WindowDataset, collate_documents

EVAL_BATCHES = 8  # training batches in one for evaluation, which keeps no gradients

VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}  # signs for characters without a look


class TextData(DataModule):
    """Windows or streams of a text file: its first part trains, the next validates, the last tests.

    Training windows start anywhere; validation and test windows tile their part, so every character
    there is predicted once. With the text "abcab" and context 2, a sample is ("ab", "bc").

    Args:
        path: The text file, UTF-8. Its characters are the vocabulary.
        context: Characters of a window, or of a piece of a stream.
        batch_size: Windows of a batch.
        train_windows: Training windows of an epoch.
        train_streams: Train on streams: row b of a batch goes on where row b of the batch before
            ended, and the net carries its state over (truncated backpropagation through time).
        eval_streams: Validate and test on the whole part as one stream, whose characters are
            predicted from all before them, in constant memory; by all processes alike.
        documents: What ends a document, for example a blank line. Windows then hold characters of
            one document, those that are left at its end may be fewer, and batches are padded.
        packed: Put the windows of documents one after another instead of padding them, which saves
            the work on the padding; loss and metrics are the same. For nets that take cu_seqlens.
        val_share: Share of the file to validate on.
        test_share: Share of the file to test on; with 0 the validation part is the test part.
        test_path: Another text file to test on and to predict, the whole of it.
        vocabulary: Characters a net knows; those of the file if None. A checkpoint brings its own.
            Characters beyond are left out, with a warning.
        num_workers: Processes that cut windows.
        seed: Seed of the training windows.

    Raises:
        ValueError: no such file, no UTF-8, or too little text for one window in every part.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
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
                "TextData: documents must be some text, and leaves no streams, which go on from "
                f"one to the next, got {documents!r}, train_streams={train_streams} and "
                f"eval_streams={eval_streams}"
            )
        if packed and documents is None:
            raise ValueError(
                "TextData: packed is for documents, as windows have one length, got packed=True "
                "and documents=None; say what ends a document, or set packed to false"
            )
        if test_path is not None and test_share > 0:
            raise ValueError(
                f"TextData: test_path and test_share are two ways to choose the test part, got "
                f"{test_path!r} and {test_share}; leave one of them out"
            )

    @cached_property
    def alphabet(self) -> Alphabet:
        """The characters the net knows."""
        return Alphabet(self.hparams.vocabulary or _read(self.hparams.path))

    @property
    def vocabulary(self) -> str:
        """The characters the net knows, in order."""
        return self.alphabet.characters

    @property
    def in_dim(self) -> int:
        return len(self.alphabet)

    @property
    def out_dim(self) -> int:
        return len(self.alphabet)

    @property
    def class_names(self) -> list[str]:
        """The characters, those that cannot be seen by a sign."""
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
                f"characters, got {len(part)} for {split}; take a longer text or "
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
        sampler = ShuffledSampler(len(dataset), h.seed, self.train_epoch(), count=h.train_windows)
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
            return None  # that of PyTorch
        return partial(collate_documents, context=h.context, packed=h.packed)

    def _stream_loader(self, part: Tensor) -> DataLoader:
        """The next pieces of all streams in every batch; every process has streams of its own."""
        h = self.hparams
        streams = h.batch_size * self.shard.count
        if h.train_windows < streams:
            raise ValueError(
                f"TextData: an epoch needs a piece of each of the {streams} streams, got "
                f"train_windows={h.train_windows}; raise it, or lower batch_size"
            )
        sampler = FreshSampler(
            h.train_windows // streams * streams, h.seed, epoch=self.train_epoch()
        )
        dataset = StreamDataset(part, h.context, streams)
        return self._loader(dataset, batch_sampler=self.train_batches(sampler))

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.parts["val"])

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_part)

    def predict_dataloader(self) -> DataLoader:
        """Predictions are made for the windows of the test part."""
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
        raise ValueError(f"TextData: {path} is empty; name a file with text in it")
    return text


class LanguageModel(Classification):
    """Next-token prediction: loss in nats, bits per character, a sample when training ends.

    On streams it carries the state of the net from batch to batch, without gradients. That of
    training is part of the checkpoints, and evaluation has one of its own. The alphabet of the
    data belongs to the checkpoints too.

    Args:
        sample_length: Characters of the sample; 0 for none.
        temperature: Temperature of the sample.

    Raises:
        ValueError: negative sample_length or temperature.
    """

    def __init__(
        self, *args: object, sample_length: int = 300, temperature: float = 0.8, **kwargs: object
    ):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("sample_length", "temperature", logger=False)
        if not (sample_length >= 0 and 0 <= temperature < float("inf")):
            raise ValueError(
                "LanguageModel: sample_length and temperature must be 0 or more, got "
                f"{sample_length} and {temperature}; temperature 0 takes the likeliest character"
            )
        self.sample_length, self.temperature = sample_length, temperature
        self.alphabet: Alphabet | None = None
        self._entering: SequenceState | None = None  # state that the current batch begins with
        self._train_state: SequenceState | None = None  # after the last training batch
        self._eval_state: SequenceState | None = None
        self._batch: int | None = None  # number of the current training batch
        self._saved_states: list | None = None  # of a checkpoint, for every process

    def configure_model(self) -> None:
        super().configure_model()
        data = self._trainer and self._trainer.datamodule
        if data and (data.hparams.train_streams or data.hparams.eval_streams):
            check_carries(self.net)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.alphabet = self.trainer.datamodule.alphabet

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self._saved_states is not None:
            tensors = self._saved_states[self.global_rank]
            self._train_state = state_of(tensors, self.net, batch[0])
            self._saved_states = None
        number = self.trainer.fit_loop.total_batch_idx
        if number != self._batch:  # StopIfNotFinite computes a batch a second time
            jumps = batch_idx == 0 and self._epochs_are_parts()
            self._entering, self._batch = None if jumps else self._train_state, number

    def _epochs_are_parts(self) -> bool:
        """Whether an epoch does not begin where the streams ended in the one before."""
        trainer = self.trainer
        limited = trainer.num_training_batches < len(trainer.train_dataloader)
        return limited or trainer.overfit_batches > 0

    def on_validation_batch_start(self, batch: object, batch_idx: int, *args: object) -> None:
        self._entering = self._eval_state if batch_idx > 0 else None

    def on_test_batch_start(self, batch: object, batch_idx: int, *args: object) -> None:
        self._entering = self._eval_state if batch_idx > 0 else None

    def labelled(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.trainer.datamodule.hparams.documents:
            keep = targets != UNLABELLED
            return logits[keep], targets[keep]
        return super().labelled(logits, targets)

    def _predict(self, batch: tuple[Tensor | Packed, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        if isinstance(inputs, Packed):
            return packed_logits(self.net, inputs), targets
        data, training = self.trainer.datamodule.hparams, self.trainer.training
        streams = data.train_streams if training else data.eval_streams
        if not streams or self.trainer.predicting:
            return super()._predict(batch)
        logits, state = self.net(inputs, self._entering, return_state=True)
        if training:
            self._train_state = detached(state)
        else:
            self._eval_state = state
        return logits, targets

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["data_arguments"] = {"vocabulary": self.alphabet.characters}
        if self._train_state is not None:
            checkpoint["streams"] = gather(tensors_of(self._train_state))
        elif self._saved_states is not None:  # of a resumed run before its first batch
            checkpoint["streams"] = self._saved_states

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Take the alphabet and the states of the streams; refuse another alphabet.

        Raises:
            ValueError: the data have another alphabet; the weights are of another net.
        """
        known = checkpoint.get("data_arguments", {}).get("vocabulary")
        if known and self.alphabet is not None and self.alphabet.characters != known:
            raise ValueError(
                f"LanguageModel: the net of the checkpoint knows the characters {known!r}, got "
                f"data with {self.alphabet.characters!r}; give TextData the former as vocabulary"
            )
        super().on_load_checkpoint(checkpoint)
        if known:
            self.alphabet = Alphabet(known)  # of a net without data, too
        self._saved_states = checkpoint.get("streams")
        self._entering = self._train_state = self._batch = None

    def on_validation_epoch_end(self) -> None:
        self._log_bits("val")

    def on_test_epoch_end(self) -> None:
        self._log_bits("test")

    def _log_bits(self, split: str) -> None:
        self.log(
            f"{split}/bits_per_char", self.metrics["loss"].compute() / math.log(2), prog_bar=True
        )

    def on_fit_end(self) -> None:
        folder = run_folder(self.trainer)
        split = self.device_mesh is not None  # no process has all weights
        if self.sample_length == 0 or folder is None or split:
            return
        text = self.sample()
        (folder / "sample.txt").write_text(text, encoding="utf-8")
        for logger in self.trainer.loggers:
            log_text(logger, "sample", text, self.trainer.global_step)
        rank_zero_info(f"Sample after {self.trainer.global_step} steps:\n{text}\n")

    def sample(self) -> str:
        """What the net writes after the first character of the validation part."""
        data = self.trainer.datamodule
        prompt = data.parts["val"][None, :1].to(self.device).long()
        limit = self.net.max_length  # positions a learned code can name
        length = self.sample_length if limit is None else min(self.sample_length, limit)
        generator = torch.Generator(self.device).manual_seed(0)
        tokens = self.net.generate(
            prompt, length, temperature=self.temperature, generator=generator
        )
        return data.alphabet.decode(tokens[0])
