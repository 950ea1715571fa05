"""Fixtures of all tests."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # Triton kernels then run on the CPU: ops/interpreter.py
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)
