"""Backend "fla": its choice, its errors, and what it hands to the package, by a stand-in for it.

The stand-in has the signatures of fla-core 0.6 and computes with our loops, on the CPU.
"""

import sys
import types

import pytest
import torch

from plstm.ops import delta_rule, fla, gated_linear_attention
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.recurrence import run_with_gradients
from tests.ops.test_delta_rule import delta_inputs
from tests.ops.test_gated_linear_attention import DECAYS, decay_inputs

CUDA = torch.device("cuda")
CASES = {f"gla-{decay}": (gated_linear_attention, decay) for decay in DECAYS}
CASES |= {"delta": (delta_rule, False), "gated-delta": (delta_rule, True)}
all_cases = pytest.mark.parametrize(("op", "kind"), CASES.values(), ids=CASES.keys())


def make_inputs(op, kind, length=70, **options):
    make = decay_inputs if op is gated_linear_attention else delta_inputs
    return make(length, kind, **options)


def stand_in(op, calls, name, takes_float32=True):
    """A function of the package; `g` and `beta` as it wants them."""

    def run(
        q,
        k,
        v,
        g=None,
        beta=None,
        scale=None,
        initial_state=None,
        output_final_state=False,
    ):
        calls.append(name)
        assert q.dtype == k.dtype == v.dtype
        assert takes_float32 or q.dtype != torch.float32
        assert initial_state is None or initial_state.dtype == torch.float32
        assert g is None or (g.dtype == torch.float32 and g.isfinite().all())
        further = {} if beta is None else {"beta": beta}
        out, state = op(
            q,
            k,
            v,
            log_decay=g,
            scale=scale,
            state=initial_state,
            return_state=True,
            backend="naive",
            **further,
        )
        return out, state if output_final_state else None

    return run


@pytest.fixture
def calls(monkeypatch):
    """The stand-in is installed and CPU tensors pass for CUDA tensors; names of what was called."""
    calls = []
    package, ops = types.ModuleType("fla"), types.ModuleType("fla.ops")
    for name in ("chunk_gla", "chunk_simple_gla"):
        setattr(ops, name, stand_in(gated_linear_attention, calls, name))
    ops.chunk_delta_rule = stand_in(delta_rule, calls, "chunk_delta_rule", takes_float32=False)
    ops.chunk_gated_delta_rule = stand_in(delta_rule, calls, "chunk_gated_delta_rule")
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.ops", ops)
    fla.fla_ops.cache_clear()
    for module in (gated_linear_attention, delta_rule):
        monkeypatch.setattr(sys.modules[module.__module__], "check_fla", lambda *_: None)
    yield calls
    fla.fla_ops.cache_clear()


@pytest.fixture
def without(monkeypatch):
    """The package is not installed."""
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.setitem(sys.modules, "fla.ops", None)
    fla.fla_ops.cache_clear()
    yield
    fla.fla_ops.cache_clear()


def test_preferred_on_a_gpu_only_and_not_in_float64(calls):
    assert fla.prefers_fla(CUDA, torch.float32)
    assert fla.prefers_fla(CUDA, torch.bfloat16, 256)
    assert not fla.prefers_fla(CUDA, torch.float64)
    assert not fla.prefers_fla(CUDA, torch.float32, 257)
    assert not fla.prefers_fla(torch.device("cpu"), torch.float32)


def test_not_preferred_without_the_package(without):
    assert not fla.prefers_fla(CUDA, torch.float32)


def test_package_is_not_imported_for_tensors_of_the_cpu(without):
    assert not fla.prefers_fla(torch.device("cpu"), torch.float32)
    assert fla.fla_ops.cache_info().misses == 0


@all_cases
def test_error_without_the_package(op, kind, without):
    with pytest.raises(ValueError, match=rf'^{op.__name__}: backend "fla" needs .* fla-core'):
        op(**make_inputs(op, kind, 5), backend="fla")


