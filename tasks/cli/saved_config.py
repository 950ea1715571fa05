"""What repeats a run: its resolved configuration, or the checkpoint that was tested."""

import json
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from tasks.data import checksum
from tasks.runs import run_folder


class SaveResolvedConfig(SaveConfigCallback):
    """Saves the resolved configuration in the run's own folder, and in wandb's record of it.

    Lightning's own callback writes it beside the runs, in the way of the next run of wandb. The
    folders of other commands get `checkpoint.json`: the command, the file whose weights it used
    (null for those of a new net), and its SHA-256.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if folder is None:
            return
        if stage != "fit":
            (folder / "checkpoint.json").write_text(self._checkpoint(stage), encoding="utf-8")
            return
        partial = folder / "config.yaml.partial"  # a run that is killed now keeps the old file
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
