"""The checkpoint with the best validation metric."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Saves the net with the best value of a metric as best.ckpt.

    A run whose last step is not at the end of an epoch is validated after it, so that the shortest
    run also has a best.ckpt.

    The default is the loss, which separates runs with equal accuracy on few samples; the config of
    a task may choose another metric.

    Args:
        monitor: The metric.
        mode: "max" or "min", whichever is better.
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates before it stops