@pytest.mark.parametrize(
    ("device", "dtype", "width", "message"),
    [
        ("cpu", torch.float32, 4, 'op: backend "fla" needs tensors on a CUDA device, got cpu'),
        ("cuda", torch.float64, 4, "does not support float64"),
        ("cuda", torch.float32, 300, "supports K up to 256, got K = 300"),
    ],
)
def test_errors(device, dtype, width, message, calls):
    with pytest.raises(ValueError, match=message):
        fla.check_fla("op", torch.device(device), dtype, width)


@all_cases
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "zeros"])
def test_arguments(op, kind, with_state, calls):
    """Output, state and gradients of the loop: every argument arrived where it belongs."""
    inputs = make_inputs(op, kind, dtype=torch.float32, with_state=with_state)
    want = run_with_gradients(op, inputs, backend="naive", scale=0.3)
    got = run_with_gradients(op, inputs, backend="fla", scale=0.3)
    for name in want:
        assert_close(name, got[name], want[name], 1e-6)
    assert_close("alone", op(**inputs, backend="fla"), op(**inputs, backend="naive"), 1e-6)
    names = {"none": "chunk_simple_gla", "scalar": "chunk_simple_gla", "vector": "chunk_gla"}
    assert calls == [names.get(kind, "chunk_gated_delta_rule")] * 2


@all_cases
def test_refuses_second_derivatives(op, kind, calls):
    inputs = make_inputs(op, kind, 5, dtype=torch.float32)
    out = op(**inputs, backend="fla")
    with pytest.raises(NotImplementedError, match=rf"^{op.__name__}: .* first derivatives only"):
        torch.autograd.grad(out.sum(), inputs["q"], create_graph=True)


def test_left_alone_by_transforms(calls):
    def choose(x):
        assert not fla.prefers_fla(CUDA, torch.float32)
        with pytest.raises(NotImplementedError, match='op: backend "fla" has first derivatives'):
            fla.check_fla("op", CUDA, torch.float32)
        return x.sum()

    torch.func.grad(choose)(torch.ones(2))


@all_cases
def test_dtypes(op, kind, calls):
    inputs = make_inputs(op, kind, dtype=torch.bfloat16)
    inputs["q"], inputs["state"] = inputs["q"].float(), inputs["state"].double()
    out, state = op(**inputs, return_state=True, backend="fla")
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    inputs["q"] = inputs["q"].bfloat16()
    op(**inputs, backend="fla")
    assert calls[-1] == ("chunk_delta_rule" if kind is False else calls[0])


@pytest.mark.parametrize("name", ["gla-scalar", "gla-vector", "gated-delta"])
def test_forgetting_everything(name, calls):
    op, kind = CASES[name]
    inputs = make_inputs(op, kind, dtype=torch.float32)
    with torch.no_grad():
        inputs["log_decay"][:, ::3] = -torch.inf
    want = run_with_gradients(op, inputs, backend="naive")
    for key, value in run_with_gradients(op, inputs, backend="fla").items():
        assert_close(key, value, want[key], 1e-5)


@all_cases
def test_auto_takes_it_where_preferred(op, kind, calls, monkeypatch):
    inputs = make_inputs(op, kind, dtype=torch.float32)
    want = op(**inputs)
    assert not calls
    monkeypatch.setattr(sys.modules[op.__module__], "prefers_fla", lambda *_: True)
    assert_close("output", op(**inputs), want, 1e-5)
    assert len(calls) == 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or fla.fla_ops() is None,
    reason="needs a CUDA device and fla-core",
)
@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_kernels_equal_naive(dtype, op, kind):
    inputs = make_inputs(op, kind, 130, dtype=dtype, key_width=32, value_width=64)
    inputs = {name: x.detach().cuda().requires_grad_() for name, x in inputs.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    out, state = op(**inputs, return_state=True, backend="fla")
    want, want_state = op(**exact, return_state=True, backend="naive")
    rtol, grad_rtol = TOLERANCE[torch.bfloat16]  # float32 too: the kernels multiply in TF32
    assert_close("output", out, want, rtol)
    assert_close("state", state, want_state, rtol)
    grads, want_grads = gradients(out, inputs), gradients(want, exact)
    for name in inputs:
        assert_close(f"gradient of {name}", grads[name], want_grads[name], grad_rtol)
