"""python -m benchmarks sweep FOLDER: loss against learning rate for the runs of a sweep.

FOLDER contains runs of train.py at any depth: of the CSV logger (metrics.csv beside config.yaml) or
of wandb, offline or not (run-ID.wandb). Prints the loss of every net at its learning rates, and
plots it to sweep.png in FOLDER. Diverged runs count as such; runs without the metric are reported
and skipped.
"""

import argparse
import csv
import functools
import math
import pydoc
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import ROOT
from benchmarks.results import markdown
from benchmarks.wandb_file import WandbFile

CONFIGS = ROOT / "configs"


class Trial(NamedTuple):
    """One run of a sweep; the value is infinite if it diverged, None if unknown."""

    net: str
    lr: float
    seed: int
    value: float | None


def read(folder: Path, metric: str) -> dict[Path, Trial]:
    """Read trials, by metrics file."""
    files = {file: _of_csv(file, metric) for file in sorted(folder.rglob("metrics.csv"))}
    return files | {file: _of_wandb(file, metric) for file in sorted(folder.rglob("run-*.wandb"))}


def _of_csv(file: Path, metric: str) -> Trial:
    config = yaml.safe_load((file.parent / "config.yaml").read_text("utf-8"))
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    logged = {name: [row[name] for row in rows if row.get(name)] for name in (metric, "diverged")}
    return _trial(config, logged[metric], bool(logged["diverged"]))


def _of_wandb(file: Path, metric: str) -> Trial:
    run = WandbFile(file.parent)
    return _trial(run.config, run.logged(metric), bool(run.logged("diverged")))


def _trial(config: dict[str, object], values: Sequence[object], diverged: bool) -> Trial:
    """A trial with the last value of its metric."""
    last = float(values[-1]) if values else None
    if diverged or (last is not None and math.isnan(last)):
        last = math.inf
    arguments = config["model"]["init_args"]
    rate = arguments["optimizer"]["init_args"]["lr"]
    name = net_name(arguments["net"], config["data"]["class_path"])
    return Trial(name, rate, config["seed_everything"], last)


def net_name(net: dict[str, object], data: str) -> str:
    """The file of configs/net that a resolved net comes from; else its class name.

    If several files agree, the one for a task with this data class.
    """
    same = [name for name, written in _written_nets().items() if _agrees(written, net)]
    endings = tuple(_endings(data))
    return max(
        same,
        key=lambda name: (_leaves(_written_nets()[name]), name.endswith(endings)),
        default=net["class_path"],
    )


@functools.cache
def _endings(data: str) -> set[str]:
    """Suffixes of net files for tasks with this data class."""
    configs = (yaml.safe_load(file.read_text("utf-8")) for file in CONFIGS.glob("*.yaml"))
    nets = (x["model"]["init_args"]["net"] for x in configs if x["data"]["class_path"] == data)
    return {f"_{Path(net).stem.rsplit('_', 1)[1]}" for net in nets}


@functools.cache
def _written_nets() -> dict[str, object]:
    files = sorted((CONFIGS / "net").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in files}


def _agrees(written: object, resolved: object) -> bool:
    """Whether every written value equals the resolved one, which also includes defaults."""
    if isinstance(written, dict):
        return isinstance(resolved, dict) and all(
            _same_class(value, resolved.get(key))
            if key == "class_path"
            else key in resolved and _agrees(value, resolved[key])
            for key, value in written.items()
        )
    if isinstance(written, list):
        return (
            isinstance(resolved, list)
            and len(written) == len(resolved)
            and all(map(_agrees, written, resolved))
        )
    return written == resolved


def _same_class(written: str, resolved: str | None) -> bool:
    """Whether two import paths name the same class, such as plstm.VisionModel and its module."""
    if written == resolved or resolved is None:
        return written == resolved
    return pydoc.locate(written) is pydoc.locate(resolved)


def _leaves(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return sum(map(_leaves, parts)) if parts else 1


def by_net(trials: Sequence[Trial]) -> dict[str, dict[float, list[float]]]:
    """Values of all seeds by net and learning rate, in ascending order."""
    found: dict[str, dict[float, list[float]]] = {}
    for trial in sorted(trials):
        found.setdefault(trial.net, {}).setdefault(trial.lr, []).append(trial.value)
    return found


def table(trials: Sequence[Trial], metric: str) -> str:
    """Mean of a metric over seeds at every learning rate, the lowest of each net in bold."""
    nets = by_net(trials)
    rates = sorted({trial.lr for trial in trials})
    lines = []
    for net, values in nets.items():
        means = {rate: statistics.mean(found) for rate, found in values.items()}
        best = min(means, key=means.get)
        lines.append([net, *(_cell(values.get(rate), rate == best) for rate in rates)])
    return markdown([metric, *(f"{rate:g}" for rate in rates)], lines)


def _cell(values: list[float] | None, best: bool) -> str:
    if not values:
        return ""
    finite = [value for value in values if value < math.inf]
    diverged = f"{len(values) - len(finite)} of {len(values)} diverged"
    if not finite:
        return diverged
    mean = f"{statistics.mean(finite):.4f}"
    mean += f" ± {statistics.stdev(finite):.4f}" if len(finite) > 1 else ""
    text = f"**{mean}**" if best and len(finite) == len(values) else mean
    return text if len(finite) == len(values) else f"{text}, {diverged}"


def picture(trials: Sequence[Trial], metric: str) -> Figure:
    """A metric against the learning rate: lines of means per net, dots for seeds, crosses for
    diverged runs."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (net, values) in enumerate(by_net(trials).items()):
        _line(axes, net, values, 0.97 - 0.04 * number)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(metric)
    seeds = len({trial.seed for trial in trials})
    axes.set_title(f"{len(trials)} runs, {seeds} seeds; crosses: diverged", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _line(axes: Axes, net: str, values: dict[float, list[float]], height: float) -> None:
    """Draw a net, with its crosses at `height`, a fraction of the plot height."""
    finite = {rate: [x for x in found if x < math.inf] for rate, found in values.items()}
    means = {rate: statistics.mean(found) for rate, found in finite.items() if found}
    (line,) = axes.plot(list(means), list(means.values()), label=net)
    colour = line.get_color()
    dots = list(_pairs(finite))
    axes.scatter([rate for rate, _ in dots], [y for _, y in dots], s=12, color=colour)
    lost = [rate for rate, found in values.items() if len(finite[rate]) < len(found)]
    above = axes.get_xaxis_transform()
    axes.scatter(
        lost, [height] * len(lost), marker="x", color=colour, transform=above, clip_on=False
    )


def _pairs(values: dict[float, list[float]]) -> Iterator[tuple[float, float]]:
    return ((rate, value) for rate, found in values.items() for value in found)


def main(arguments: list[str]) -> None:
    """Run a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the runs")
    parser.add_argument("--metric", default="val/loss", help="a metric where lower is better")
    args = parser.parse_args(arguments)
    found = read(args.folder, args.metric)
    trials = [trial for trial in found.values() if trial.value is not None]
    for file, trial in found.items():
        if trial.value is None:
            print(f"skipped {file.parent}: no {args.metric}")
    if not trials:
        parser.error(f"no run with {args.metric} in {args.folder}; pass the folder of the runs")
    print(table(trials, args.metric))
    file = args.folder / "sweep.png"
    picture(trials, args.metric).savefig(file, dpi=150)
    print(f"\nPicture: {file}")
