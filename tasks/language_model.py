"""LightningModule for character-level language modelling."""

import math

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from plstm.models import SequenceState
from tasks.alphabet import Alphabet
from tasks.carried import check_carries, detached, state_of, tensors_of
from tasks.classification import Classification
from tasks.data import UNLABELLED
from tasks.distributed import gather
from tasks.packing import Packed, packed_logits
from tasks.runs import log_text, run_folder


class LanguageModel(Classification):
    """Next-token prediction: loss in nats, bits per character, a sample after training.

    On streams it carries the state of the net from batch to batch, without gradients. The training
    state is stored in checkpoints; evaluation has its own state. Checkpoints also store the
    alphabet of the data.

    Args:
        sample_length: Length of the sample in characters; 0 for none.
        temperature: Temperature of the sample.

    Raises:
        ValueError: sample_length or temperature is negative.
    """

    def __init__(
        self, *args: object, sample_length: int = 300, temperature: float = 0.8, **kwargs: object
    ):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("sample_length", "temperature", logger=False)
        if not (sample_length >= 0 and 0 <= temperature < float("inf")):
            raise ValueError(
                "LanguageModel: sample_length and temperature must be 0 or more, got "
                f"{sample_length} and {temperature}; temperature 0 is greedy decoding"
            )
        self.sample_length, self.temperature = sample_length, temperature
        self.alphabet: Alphabet | None = None
        self._entering: SequenceState | None = None  # initial state of the current batch
        self._train_state: SequenceState | None = None  # state after the last training batch
        self._eval_state: SequenceState | None = None
        self._batch: int | None = None  # index of the current training batch
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
        if number != self._batch:  # StopIfNotFinite may compute a batch twice
            jumps = batch_idx == 0 and self._epochs_are_parts()
            self._entering, self._batch = None if jumps else self._train_state, number

    def _epochs_are_parts(self) -> bool:
        """Whether an epoch does not continue the streams of the previous one."""
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
        elif self._saved_states is not None:  # resumed run before its first batch
            checkpoint["streams"] = self._saved_states

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Load the alphabet and the states of the streams; reject a different alphabet.

        Raises:
            ValueError: the alphabet differs; the weights are from another net.
        """
        known = checkpoint.get("data_arguments", {}).get("vocabulary")
        if known and self.alphabet is not None and self.alphabet.characters != known:
            raise ValueError(
                f"LanguageModel: the checkpoint has the characters {known!r}, got "
                f"data with {self.alphabet.characters!r}; pass the former to TextData as vocabulary"
            )
        super().on_load_checkpoint(checkpoint)
        if known:
            self.alphabet = Alphabet(known)  # also for a net without data
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
        """Sample text that continues the first character of the validation part."""
        data = self.trainer.datamodule
        prompt = data.parts["val"][None, :1].to(self.device).long()
        limit = self.net.max_length  # limit of learned position encodings
        length = self.sample_length if limit is None else min(self.sample_length, limit)
        generator = torch.Generator(self.device).manual_seed(0)
        tokens = self.net.generate(
            prompt, length, temperature=self.temperature, generator=generator
        )
        return data.alphabet.decode(tokens[0])
