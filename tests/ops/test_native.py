"""C++ kernels: compiled once, with clear messages if that fails."""

import subprocess

import pytest
import torch

from plstm.ops import native

TWICE = """
#include "native.h"
template <typename T> void twice(const T* x, T* y, int64_t count, int64_t threads) {
  parallel(count, threads, [=] { return [=](int64_t n) { y[n] = 2 * x[n]; }; });
}
#define TWICE(T) (const T* x, T* y, int64_t count, int64_t threads)
EXPORT(twice, TWICE, (x, y, count, threads))
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A folder of compiled kernels of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.load.cache_clear()
    native.available.cache_clear()
    yield tmp_path / "cache" / "plstm"
    native.load.cache_clear()
    native.available.cache_clear()


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "twice" / "kernel.cpp"
    file.parent.mkdir()
    file.write_text(TWICE)
    if not native.available(file):
        pytest.skip("needs a C++ compiler")
    return file


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_problem_runs_once(source, dtype, threads):
    x = torch.randn(1001, dtype=dtype)
    y = torch.empty_like(x)
    native.call(source, "twice", x, y, len(x))
    assert torch.equal(y, 2 * x)


def test_compiled_once(source, empty_cache, monkeypatch):
    (built,) = empty_cache.iterdir()
    native.load.cache_clear()
    run = subprocess.run

    def only_the_version(command, **options):
        assert command[1:] == ["--version"]
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", only_the_version)
    native.load(source)
    assert [built] == list(empty_cache.iterdir())


def test_changed_source_is_compiled_again(source, empty_cache):
    native.load.cache_clear()
    source.write_text(TWICE.replace("2 * x", "3 * x"))
    y = torch.zeros(1)
    native.call(source, "twice", torch.ones(1), y, 1)
    assert y == 3
    assert len(list(empty_cache.iterdir())) == 2


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"a C\+\+ compiler is needed .* set CXX"):
        native.load(tmp_path / "kernel.cpp")
    assert not native.available(tmp_path / "kernel.cpp")


def test_compiler_fails(source, empty_cache):
    source.write_text("not C++")
    native.load.cache_clear()
    with pytest.raises(RuntimeError, match=r"failed on .*kernel\.cpp:\n[\s\S]*error"):
        native.load(source)
    assert len(list(empty_cache.iterdir())) == 1  # the one of the fixture


def test_cache_out_of_reach(source, tmp_path, monkeypatch):
    native.available.cache_clear()
    native.load.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not native.available(source)
