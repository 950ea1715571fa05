"""Fixtures of the tests of the command line."""

import sys

import pytest


@pytest.fixture
def told(monkeypatch, capsys):
    """The message of train.py before it exits with code 2."""

    from tasks.cli import run_process  # imports Lightning

    def run_and_read(*args):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            run_process()
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        lines = said[said.index("train.py: ") :].splitlines()
        assert len(lines) <= 3, lines
        assert "--debug" in lines[-1]
        return " ".join(lines[:-1])

    return run_and_read
