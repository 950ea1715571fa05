"""metrics.csv of a run that may have been stopped and resumed."""

import csv
import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsFile(ExperimentWriter):
    """Lightning's writer of metrics.csv, which goes on with the file of a resumed run.

    Lightning deletes that file; and where a new column makes it write the file anew, a run killed
    in that moment loses it.

    Args:
        log_dir: Folder of the file.
        keep: Rows to keep of the file that is there; what follows will be logged again. None for a
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
                f"cannot write {path}: {error.strerror}; make room, then go on with --resume "
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
    """Give the CSV loggers of a trainer their files before Lightning does.

    Args:
        trainer: Its loggers have not logged yet.
        keep: Rows to keep per logger if a run is resumed, none where the list is too short.
    """
    for i, logger in enumerate(trainer.loggers if trainer.is_global_zero else []):
        if isinstance(logger, CSVLogger):
            rows = None if keep is None else (keep[i] or 0) if i < len(keep) else 0
            logger._experiment = MetricsFile(logger.log_dir, rows)


def rows_written(trainer: Trainer) -> list[int | None]:
    """Rows of metrics.csv per logger, None for loggers of other kinds."""
    files = [logger.experiment for logger in trainer.loggers]
    return [file.rows if isinstance(file, MetricsFile) else None for file in files]
