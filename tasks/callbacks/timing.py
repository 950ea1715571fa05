"""Training time."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer


class EpochTimer(Callback):
    """Logs the seconds of every training epoch, from its start to the end of its last batch.

    Excludes the validation at the end of an epoch, and the remaining part of an epoch after
    resuming.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()
        self.seconds.append(0.0)

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        if self.seconds:
            self.seconds[-1] = time.perf_counter() - self._start
