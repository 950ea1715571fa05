"""Files for reproducing a run: its resolved configuration, or the tested checkpoint."""

import json
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from tasks.data import checksum
from tasks.runs import run_folder


class SaveResolvedConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run folder and in wandb.

    Lightning's callback writes it next to the runs, where it blocks the next wandb run. The folders
    of other commands get `checkpoint.json`: the command, the file with its weights (null for newly
    initialized weights), and the SHA-256 of the file.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if folder is None:
            return
        if stage != "fit":
            (folder / "checkpoint.json").write_text(self._checkpoint(stage), encoding="utf-8")
            return
        partial = folder / "config.yaml.partial"  # a run killed at this point keeps the old file
        self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)
        partial.replace(folder / "config.yaml")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                dumped = self.parser.dump(self.config, skip_none=False, format="json")
                logger.experiment.config.update(json.loads(dumped), allow_val_change=True)

    def _checkpoint(self, command: str) -> str:
        path = self.config.ckpt_path
        local = path is not None and "://" not in str(path)
        used = {
            "command": command,
            "checkpoint": str(Path(path).resolve()) if local else path,
            "sha256": checksum(Path(path)) if local else None,
        }
        return json.dumps(used, indent=2) + "\n"
