"""metrics.csv of a run that may be stopped and resumed."""

import csv
import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsFile(ExperimentWriter):
    """Lightning's writer of metrics.csv, which appends to the file of a resumed run.

    Lightning deletes that file; and when a new column makes it rewrite the file, a run killed at
    that moment loses it.

    Args:
        log_dir: Folder of the file.
        keep: Rows to keep of the existing file; later rows are logged again. None for a
            new run.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """

    def __init__(self, log_dir: str, keep: int | None = None) -> None:
        self._resumed = keep is not None
        super().__init__(log_dir)
        self.rows = 0
        if keep is not None and Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                self.metrics_keys = list(table.fieldnames or [])
                rows = list(table)[:keep]
            self._write(rows)
            self.rows = len(rows)

    def save(self) -> None:
        count, path = len(self.metrics), Path(self.metrics_file_path)
        try:
            super().save()
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {path}: {error.strerror}; free space, then continue with --resume "
                f"{path.parent}",
            ) from None
        self.rows += count

    def _check_log_dir_exists(self) -> None:
        if not self._resumed and Path(self.metrics_file_path).is_file():
            super()._check_log_dir_exists()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        partial = f"{self.metrics_file_path}.partial"
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.metrics_file_path)


def open_metrics_files(trainer: Trainer, keep: list[int | None] | None) -> None:
    """Set up the files of the CSV loggers of a trainer before Lightning does.

    Args:
        trainer: A trainer whose loggers have not logged yet.
        keep: Rows to keep per logger if a run is resumed, 0 beyond the end of the list.
    """
    for i, logger in enumerate(trainer.loggers if trainer.is_global_zero else []):
        if isinstance(logger, CSVLogger):
            rows = None if keep is None else (keep[i] or 0) if i < len(keep) else 0
            logger._experiment = MetricsFile(logger.log_dir, rows)


def rows_written(trainer: Trainer) -> list[int | None]:
    """Number of rows of metrics.csv per logger, None for other loggers."""
    files = [logger.experiment for logger in trainer.loggers]
    return [file.rows if isinstance(file, MetricsFile) else None for file in files]
