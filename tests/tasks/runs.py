"""Tiny runs of the command line, in the folder the test is in."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import wandb
from PIL import Image

from tasks.cli import CLI, main
from tasks.runs import run_folder

CONFIGS = Path(__file__).parents[2] / "configs"
TU_NAME = "TINY"
SEQUENCES = {"train_size": 16, "val_size": 8, "test_size": 8, "batch_size": 8}
SMALL = {  # sizes that take a second
    "quickstart": {"train_size": 16, "val_size": 8, "test_size": 8, "batch_size": 8},
    "arrow": {"train_size": 2, "val_size": 2, "test_size": 2, "batch_size": 2},
    "images": {"path": "pictures", "size": 8, "batch_size": 8, "max_shift": 1, "erase": 0.5},
    "pixels": {"path": "pictures", "size": 4, "batch_size": 8},
    "text": {"path": "input.txt", "context": 8, "batch_size": 2, "train_windows": 4},
    "tu": {"name": TU_NAME, "root": "tu"},
    "molecules": {"path": "molecules.csv", "targets": "toxic", "split": "part", "batch_size": 8},
    "molecules_regression": {"path": "molecules.csv", "targets": "size", "split": "part"},
    "dags": {"path": "dags.jsonl", "batch_size": 8},
    "properties": {"train_size": 16, "val_size": 8, "test_size": 8, "num_nodes": [4, 7]},
    "words": SEQUENCES | {"length": 7, "extrapolation_lengths": [9]},
    "languages": SEQUENCES
    | {"first_length": 4, "length": [3, 7], "extrapolation_lengths": [[7, 9]]},
    "recall": SEQUENCES | {"pairs": 2, "length": 8, "extrapolation_lengths": [10]},
    "listops": SEQUENCES | {"length": [4, 9], "extrapolation_lengths": [[10, 12]]},
}
METRICS = {  # of an evaluation; others have accuracy
    "molecules": "roc_auc",
    "molecules_regression": "rmse",
    "dags": "rmse",
    "properties": "log10_mse",
}
TWO_BLOCKS = "--model.net.depth=2"
FURTHER = {
    name: [TWO_BLOCKS]
    for name in ("arrow", "images", "molecules", "molecules_regression", "dags", "properties", "tu")
} | {"text": [TWO_BLOCKS, "--model.net.dim=32", "--model.sample_length=20"]}


def write_dags(path: Path) -> None:
    """Paths of 6 to 8 nodes of different kinds, a shortcut in every other one."""
    dags = [
        {
            "nodes": ["in", *("abc"[i // 3**n % 3] for n in range(4)), *["out"] * (1 + i % 3)],
            "edges": [[n, n + 1] for n in range(5 + i % 3)] + [[0, 2]] * (i % 2),
            "target": i % 3 + 0.5 * (i % 2),
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(dag) + "\n" for dag in dags), "utf-8")


def write_data() -> None:
    """The files that the text, molecule, picture and graph tasks read."""
    Path("input.txt").write_text("to be or not to be, that is the question\n" * 10, "utf-8")
    parts = ["train"] * 16 + ["val"] * 8 + ["test"] * 8
    rows = [
        f"{'C' * (1 + i // 2)}{'NO'[i % 2]},{i % 2},{i // 2},{part}" for i, part in enumerate(parts)
    ]
    Path("molecules.csv").write_text("\n".join(["smiles,toxic,size,part", *rows]) + "\n", "utf-8")
    write_pictures(Path("pictures"))
    write_dags(Path("dags.jsonl"))
    folder = Path("tu", TU_NAME, "raw")
    folder.mkdir(parents=True)
    edges, owner, labels, node_labels, first = [], [], [], [], 1
    for graph in range(40):  # cycles and paths of 3 to 7 nodes
        size, cyclic = 3 + graph % 5, graph % 2
        for n in range(size - 1 + cyclic):
            a, b = first + n, first + (n + 1) % size
            edges += [f"{a}, {b}", f"{b}, {a}"]
        owner += [graph + 1] * size
        node_labels += [n % 3 for n in range(size)]
        labels.append(cyclic)
        first += size
    lines = {"A": edges, "graph_indicator": owner, "graph_labels": labels}
    for name, values in (lines | {"node_labels": node_labels}).items():
        text = "".join(f"{value}\n" for value in values)
        (folder / f"{TU_NAME}_{name}.txt").write_text(text, "utf-8")


def write_pictures(folder: Path, count: int = 12) -> None:
    """Pictures of three sizes in a folder for each of two classes, which differ in colour."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (6 + number % 3, 9, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def arguments(subcommand: str, config: str | Path, *args: str) -> list[str]:
    """Command line of one epoch of a config by name, or of a saved config by path, on the CPU."""
    files = [arg for arg in args if arg.startswith("--config=")]  # further ones, before all else
    args = [arg for arg in args if arg not in files]
    if isinstance(config, str):
        sizes = [f"--data.{name}={value}" for name, value in SMALL[config].items()]
        sizes += FURTHER.get(config, [])
        args = [*sizes, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", *args]
        config = CONFIGS / f"{config}.yaml"
    plain = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return [subcommand, f"--config={config}", *files, *plain, *args]


def run(subcommand: str, config: str | Path, *args: str) -> CLI:
    """Run that command line."""
    return main(arguments(subcommand, config, *args))


def folder_of(cli: CLI) -> Path:
    """Folder of a run that has ended."""
    return run_folder(cli.trainer)


def full_disk(*args: object) -> None:
    """In place of a function that writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def end_wandb() -> None:
    """End the run that goes on, and the process of wandb, which may still have things to write."""
    wandb.finish()
    wandb.teardown()


def metrics_of(cli: CLI) -> dict[str, float]:
    """Last value of every metric but speeds, which differ from run to run; all of them finite."""
    metrics = {
        name: float(value)
        for name, value in cli.trainer.callback_metrics.items()
        if not name.endswith("_per_s")
    }
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    return metrics
