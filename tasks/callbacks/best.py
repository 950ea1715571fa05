"""The checkpoint of the best validation."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps in best.ckpt the net with the best value of a metric.

    A run whose last step is not at the end of an epoch is validated after it, so that the shortest
    run has a best.ckpt too.

    The loss tells apart what ties in accuracy on a few samples; the config of a task may name
    another metric.

    Args:
        monitor: The metric.
        mode: "max" or "min": what is better.
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates before it stops
