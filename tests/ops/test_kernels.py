"""Kernels run on the device of their tensors; if they do not compile, another form runs."""

import importlib
import warnings
from contextlib import contextmanager

import pytest
import torch

from plstm.ops import fallback, kernels, plstm_1d, plstm_2d
from plstm.ops.kernels import HAS_TRITON, Launch, launch, precision, prefers_triton
from plstm.ops.plstm_2d import CORNERS
from tests.helpers import assert_close, gradients
from tests.ops.inputs import grid_inputs, sequence_inputs

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
NAMES = {
    "plstm_1d": ("border_kernel", "output_kernel", "query_key_kernel", "gate_kernel"),
    "plstm_2d": ("read_kernel", "backward_kernel"),
}
CALLS = {
    "plstm_1d": lambda **options: plstm_1d(**sequence_inputs(5, dtype=torch.float32), **options),
    "plstm_2d": lambda **options: plstm_2d(**grid_inputs(2, 3, dtype=torch.float32), **options),
}


def replace_kernels(monkeypatch, function, kernel):
    """Put a stand-in in the place of all kernels of a function."""
    module = importlib.import_module(f"plstm.ops.{function}.triton")
    for name in NAMES[function]:
        monkeypatch.setattr(module, name, kernel)
    return module


@pytest.fixture
def guarded(monkeypatch):
    """Indices of the devices that are current at this moment."""
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
    settings = Launch(kernel, (3, 4), (x.dtype,), {"n": 5}, {"C": 6}, num_warps=8, num_stages=2)
    launch(settings, x)
    options = {"n": 5, "C": 6, "num_warps": 8, "num_stages": 2}
    assert kernel.launches == [((3, 4), True, options)]
    assert not guarded


@needs_triton
def test_sequences(guarded, monkeypatch):
    kernel = Kernel(guarded)
    replace_kernels(monkeypatch, "plstm_1d", kernel)
    inputs = sequence_inputs(5)
    gradients(plstm_1d(**inputs, backend="triton"), inputs)
    assert [on_device for _, on_device, _ in kernel.launches] == [True] * 6


@needs_triton
def test_grids(guarded, monkeypatch):
    kernel = Kernel(guarded)
    replace_kernels(monkeypatch, "plstm_2d", kernel)
    inputs = grid_inputs(2, 3)
    gradients(plstm_2d(**inputs, corners=CORNERS[:1], backend="triton"), inputs)
    assert [on_device for _, on_device, _ in kernel.launches] == [True] * 3


class Uncompilable:
    """Stands in for a kernel that a GPU or its compiler cannot take."""

    def warmup(self, *args, **options):
        raise RuntimeError("ptxas stopped")

    __getitem__ = warmup


@pytest.fixture
def gpu_without_compiler(guarded, monkeypatch):
    """Kernels that do not compile, on a device for which they are chosen."""
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    fallback._warn.cache_clear()
    for function in NAMES:
        module = replace_kernels(monkeypatch, function, Uncompilable())
        module._compiles.cache_clear()
        package = importlib.import_module(f"plstm.ops.{function}")
        monkeypatch.setattr(package, "prefers_triton", lambda device, dtype: True)
        monkeypatch.setattr(package, "check_triton", lambda function, device: None)
    yield
    for function in NAMES:
        importlib.import_module(f"plstm.ops.{function}.triton")._compiles.cache_clear()


@needs_triton
@pytest.mark.parametrize("function", NAMES)
def test_the_next_form_runs_where_they_do_not_compile(function, gpu_without_compiler):
    call = CALLS[function]
    with pytest.warns(UserWarning, match=f"{function}: .*do not compile.*RuntimeError: ptxas stop"):
        out = call()
    assert_close("output", out, call(backend="naive"), 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()  # once is enough
    with pytest.raises(RuntimeError, match="ptxas stopped"):
        call(backend="triton")


def test_auto_leaves_them_out_on_amd(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    assert prefers_triton(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not prefers_triton(torch.device("cuda"), torch.float32)
    assert precision(amd=True) == "ieee"
