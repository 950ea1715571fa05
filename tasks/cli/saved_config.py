"""The resolved configuration of a run, which repeats it."""

import json

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from tasks.runs import run_folder


class SaveResolvedConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run's own folder, and in wandb's record of it.

    Lightning's own callback writes it beside the runs, in the way of the next run of wandb.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if folder is None or stage != "fit":
            return
        partial = folder / "config.yaml.partial"  # a run that is killed now keeps the old file
        self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)
        partial.replace(folder / "config.yaml")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                dumped = self.parser.dump(self.config, skip_none=False, format="json")
                logger.experiment.config.update(json.loads(dumped), allow_val_change=True)
