"""What the README shows works."""

import re
import sys
from pathlib import Path

import pytest

from tasks.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"python train\.py fit [^`\n]*", README)))


def test_there_is_something_to_test():
    assert BLOCKS
    assert COMMANDS


@pytest.mark.parametrize("code", BLOCKS)
def test_python_block_runs(code):
    names = {}
    exec(code, names)
    assert names["y"].shape == names["x"].shape
    assert names["y_next"].shape == names["x"][:, 0].shape


@pytest.fixture
def parse(monkeypatch, capsys):
    """Print the configuration that a command line comes to."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def print_config(arguments):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--print_config"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return print_config


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command, parse, tmp_path):
    text = tmp_path / "FILE"
    text.write_text("to be or not to be", "utf-8")
    assert "class_path" in parse([str(text) if a == "FILE" else a for a in command.split()[2:]])


def test_named_files_exist():
    named = re.findall(
        r"(?<![\w/])(?:benchmarks|configs|docs|examples|plstm|tests)/[\w./]*\w", README
    )
    assert named
    assert all((ROOT / name).exists() for name in named), named
