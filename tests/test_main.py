"""python -m plstm: which kernels run here, and why others do not."""

import runpy

import pytest
import torch

from plstm import __main__ as command
from plstm.ops import native


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def line_of(text, *words):
    (line,) = (line for line in text.splitlines() if line.split()[: len(words)] == list(words))
    return line


def test_command(capsys):
    with pytest.warns(RuntimeWarning, match="found in sys.modules"):  # this test imports it too
        runpy.run_module("plstm", run_name="__main__")
    text = capsys.readouterr().out
    assert torch.__version__ in line_of(text, "torch")
    for function, backend, device, _ in command.KERNELS:
        line = line_of(text, function, backend, device)
        if device == "cuda" and not torch.cuda.is_available():
            assert line.endswith("no: there is no CUDA device")
    assert command.report() == text.rstrip("\n")


def test_without_a_compiler(no_compiler, tmp_path):
    text = command.report()
    why = f"the C++ compiler {tmp_path / 'c++'} does not start: No such file or directory"
    assert why in line_of(text, "C++", "compiler")
    for backend in ("dense", "scan"):
        line = line_of(text, "plstm_2d", backend, "cpu")
        assert "no: " in line
        assert why in line


def test_attempts_tell_what_happened():
    def run(device, backend):
        return {"right": torch.ones(2), "wrong": torch.tensor([1.0, torch.nan])}[backend]

    assert command.attempt("cpu", "right", run) == "yes"
    assert command.attempt("cpu", "wrong", run) == "no: the output is not finite"
    assert command.attempt("cpu", "third", run) == "no: 'third'"


@pytest.mark.parametrize("entry", command.KERNELS, ids=lambda entry: f"{entry[0]} {entry[1]}")
def test_kernels_are_tried_with_valid_arguments(entry):
    """The definition runs on the numbers that a kernel is tried with."""
    *_, run = entry
    assert torch.isfinite(run("cpu", "naive")).all()
