"""Kernels run on the device of their tensors, whichever is current."""

from contextlib import contextmanager

import pytest
import torch

from plstm.ops.gates import Gates
from plstm.ops.kernels import HAS_TRITON, launch
from plstm.ops.plstm_2d import CORNERS
from tests.helpers import gradients
from tests.ops.inputs import grid_inputs, sequence_inputs

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


@pytest.fixture
def guarded(monkeypatch):
    """Numbers of the devices that are made the current one at this moment."""
    devices = []

    @contextmanager
    def device(number):
        devices.append(number)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return devices


class Kernel:
    """Stands in for a Triton kernel: notes whether it runs under a guard."""

    def __init__(self, guarded):
        self.guarded, self.launches = guarded, []

    def __getitem__(self, grid):
        def run(*args, **options):
            on_device = self.guarded == [args[0].get_device()]
            self.launches.append((grid, on_device, options))

        return run


def test_launch(guarded):
    kernel, x = Kernel(guarded), torch.ones(2)
    launch(kernel, (3, 4), x, 5, num_warps=8)
    assert kernel.launches == [((3, 4), True, {"num_warps": 8})]
    assert not guarded


@needs_triton
def test_sequences(guarded, monkeypatch):
    from plstm.ops.plstm_1d import triton

    kernel = Kernel(guarded)
    for name in ("_border_kernel", "_output_kernel", "_query_key_kernel", "_gate_kernel"):
        monkeypatch.setattr(triton, name, kernel)
    inputs = sequence_inputs(5)
    q, k, v, *gates, state = inputs.values()
    out, _ = triton.plstm_1d_triton(q, k, v, Gates(*gates), state, 1.0)
    gradients(out, inputs)
    assert [on_device for _, on_device, _ in kernel.launches] == [True] * 6


@needs_triton
def test_grids(guarded, monkeypatch):
    from plstm.ops.plstm_2d import triton

    kernel = Kernel(guarded)
    for name in ("read_kernel", "backward_kernel"):
        monkeypatch.setattr(triton, name, kernel)
    inputs = grid_inputs(2, 3)
    q, k, v, *gates = inputs.values()
    gradients(triton.plstm_2d_triton(q, k, v, Gates(*gates), CORNERS[:1], 1.0), inputs)
    assert [on_device for _, on_device, _ in kernel.launches] == [True] * 3
