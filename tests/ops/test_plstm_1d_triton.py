import importlib

import pytest
import torch
from torch.fx import GraphModule

from plstm.ops import kernels, plstm_1d
from plstm.ops.kernels import prefers_triton
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import require_grad, sequence_inputs
from tests.ops.interpreter import DEVICE

triton_1d = importlib.import_module("plstm.ops.plstm_1d.triton")
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")]


def assert_equals_naive(inputs, tolerance=None, **options):
    """Output, state and gradients through both, against the definition in float64."""
    dtype = inputs["q"].dtype
    rtol, grad_rtol = tolerance or TOLERANCE[dtype]
    exact = require_grad(inputs, torch.float64)
    want, want_state = plstm_1d(**exact, return_state=True, backend="naive", **options)
    placed = {name: x.detach().to(DEVICE).requires_grad_() for name, x in inputs.items()}
    out, state = plstm_1d(**placed, return_state=True, backend="triton", **options)
    assert out.dtype == dtype
    assert_close("output", out.cpu(), want, rtol)
    assert_close("state", state.cpu(), want_state, rtol)
    got = gradients(torch.cat([out.flatten().to(state.dtype), state.flatten()]).cpu(), placed)
    want = gradients(torch.cat([want.flatten(), want_state.flatten()]), exact)
    for name in inputs:
        assert got[name].dtype == dtype
        assert_close(f"gradient of {name}", got[name].cpu(), want[name], grad_rtol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("length", [1, 5, 64, 67, 130])
def test_equals_naive(length, dtype):
    assert_equals_naive(sequence_inputs(length, dtype=dtype))


@pytest.mark.parametrize(("key_width", "value_width"), [(1, 1), (37, 5), (16, 70)])
def test_equals_naive_at_widths(key_width, value_width):
    inputs = sequence_inputs(70, heads=3, batch=1, key_width=key_width, value_width=value_width)
    assert_equals_naive(inputs)


def test_without_state_and_with_scale():
    assert_equals_naive(sequence_inputs(40, with_state=False), scale=0.3)


@pytest.mark.parametrize("length", [5, 130])
def test_bfloat16(length):
    # The interpreter cuts off the bits that a GPU rounds, hence twice the error.
    factor = 2 if DEVICE.type == "cpu" else 1
    tolerance = tuple(factor * rtol for rtol in TOLERANCE[torch.bfloat16])
    assert_equals_naive(sequence_inputs(length, dtype=torch.bfloat16), tolerance)


def test_float16_is_widened():
    assert_equals_naive(sequence_inputs(40, dtype=torch.float16), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("factor", [1e-30, -1e-3, 0.0])
def test_long_decay_underflows_cleanly(factor):
    inputs = sequence_inputs(70, batch=1, dtype=torch.float32)
    with torch.no_grad():
        inputs["transition"].fill_(factor)
    assert_equals_naive(inputs)


def test_every_zero_transition_has_a_gradient():
    """No division: what comes before a zero and what comes after it make its gradient."""
    inputs = sequence_inputs(70, batch=1)
    with torch.no_grad():
        inputs["transition"][:, 1::4] = 0
    assert_equals_naive(inputs)
    out = plstm_1d(**{name: x.to(DEVICE) for name, x in inputs.items()}, backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["transition"])
    assert (grad[:, 1:-1:4] != 0).all()


def test_inputs_of_any_stride():
    inputs = sequence_inputs(20)
    strided = {
        name: x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        for name, x in inputs.items()
    }
    assert not strided["q"].is_contiguous()
    assert_equals_naive(strided)


@pytest.mark.parametrize("part", ["output", "state"])
def test_gradient_of_one_result_alone(part):
    inputs = sequence_inputs(40)
    results = []
    for device, backend in ((DEVICE, "triton"), ("cpu", "naive")):
        placed = {name: x.detach().to(device).requires_grad_() for name, x in inputs.items()}
        out, state = plstm_1d(**placed, return_state=True, backend=backend)
        results.append(gradients((out if part == "output" else state).sum().cpu(), placed))
    for name in inputs:
        assert_close(f"gradient of {name}", results[0][name].cpu(), results[1][name])


def test_halves_with_carried_state():
    inputs = {name: x.detach().to(DEVICE) for name, x in sequence_inputs(70).items()}
    state = inputs.pop("state")
    out, last = plstm_1d(**inputs, state=state, return_state=True, backend="triton")
    outs = []
    for part in (slice(33), slice(33, None)):
        half = {name: x[:, part] for name, x in inputs.items()}
        y, state = plstm_1d(**half, state=state, return_state=True, backend="triton")
        outs.append(y)
    assert_close("output", torch.cat(outs, 1), out)
    assert_close("state", state, last)


def test_operator():
    """Its schema, shapes, gradients and dynamic sizes, as PyTorch checks them."""
    inputs = sequence_inputs(5, batch=1, heads=1)
    tensors = [x.detach().to(DEVICE).requires_grad_() for x in inputs.values()]
    torch.library.opcheck(triton_1d._forward, (*tensors, 32))


def test_one_node_of_an_exported_graph():
    class Recurrence(torch.nn.Module):
        def forward(self, inputs):
            return plstm_1d(**inputs, backend="triton")

    def placed(length, batch):
        inputs = sequence_inputs(length, batch=batch, heads=1, with_state=False)
        return {name: x.detach().to(DEVICE) for name, x in inputs.items()}

    inputs = placed(5, 2)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    shapes = (dict.fromkeys(inputs, sizes),)
    exported = torch.export.export(Recurrence(), (inputs,), dynamic_shapes=shapes)
    graphs = (x.graph for x in exported.graph_module.modules() if isinstance(x, GraphModule))
    targets = [node.target for graph in graphs for node in graph.nodes]
    assert targets.count(torch.ops.plstm.sequence_triton.default) == 1
    for inputs in (placed(40, 1), placed(3, 3)):
        want = plstm_1d(**inputs, backend="naive")
        assert_close("output", exported.module()(inputs), want)


def test_lanes_are_refused():
    inputs = {name: x.to(DEVICE) for name, x in sequence_inputs(5, (2, 2, 2)).items()}
    with pytest.raises(ValueError, match=r'plstm_1d: backend "triton" supports one lane.*"chunk"'):
        plstm_1d(**inputs, backend="triton")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("INTERPRETED", "needs tensors on a CUDA device, got cpu"),
        ("HAS_TRITON", "3.6 or newer, which is not installed"),
    ],
)
def test_where_it_cannot_run(name, message, monkeypatch):
    monkeypatch.setattr(kernels, name, False)
    with pytest.raises(ValueError, match=f'plstm_1d: backend "triton" .*{message}'):
        plstm_1d(**sequence_inputs(5), backend="triton")


def test_auto_takes_it_on_recent_gpus_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda")
    assert prefers_triton(cuda, torch.float32)
    assert not prefers_triton(cuda, torch.float64)
    assert not prefers_triton(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not prefers_triton(cuda, torch.float32)


class TestOnGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize(("key_width", "value_width"), [(64, 64), (128, 256), (40, 24)])
    @pytest.mark.parametrize("length", [1, 300])
    def test_equals_naive(self, length, key_width, value_width, dtype):
        inputs = sequence_inputs(length, key_width=key_width, value_width=value_width, dtype=dtype)
        assert_equals_naive(inputs)

    def test_auto(self):
        inputs = sequence_inputs(130, dtype=torch.float32)
        inputs = {name: x.to(DEVICE) for name, x in inputs.items()}
        backends = ("auto", "triton")
        got, want = (plstm_1d(**inputs, backend=backend) for backend in backends)
        assert torch.equal(got, want)
