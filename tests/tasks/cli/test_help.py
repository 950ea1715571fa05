"""The help of train.py."""

import inspect
import pydoc
import re
import sys

import pytest
import yaml
from docstring_parser import parse
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn

import plstm
from tasks.callbacks.checkpoints import LastCheckpoint
from tasks.cli import SUBCOMMANDS, main
from tests.tasks.runs import CONFIGS


def help_of(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_first_help(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "--help")
    for name, what in SUBCOMMANDS.items():
        assert f"{name:19} {what[:40]}" in text
    assert "\n  python train.py fit --config configs/quickstart.yaml\n" in text
    assert "--debug shows" in text


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_of_subcommands(subcommand, capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, subcommand, "--help")
    assert text.startswith(f"usage: train.py {subcommand} --config FILE")
    assert SUBCOMMANDS[subcommand] in text
    assert ("--resume RESUME" in text) == (subcommand == "fit")
    assert "--last_checkpoint.minutes" in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--data.help=TUData"], "--data.fold"),
        (["--model.help=LanguageModel"], "--model.temperature"),
        (["--model.net.help=plstm.VisionModel"], "--net.depth"),
        (["--trainer.callbacks.help=FindLearningRate"], "num_training_steps"),
    ],
)
def test_help_of_classes(arguments, shown, capsys, monkeypatch):
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    text = help_of(capsys, monkeypatch, "fit", config, *arguments)
    assert shown in text
    assert len(text) < 20_000  # the known subclasses of Module alone are more


def test_help_lists_schedulers_that_can_be_named(capsys, monkeypatch):
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    text = help_of(capsys, monkeypatch, "fit", config, "--model.help=Classification")
    text = "".join(text[text.index("--model.scheduler SCHEDULER") :].split())
    assert "lr_scheduler.StepLR" in text
    assert "tasks.optim.WarmupCosine" in text
    for name in ("LRScheduler,", "SequentialLR", "ChainedScheduler"):
        assert f"lr_scheduler.{name}" not in text


def test_help_of_checkpoints(capsys, monkeypatch):
    text = " ".join(help_of(capsys, monkeypatch, "test", "--help").split())
    assert "File with the weights, for example RUN/checkpoints/best.ckpt." in text
    assert '"last"' not in text


def test_help_of_the_net_lists_nets(capsys, monkeypatch):
    arguments = [f"--config={CONFIGS / 'quickstart.yaml'}", "--model.help=Classification"]
    text = " ".join(help_of(capsys, monkeypatch, "fit", *arguments).split())
    (known,) = re.findall(r"--model.net NET Factory .*?known nets: (.*?)\)", text)
    for net in ("VisionModel", "SequenceModel", "GraphModel", "GNNModel"):
        assert f"plstm.models.{net}" in known
    assert "configs/net" in known
    assert "PLSTM2d" not in known  # a mixer
    assert "more" not in known


def named(value):
    """All class paths in a config."""
    if isinstance(value, dict):
        yield from [value["class_path"]] if "class_path" in value else []
        value = list(value.values())
    for part in value if isinstance(value, list) else []:
        yield from named(part)


def command_line_classes():
    """Classes of ours that a command line or a config can name."""
    paths = {
        path
        for file in CONFIGS.glob("**/*.yaml")
        for path in named(yaml.safe_load(file.read_text()))
    }
    classes = {pydoc.locate(path) for path in paths if path.startswith(("plstm.", "tasks."))}
    classes |= {x for x in vars(plstm).values() if inspect.isclass(x) and issubclass(x, nn.Module)}
    bases, found = [LightningModule, LightningDataModule, Callback], set()
    while bases:
        bases += (subclasses := bases.pop().__subclasses__())
        found |= {x for x in subclasses if x.__module__.startswith("tasks.")}
    return sorted(classes | found | {LastCheckpoint}, key=lambda x: x.__qualname__)


def test_classes_are_found():
    names = {x.__name__ for x in command_line_classes()}
    assert {"Classification", "TUData", "VisionModel", "PLSTM2d", "FindLearningRate"} <= names


@pytest.mark.parametrize("named_class", command_line_classes(), ids=lambda x: x.__name__)
def test_every_argument_is_described(named_class):
    described = set()
    for base in named_class.__mro__:
        described |= {p.arg_name for p in parse(base.__doc__ or "").params if p.description}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(named_class).parameters.values()
    missing = {p.name for p in parameters if p.kind not in kinds} - described
    assert not missing
