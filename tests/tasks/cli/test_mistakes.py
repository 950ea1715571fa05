"""Errors that are a user's, and those that are not: what is said, and what is left behind."""

import re
import sys
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import Callback
from torch import nn

from tasks.classification import Classification
from tasks.cli import run_process
from tasks.cli.mistakes import explain_error
from tests.tasks.runs import CONFIGS, arguments

pytestmark = pytest.mark.usefixtures("workplace")


class Own(nn.Module):
    """A net of a user, with a mistake."""

    def __init__(self, in_dim: int, out_dim: int, kind: str = "bug", edge_dim: int = 0) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(1, out_dim)
        if kind == "constructor":
            raise ValueError("dim must be 3")

    def forward(self, x):
        if self.kind == "forward":
            raise ValueError("x must be 3")
        if self.kind == "memory":
            return torch.empty(1 << 50)
        if self.kind == "classes":
            return self.linear(x.float().flatten(1)[:, :1]).argmax(-1)
        return self.linaer(x)


HERE = rf"raised in {__file__}, line \d+, in "
NETS = {
    "constructor": rf"train.py: dim must be 3 \({HERE}__init__\)",
    "forward": rf"train.py: x must be 3 \({HERE}forward\)",
    "bug": rf"Own cannot process a batch of these data, int64 \(\d+, 8\): .*no attribute 'linaer'"
    rf".*{HERE}forward",
    "classes": r"Own must return logits, .* \(\d+, 8, 15\), got int64 \(\d+,\)",
    "memory": "train.py: out of memory: .*4503599627370496 bytes.*smaller data.batch_size",
}


@pytest.mark.parametrize(("kind", "message"), NETS.items())
def test_nets_with_a_mistake(kind, message, told):
    net = f"{__name__}.Own"
    said = told(*arguments("fit", "text", f"--model.net={net}", f"--model.net.kind={kind}"))
    assert re.search(message, said)
    assert not list(Path("runs").glob("*/version_*"))


OTHERS = {
    ("text", "gin_tu"): "GNNModel cannot process a batch of these data, int64 .*num_nodes",
    ("text", "vit_quickstart"): "VisionModel: images must have shape",
    ("tu", "attention_text"): r"cannot be built with the sizes of these data, \(3, 2, edge_dim=0\)",
}


@pytest.mark.parametrize(("pair", "message"), OTHERS.items(), ids=str)
def test_nets_of_other_data(pair, message, told):
    task, net = pair
    said = told(*arguments("fit", task, f"--model.net={CONFIGS / 'net' / net}.yaml"))
    assert re.search(message, said)


@pytest.mark.parametrize("text", ["aaaa" * 100, "\n" * 400])
def test_text_of_one_character(text, told):
    Path("input.txt").write_text(text)
    message = told(*arguments("fit", "text"))
    assert "LanguageModel: there must be two or more classes" in message
    assert "the data have 1" in message


def test_graphs_of_one_class(told):
    file = next(Path("tu").glob("*/raw/*_graph_labels.txt"))
    file.write_text("1\n" * 40)
    assert "the data have 1; do all samples have the same label" in told(*arguments("fit", "tu"))


def test_monitor_of_early_stopping(told):
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los"]
    assert "metric `val/los` which is not available" in told(*arguments("fit", "text", *stop))


class Broken(Callback):
    """A callback of a user that fails after the first step."""

    def on_train_batch_end(self, *args):
        raise KeyError("step")


def test_errors_that_are_no_mistakes_keep_their_stack(monkeypatch):
    callback = f"--trainer.callbacks+={__name__}.Broken"
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments("fit", "text", callback)])
    with pytest.raises(KeyError, match="step"):
        run_process()
    assert list(Path("runs").glob("*/version_*"))  # of a run that has begun


def test_bug_in_a_constructor_is_no_mistake():
    def wrapped():
        try:
            None < 1  # noqa: B015
        except TypeError as error:
            raise ValueError("Does not validate\nErrors:\n  - '<' not supported\n") from error

    with pytest.raises(ValueError, match="Does not validate") as stopped:
        wrapped()
    assert explain_error(stopped.value) is None


def test_wandb(monkeypatch):
    error = wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nmore")
    assert explain_error(error) == (
        "wandb: No API key configured. Use `wandb login` to log in. (WANDB_MODE=offline keeps the "
        "run on this machine, --trainer.logger CSVLogger does not use wandb)"
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory(error):
    assert explain_error(error).startswith(f"out of memory: {str(error) or 'MemoryError'}; use a")


@pytest.mark.parametrize("out_dim", [0, 1])
def test_too_few_classes(out_dim):
    with pytest.raises(ValueError, match=f"two or more classes, .* have {out_dim};"):
        Classification(nn.Linear, 3, out_dim)
