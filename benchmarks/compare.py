"""python -m benchmarks compare: nets of a task, trained with the same budget and the same seeds.

    python -m benchmarks compare --task text --nets plstm,gla,attention --seeds 0,1,2 \
        --lrs 1e-3,3e-3,6e-3 --max_steps 2000 --path data/input.txt

A seed sets the weights and the data, so that all nets see the same samples in the same order. With
--lrs, every net uses the learning rate with the best validation result after a run with the first
seed. The weights at the end of the budget are validated and tested. Other arguments go to
`train.py fit`, for example --data.name=NCI1.

A budget is a number of steps, or seconds of training after which the learning rate has decayed to
zero; the latter depends on the machine and its load.

Writes compare_TASK.jsonl with one row per run, compare_TASK.md with tables of all rows, and
compare_TASK.png with the rows of this budget. Existing rows are not computed again; delete a row to
repeat its run.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path

import yaml
from lightning.pytorch import Callback
from torch.optim import Optimizer

from benchmarks import results
from benchmarks.compare_report import METRICS, best_rate, picture, report
from benchmarks.measure import ROOT, commit, conditions
from benchmarks.quiet import quiet_trainer
from benchmarks.results import Row
from benchmarks.state_sizes import several_sizes, state_picture
from plstm.models import state_size
from tasks.callbacks.monitor import batch_size
from tasks.cli import CLI
from tasks.cli import main as command_line
from tasks.optim import WarmupCosine

CONFIGS = ROOT / "configs"
RESULTS = ROOT / "benchmarks" / "results"
TASKS = tuple(METRICS)
KEY = ("net", "seed", "lr", "budget", "arguments")  # identifies a run
PLAIN = [  # writes and draws nothing, validates only at the end
    "--trainer.logger=false",
    "--standard_callbacks=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_model_summary=false",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.check_val_every_n_epoch=1000000",
]
MANY_EPOCHS = 10**6  # never reached, the time limit ends the run


class Speed(Callback):
    """Counts training samples and seconds, including data loading, without the first step."""

    def __init__(self) -> None:
        self.samples, self.seconds = 0, 0.0
        self._last = 0.0

    def on_train_epoch_start(self, *args: object) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: object, module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if trainer.global_step > 1:  # the first step compiles and allocates
            self.samples += batch_size(batch)
            self.seconds += now - self._last
        self._last = now


class TimedCosine(WarmupCosine):
    """WarmupCosine over the seconds since its creation, instead of over steps.

    Args:
        optimizer: Its learning rate is the maximum.
        seconds: Time until the learning rate is 0.
    """

    TICKS = 10_000

    def __init__(self, optimizer: Optimizer, seconds: float) -> None:
        self.seconds, self.start = seconds, time.perf_counter()
        super().__init__(optimizer, self.TICKS)

    def step(self) -> None:
        """Set the current learning rate."""
        elapsed = time.perf_counter() - self.start
        self.last_epoch = round(self.TICKS * elapsed / self.seconds) - 1  # step() adds 1
        super().step()


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line into own arguments and arguments for training."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--nets", help="NAME,... of nets of the task; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--lrs", help="RATE,... to select from for every net; default: the rate of the config"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--max_steps", type=int, help="budget: optimizer steps")
    budget.add_argument("--seconds", type=int, help="budget: training time")
    parser.add_argument("--path", help="file of the text task, or files of another task")
    parser.add_argument("--root", help="folder of the TU data sets")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    args, rest = parser.parse_known_args(arguments)
    known = sorted(net_files(args.task))
    args.nets = args.nets.split(",") if args.nets else known
    if unknown := set(args.nets) - set(known):
        parser.error(f"no net {', '.join(sorted(unknown))}: {args.task} has {', '.join(known)}")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.lrs = [float(rate) for rate in args.lrs.split(",")] if args.lrs else [None]
    return args, rest


def net_files(task: str) -> dict[str, Path]:
    """Files of the nets of a task by name: those with the suffix of the net in its config."""
    config = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text("utf-8"))
    ending = config["model"]["init_args"]["net"].rsplit("_", 1)[1]
    return {file.stem.rsplit("_", 1)[0]: file for file in CONFIGS.glob(f"net/*_{ending}")}


def budget_name(args: argparse.Namespace) -> str:
    """The budget as text, as rows store it."""
    return f"{args.max_steps} steps" if args.max_steps else f"{args.seconds} s"


def arguments_name(args: argparse.Namespace, rest: list[str]) -> str:
    """The other arguments of a run, as rows store them: the file name and extra arguments."""
    return shlex.join([f"--path={Path(args.path).name}", *rest] if args.path else rest)


def budget_arguments(args: argparse.Namespace) -> list[str]:
    """The budget as arguments for training."""
    if args.max_steps:
        return [f"--trainer.max_steps={args.max_steps}", "--trainer.max_epochs=-1"]
    minutes, seconds = divmod(args.seconds, 60)
    return [
        f"--trainer.max_epochs={MANY_EPOCHS}",
        f"--trainer.max_time=00:{minutes // 60:02}:{minutes % 60:02}:{seconds:02}",
        f"--model.scheduler={TimedCosine.__module__}.{TimedCosine.__name__}",
        f"--model.scheduler.seconds={args.seconds}",
    ]


def run(args: argparse.Namespace, rest: list[str], net: str, seed: int, lr: float | None) -> Row:
    """Train, validate and test a net."""
    data = [f"--data.path={args.path}"] if args.path else []
    data += [f"--data.root={args.root}"] if args.root else []
    rate = [f"--model.optimizer.lr={lr}"] if lr else []
    cli = command_line(
        [
            "fit",
            f"--seed_everything={seed}",
            f"--config={CONFIGS / args.task}.yaml",
            f"--model.net={net_files(args.task)[net]}",
            *PLAIN,
            f"--trainer.callbacks+={Speed.__module__}.{Speed.__name__}",
            f"--trainer.enable_progress_bar={str(sys.stderr.isatty()).lower()}",
            *budget_arguments(args),
            f"--data.seed={seed}",
            *data,
            *rate,
            *rest,
        ]
    )
    steps = cli.trainer.global_step
    (speed,) = (x for x in cli.trainer.callbacks if isinstance(x, Speed))
    return {
        "task": args.task,
        "net": net,
        "seed": seed,
        "lr": lr,  # None for the rate of the config
        "budget": budget_name(args),
        "arguments": arguments_name(args, rest),
        "validation": validation(cli, args.task),
        "metrics": test_metrics(cli),
        "parameters": sum(p.numel() for p in cli.model.net.parameters()),
        "state_size": state_size(cli.model.net),
        "steps": steps,
        "samples_per_s": round(speed.samples / speed.seconds, 2) if speed.samples else None,
        "device": cli.trainer.strategy.root_device.type,
    }


def validation(cli: CLI, task: str) -> float:
    """The metric that selects the learning rate: that of the task on the first validation set."""
    first = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    return round(first[METRICS[task][0].replace("test/", "val/")], 5)


def test_metrics(cli: CLI) -> dict[str, float]:
    """All test metrics at all sizes."""
    metrics: dict[str, float] = {}
    for per_loader in cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False):
        metrics.update(per_loader)
    return {name: round(value, 5) for name, value in metrics.items()}


def key(row: Row) -> tuple[object, ...]:
    """Identifies a run, without its results."""
    return tuple(row[name] for name in KEY)


def setting(row: Row) -> tuple[object, ...]:
    """Budget and arguments, which the runs of a table share."""
    return key(row)[3:]


def todo(args: argparse.Namespace, rows: list[Row]) -> Iterator[tuple[str, int, float | None]]:
    """Net, seed and learning rate of every run, seed by seed so that every net has a row early.

    The first seed tries all learning rates. The caller appends its rows to `rows` before the other
    seeds are requested.
    """
    first, *others = args.seeds
    yield from ((net, first, lr) for net, lr in product(args.nets, args.lrs))
    for seed, net in product(others, args.nets):
        tried = [r for r in rows if r["net"] == net and r["seed"] == first and r["lr"] in args.lrs]
        yield net, seed, best_rate(args.task, tried)


def write_reports(out: Path, task: str, rows: list[Row], budget: tuple[object, ...]) -> None:
    """Write the table of all rows, and the plot of those with one (budget, arguments).

    If runs differ only in arguments of the net, such as its width, another plot shows the metric
    against the state size.
    """
    rows = sorted(rows, key=setting)
    parts = {k: list(group) for k, group in groupby(rows, key=setting)}
    text = "\n\n".join(report(task, group) for group in parts.values())
    (out / f"compare_{task}.md").write_text(text + "\n", "utf-8")
    picture(task, parts[budget]).savefig(out / f"compare_{task}.png", dpi=150)
    kin = [group for group in parts.values() if family(group[0]) == family(parts[budget][0])]
    if several_sizes([row for group in kin for row in group]):
        state_picture(task, kin).savefig(out / f"compare_{task}_state.png", dpi=150)


def family(row: Row) -> tuple[str, list[str]]:
    """Budget and arguments of a run, without arguments of the net."""
    kept = [x for x in shlex.split(row["arguments"]) if not x.startswith("--model.net.")]
    return row["budget"], kept


@quiet_trainer()
def main() -> None:
    """Run the command line."""
    args, rest = parse(sys.argv[2:])
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    sys.argv = sys.argv[:1]  # LightningCLI warns about arguments it does not know
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"compare_{args.task}.jsonl"
    rows = results.read(file) if file.exists() else []
    budget = (budget_name(args), arguments_name(args, rest))
    own = [row for row in rows if setting(row) == budget]
    total = len(args.nets) * (len(args.lrs) + len(args.seeds) - 1)
    for number, (net, seed, lr) in enumerate(todo(args, own), 1):
        if (net, seed, lr, *budget) in map(key, own):
            print(f"[{number}/{total}] {net}, seed {seed}, exists")
            continue
        start = time.perf_counter()
        row = run(args, rest, net, seed, lr)
        row |= {"seconds": round(time.perf_counter() - start, 1), **conditions(row["device"])}
        own.append(row | {"commit": commit(), "command": command})
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(own[-1]) + "\n")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row["metrics"].items())
        rate = f"lr {lr:g}, " if lr else ""
        print(f"[{number}/{total}] {net}, seed {seed}, {rate}{row['seconds']} s: {shown}")
    rows = [row for row in rows if setting(row) != budget] + own
    write_reports(args.out, args.task, rows, budget)
    print(report(args.task, own))
