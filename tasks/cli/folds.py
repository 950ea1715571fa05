"""Cross-validation: train on every fold, test the best checkpoint in validation.

    python -m tasks.cli.folds --config configs/tu.yaml [--num_folds_to_run 3] [--data.name NCI1 ...]

--fold 4 runs only that fold, for a sweep. --resume auto continues the same command if it stopped.
Other arguments go to `train.py fit`.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tasks.callbacks.timing import EpochTimer
from tasks.cli import main as train
from tasks.cli import run_process

Main = Callable[[list[str]], object]


@dataclass(frozen=True)
class FoldResult:
    """Result of one fold."""

    fold: int
    accuracy: float  # of the best checkpoint on the test fold
    seconds: float | None  # median per epoch of this command, None if the run was complete
    epochs: int


def run_fold(main: Main, arguments: list[str], fold: int) -> tuple[FoldResult, int]:
    """Fit and test one fold; also returns the number of folds of the data.

    Raises:
        ValueError: the arguments also set the fold, or it is out of range.
    """
    if any(re.match(r"--data\.(init_args\.)?fold(=|$)", x) for x in arguments):
        raise ValueError("run_fold: --data.fold is set for every fold; choose one with --fold 4")
    timer = f"--trainer.callbacks+={EpochTimer.__module__}.{EpochTimer.__name__}"
    cli = main(["fit", *arguments, f"--data.fold={fold}", timer])
    best = cli.trainer.checkpoint_callback.best_model_path
    (metrics,) = cli.trainer.test(
        cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False
    )
    (seconds,) = (x.seconds for x in cli.trainer.callbacks if isinstance(x, EpochTimer))
    typical = statistics.median(seconds) if seconds else None
    result = FoldResult(fold, metrics["test/accuracy"], typical, cli.trainer.current_epoch)
    return result, cli.datamodule.hparams.num_folds


def run_folds(
    main: Main, arguments: list[str], num_folds_to_run: int | None = None
) -> list[FoldResult]:
    """Run folds 0, 1, ... of the data, all of them if num_folds_to_run is None.

    Args:
        main: tasks.cli.main.
        arguments: Arguments of `fit`, without --data.fold.
        num_folds_to_run: How many folds to run.

    Raises:
        ValueError: num_folds_to_run below 1.
    """
    if num_folds_to_run is not None and num_folds_to_run < 1:
        raise ValueError(
            f"run_folds: num_folds_to_run must be 1 or more, got {num_folds_to_run}; "
            "omit it to run all"
        )
    result, num_folds = run_fold(main, arguments, 0)
    results = [result]
    for fold in range(1, min(num_folds, num_folds_to_run or num_folds)):
        results.append(run_fold(main, arguments, fold)[0])
    return results


def table(results: list[FoldResult]) -> str:
    """Results fold by fold, then the mean and the sample standard deviation over folds."""
    rows = [f"{'fold':>4}  {'test/accuracy':>13}  {'epochs':>6}  {'s/epoch':>8}"]
    for r in results:
        rows.append(f"{r.fold:>4}  {r.accuracy:>13.4f}  {r.epochs:>6}  {_seconds([r])}")
    accuracy = [r.accuracy for r in results]
    deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
    rows.append(f"mean  {statistics.mean(accuracy):>13.4f}  {'':>6}  {_seconds(results)}")
    rows.append(f"  sd  {deviation:>13.4f}")
    return "\n".join(rows)


def _seconds(results: list[FoldResult]) -> str:
    measured = [r.seconds for r in results if r.seconds is not None]
    return f"{statistics.mean(measured):>8.3f}" if measured else f"{'-':>8}"


def main(arguments: list[str] | None = None) -> list[FoldResult]:
    """Run the command line (sys.argv if None) and print the table.

    Raises:
        ValueError: --resume is a folder, without --fold.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tasks.cli.folds", description=__doc__, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num_folds_to_run", type=int, help="default: all folds")
    which.add_argument("--fold", type=int, help="run only this fold")
    parser.add_argument("--resume", help="auto, or with --fold the folder of a run")
    if arguments is None:  # removed from sys.argv, which LightningCLI would warn about
        arguments, sys.argv[1:] = sys.argv[1:], []
    options, rest = parser.parse_known_args(arguments)
    if options.resume is not None:
        rest.append(f"--resume={options.resume}")
    if options.fold is None and options.resume not in (None, "auto"):
        raise ValueError(
            f"tasks.cli.folds: --resume must be auto, which finds the run of every fold, got "
            f"{options.resume}; with --fold 4 it may be the folder of one"
        )
    if options.fold is None:
        results = run_folds(train, rest, options.num_folds_to_run)
    else:
        results = [run_fold(train, rest, options.fold)[0]]
    print(table(results))
    return results


if __name__ == "__main__":
    run_process(main, "tasks.cli.folds")
