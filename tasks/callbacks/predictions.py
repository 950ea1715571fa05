"""Files written by `train.py predict`."""

import csv
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from tasks.distributed import gather
from tasks.runs import run_folder


class SavePredictions(BasePredictionWriter):
    """Saves predictions for the test sets as `predictions.pt` in the run's folder.

    The file holds one tensor per test set, (samples, ..., out_dim) in the order of the data, by the
    suffix of its metrics ("" for the training size), and loads with weights_only=True. Tables of
    the task, DataModule.prediction_tables, are CSV files next to it.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Tensor] | Sequence[Sequence[Tensor]],
        batch_indices: Sequence[object],
    ) -> None:
        folder, saved = run_folder(trainer), by_test_set(trainer, predictions)
        if folder is None:
            rank_zero_info("Predictions are not saved: this run has no folder.")
            return
        torch.save(saved, folder / "predictions.pt")
        tables = trainer.datamodule.prediction_tables(saved)
        for name, rows in tables.items():
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        files = ["predictions.pt", *(f"{name}.csv" for name in tables)]
        rank_zero_info(f"Predictions: {', '.join(str(folder / name) for name in files)}")


def by_test_set(
    trainer: Trainer, predictions: Sequence[Tensor] | Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Predictions of all processes, by the metric suffix of each test set.

    All processes must call it.
    """
    names = trainer.datamodule.eval_names
    loaders = [predictions] if len(names) == 1 else predictions
    return {
        name: in_order_of_data(torch.cat(list(x)).cpu())
        for name, x in zip(names, loaders, strict=True)
    }


def in_order_of_data(own: Tensor) -> Tensor:
    """Merge results of all processes, which have disjoint samples (DataModule.eval_batches)."""
    parts = gather(own)
    whole = own.new_empty(sum(map(len, parts)), *own.shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
