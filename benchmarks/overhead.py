"""python -m benchmarks.overhead: cost of logging and callbacks per training step.

Trains the nets of the quick start and of the text task for a few short epochs with every setting
below, in turns. A batch is one small sample, because the cost of logging does not depend on it and
would drown in the noise of long steps. A time is that of the fastest epoch after the first of a
run, up to the end of its last batch, because disturbances only add time. Validation, checkpoints
and pictures come later and do not count.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import ROOT, commit, conditions
from benchmarks.quiet import quiet_trainer
from benchmarks.results import Row, markdown, merge
from benchmarks.steps import CHARACTERS
from tasks.callbacks.timing import EpochTimer
from tasks.cli import main as command_line
from tasks.runs import finish_wandb

CONFIGS = ROOT / "configs"
RESULTS = ROOT / "benchmarks" / "results"
TASKS = ("quickstart", "text")
BARE = "no logger, no callbacks"
WAYS = {
    BARE: [
        "--trainer.logger=false",
        "--standard_callbacks=false",
        "--trainer.enable_checkpointing=false",
    ],
    "defaults: CSV file": [],
    "defaults, all steps logged": ["--trainer.log_every_n_steps=1"],
    "wandb, offline": [f"--config={CONFIGS / 'logger' / 'wandb.yaml'}"],
    "wandb, offline, all steps logged": [
        f"--config={CONFIGS / 'logger' / 'wandb.yaml'}",
        "--trainer.log_every_n_steps=1",
    ],
}


def epochs_ms(task: str, way: str, steps: int, epochs: int) -> list[float]:
    """Milliseconds per step of every epoch except the first, run in the current folder."""
    if task == "text":
        Path("text.txt").write_text(CHARACTERS * 100, "utf-8")
        sizes = [f"--data.train_windows={steps}", "--data.path=text.txt", "--data.context=8"]
        sizes.append("--model.sample_length=0")
    else:
        sizes = [f"--data.train_size={steps}", "--data.val_size=8"]
    cli = command_line(
        [
            "fit",
            f"--config={CONFIGS / task}.yaml",
            *WAYS[way],
            *sizes,
            "--data.batch_size=1",
            f"--trainer.max_epochs={epochs + 1}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.callbacks+={EpochTimer.__module__}.{EpochTimer.__name__}",
        ]
    )
    finish_wandb()
    (timer,) = (x for x in cli.trainer.callbacks if isinstance(x, EpochTimer))
    return [1e3 * seconds / steps for seconds in timer.seconds[1:]]


def measure(task: str, steps: int, epochs: int, rounds: int) -> list[Row]:
    """One row per setting for a task."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        for _ in range(rounds):
            for way, measured in times.items():
                measured += epochs_ms(task, way, steps, epochs)
    fastest = {way: min(measured) for way, measured in times.items()}
    return [
        {
            "device": "cpu",
            "dtype": "float32",
            "group": f"{task} step, one sample",
            "form": way,
            "ms_per_step": round(ms, 3),
            "overhead_ms": round(ms - fastest[BARE], 3),
            "steps": steps * epochs * rounds,
        }
        for way, ms in fastest.items()
    ]


def table(rows: list[Row]) -> str:
    """All settings with their times and the difference from the bare step."""
    head = ["case", "logging", "ms per step", "more than bare, ms"]
    cells = [
        [row["group"], row["form"], f"{row['ms_per_step']:.2f}", f"{row['overhead_ms']:+.2f}"]
        for row in rows
    ]
    return markdown(head, cells)


@quiet_trainer()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=TASKS, help="default: both")
    parser.add_argument("--steps", type=int, default=50, help="steps per epoch")
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs per run")
    parser.add_argument("--rounds", type=int, default=4, help="runs per setting")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of overhead.jsonl; rows replace"
    )
    args = parser.parse_args()
    sys.argv = sys.argv[:1]  # LightningCLI warns about arguments it does not know
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    where, rows = {**conditions(), "commit": commit()}, []
    for task in [args.task] if args.task else TASKS:
        rows += measure(task, args.steps, args.epochs, args.rounds)
    print(table(rows) + "\n\n" + ", ".join(f"{k} {v}" for k, v in where.items()))
    merge(args.out / "overhead.jsonl", [row | where for row in rows])


if __name__ == "__main__":
    main()
