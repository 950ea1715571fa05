"""Character language modelling on a text file."""

import hashlib
import math
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plstm.checks import check_positive
from tasks.classification import Classification
from tasks.data import DataModule, ShuffledSampler
from tasks.runs import log_text, run_folder

EVAL_BATCHES = 8  # training batches in one for evaluation, which keeps no gradients

VISIBLE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}  # signs for characters without a look


class WindowDataset(Dataset):
    """Windows of a text and the same windows one character later.

    Args:
        tokens: The text as integers, (T,).
        context: Characters of a window.
        starts: Position of the first character of every window, (n,).
    """

    def __init__(self, tokens: Tensor, context: int, starts: Tensor) -> None:
        self.tokens, self.context, self.starts = tokens, context, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.tokens[start : start + self.context + 1]
        return window[:-1], window[1:]


class TextData(DataModule):
    """Windows of a text file: its first part trains, the next validates, the last tests.

    Training windows start anywhere; validation and test windows tile their part, so every character
    there is predicted once. With the text "abcab" and context 2, a sample is ("ab", "bc").

    Args:
        path: The text file, UTF-8. Its characters are the vocabulary.
        context: Characters of a window.
        batch_size: Windows of a batch.
        train_windows: Training windows of an epoch.
        val_share: Share of the file to validate on.
        test_share: Share of the file to test on; with 0 the validation part is the test part.
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
        val_share: float = 0.1,
        test_share: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if not Path(path).is_file():
            raise ValueError(f"TextData: path must be a text file, got {path!r}; no such file")
        check_positive("TextData", context=context, train_windows=train_windows)
        if val_share <= 0 or test_share < 0 or val_share + test_share >= 1:
            raise ValueError(
                "TextData: val_share and test_share must leave something to train on, "
                f"got {val_share} and {test_share}"
            )

    @cached_property
    def text(self) -> str:
        path = self.hparams.path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"TextData: {path} must be UTF-8 text, but its byte {error.start} is not"
            ) from None
        if not text:
            raise ValueError(f"TextData: {path} is empty; name a file with text in it")
        return text

    @cached_property
    def checksums(self) -> dict[str, str]:
        return {"the text": hashlib.sha256(self.text.encode()).hexdigest()}

    @cached_property
    def vocabulary(self) -> list[str]:
        return sorted(set(self.text))

    @property
    def in_dim(self) -> int:
        return len(self.vocabulary)

    @property
    def out_dim(self) -> int:
        return len(self.vocabulary)

    @property
    def class_names(self) -> list[str]:
        """The characters, those that cannot be seen by a sign."""
        return [VISIBLE.get(character, character) for character in self.vocabulary]

    def encode(self, text: str) -> Tensor:
        """Text to integers, (len(text),)."""
        number = {character: i for i, character in enumerate(self.vocabulary)}
        return torch.tensor([number[character] for character in text])

    def decode(self, tokens: Tensor) -> str:
        """Integers (L,) to text."""
        return "".join(self.vocabulary[token] for token in tokens.tolist())

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Tokens of every split."""
        tokens = self.encode(self.text)
        test_size = int(len(tokens) * self.hparams.test_share)
        val_size = int(len(tokens) * self.hparams.val_share)
        sizes = [len(tokens) - val_size - test_size, val_size, test_size]
        parts = dict(zip(("train", "val", "test"), tokens.split(sizes), strict=True))
        if test_size == 0:
            parts["test"] = parts["val"]
        for split, part in parts.items():
            if len(part) <= self.hparams.context:
                raise ValueError(
                    f"TextData: every part needs more than context={self.hparams.context} "
                    f"characters, got {len(part)} for {split}; take a longer text or "
                    "a shorter context"
                )
        return parts

    def train_dataloader(self) -> DataLoader:
        part, h = self.parts["train"], self.hparams
        dataset = WindowDataset(part, h.context, torch.arange(len(part) - h.context))
        sampler = ShuffledSampler(len(dataset), h.seed, self.train_epoch(), count=h.train_windows)
        return self._loader(dataset, batch_sampler=self.train_batches(sampler))

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        dataset = self._tiles(split)
        batches = self.eval_batches(len(dataset), EVAL_BATCHES * self.hparams.batch_size)
        return self._loader(dataset, batch_sampler=batches)

    def _tiles(self, split: str) -> WindowDataset:
        part, context = self.parts[split], self.hparams.context
        return WindowDataset(part, context, torch.arange(0, len(part) - context, context))

    def _loader(self, dataset: Dataset, **options: object) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.hparams.num_workers,
            persistent_workers=self.hparams.num_workers > 0,
            **options,
        )


class LanguageModel(Classification):
    """Next-token prediction: loss in nats, bits per character, a sample when training ends.

    Args:
        sample_length: Characters of the sample; 0 for none.
        temperature: Temperature of the sample.
    """

    def __init__(
        self, *args: object, sample_length: int = 300, temperature: float = 0.8, **kwargs: object
    ):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("sample_length", "temperature", logger=False)
        self.sample_length, self.temperature = sample_length, temperature

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
        prompt = data.parts["val"][None, :1].to(self.device)
        limit = self.net.max_length  # positions a learned code can name
        length = self.sample_length if limit is None else min(self.sample_length, limit - 1)
        generator = torch.Generator(self.device).manual_seed(0)
        tokens = self.net.generate(
            prompt, length, temperature=self.temperature, generator=generator
        )
        return data.decode(tokens[0])
