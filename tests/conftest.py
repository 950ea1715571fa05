"""Fixtures of all tests."""

import os
import sys
from pathlib import Path

import pytest

# Test processes share the cores; PyTorch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

if not torch.cuda.is_available():  # Triton kernels then run on the CPU: ops/interpreter.py
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed every test, independent of previous tests."""
    torch.manual_seed(0)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder with data, as working folder; no state is shared between runs."""
    from tests.tasks.runs import write_data  # imports Lightning, which most tests do without

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # a run sets it; restored afterwards
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # prepared molecules go there
    write_data()
    return tmp_path
