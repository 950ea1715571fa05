"""Where compiled kernels cannot run, one warning says why, and the results are the same."""

import sys
import warnings

import pytest
import torch

from plstm import PLSTM2d, plstm_2d
from plstm.ops import fallback, fla, kernels, native
from plstm.ops.fallback import warn_slower
from plstm.ops.kernels import prefers_triton
from tests.helpers import assert_close
from tests.ops.inputs import grid_inputs

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has neither loaded kernels nor warned."""
    caches = (native.load, native.available, fallback._warn, fla.fla_ops)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(params=["missing", "failing"])
def no_compiler(request, tmp_path, monkeypatch):
    """CXX names no file, or a compiler that fails; what the warning says of it."""
    compiler = tmp_path / "c++"
    if request.param == "failing":
        compiler.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {"missing": "does not start", "failing": "fatal error: no such thing"}[request.param]


def messages(caught):
    return [str(warning.message) for warning in caught]


def test_grid_without_a_compiler(no_compiler):
    inputs, layer = grid_inputs(3, 4), PLSTM2d(8, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got, _ = plstm_2d(**inputs), plstm_2d(**inputs)
        layer(torch.randn(1, 3, 4, 8))
    (message,) = messages(caught)
    assert message.startswith("plstm_2d: compiled kernels do not run here")
    assert no_compiler in message
    assert "install a C++ compiler such as g++, or set CXX" in message
    assert_close("output", got, plstm_2d(**inputs, backend="naive"))


@pytest.mark.parametrize("no_compiler", ["missing"], indirect=True)
def test_compiled_grid_without_a_compiler(no_compiler):
    torch.compiler.reset()
    inputs = grid_inputs(1, 1)
    with pytest.warns(UserWarning, match=no_compiler):
        got = torch.compile(plstm_2d, fullgraph=True, backend="eager")(**inputs)
    assert_close("output", got, plstm_2d(**inputs, backend="naive"))


def test_torch_compile_warns_once_and_keeps_one_graph():
    def function(x):
        warn_slower("function", "no reason", "do nothing")
        return 2 * x

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in (2, 3, 4):
            assert torch.equal(compiled(torch.ones(size)), torch.full((size,), 2.0))
    assert len([x for x in messages(caught) if "no reason; do nothing, or see" in x]) == 1


def test_gpu_without_triton(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match=r"^plstm_1d, plstm_2d: .* triton 3\.6 .* extra \"gpu\""):
        assert not prefers_triton(CUDA, torch.float32)
    assert not prefers_triton(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    fallback._warn.cache_clear()
    assert not prefers_triton(CUDA, torch.float32)  # nothing to install: no warning
    assert not prefers_triton(CUDA, torch.float64)


def test_gpu_without_fla(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.ops", None)
    with pytest.warns(UserWarning, match=r"delta_rule: .* fla-core is not installed; .* \"gpu\""):
        assert not fla.prefers_fla(CUDA, torch.float32)
    fallback._warn.cache_clear()
    assert not fla.prefers_fla(CUDA, torch.float64)
    assert not fla.prefers_fla(CUDA, torch.float32, 257)
    assert not fla.prefers_fla(torch.device("cpu"), torch.float32)
