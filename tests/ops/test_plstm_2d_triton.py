import importlib
import sys

import pytest
import torch
from torch.fx import GraphModule

from plstm.ops import kernels, plstm_2d
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d import CORNERS
from plstm.ops.plstm_2d.naive import plstm_2d_naive
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import grid_inputs, require_grad
from tests.ops.interpreter import DEVICE

triton_2d = importlib.import_module("plstm.ops.plstm_2d.triton")
MODULE = sys.modules["plstm.ops.plstm_2d"]  # as an attribute the name is the function
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")]
SCALE = 0.3


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles and programs on the grids of this file; a GPU needs sides of at least 16."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(kernels, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(triton_2d, "READ_TILE", 8)
    monkeypatch.setattr(triton_2d, "BACKWARD_TILE", 4)
    monkeypatch.setattr(triton_2d, "BACKWARD_PROGRAMS", 4)


def run(inputs, corners):
    return form(triton_2d.plstm_2d_triton, inputs, corners)


def form(function, inputs, corners):
    q, k, v, *gates = inputs.values()
    return function(q, k, v, Gates(*gates), corners, SCALE)


def assert_equals_naive(inputs, corners, tolerance=None):
    """Output and gradients against the definition in float64."""
    dtype = inputs["v"].dtype
    rtol, grad_rtol = tolerance or TOLERANCE[dtype]
    exact = require_grad(inputs, torch.float64)
    want = form(plstm_2d_naive, exact, corners)
    placed = {name: x.detach().to(DEVICE).requires_grad_() for name, x in inputs.items()}
    out = run(placed, corners)
    assert_close("output", out.cpu(), want, rtol)
    got, want = gradients(out.cpu(), placed), gradients(want, exact)
    for name in inputs:
        assert got[name].dtype == inputs[name].dtype
        assert_close(f"gradient of {name}", got[name].cpu(), want[name], grad_rtol)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 6), (6, 1), (3, 5), (7, 4)])
def test_equals_naive(rows, columns, small_tiles):
    inputs = grid_inputs(rows, columns, 2, batch=2, heads=1)
    assert_equals_naive(inputs, ("top_left", "bottom_left"))


@pytest.mark.parametrize(
    "corners",
    [*((corner,) for corner in CORNERS), CORNERS[:2], CORNERS[:1:-1], CORNERS[::-1]],
    ids="+".join,
)
def test_corners(corners, small_tiles):
    assert_equals_naive(grid_inputs(3, 4, len(corners), batch=1), corners)


@pytest.mark.parametrize(("key_width", "value_width"), [(1, 5), (7, 2)])
def test_widths(key_width, value_width, small_tiles):
    inputs = grid_inputs(
        3, 3, batch=2, heads=3, key_width=key_width, value_width=value_width, dtype=torch.float32
    )
    assert_equals_naive(inputs, CORNERS[3:])


def test_tiles_of_the_size_a_gpu_takes():
    """One program owns more nodes than there are, and rows and widths are padded to 16."""
    assert_equals_naive(grid_inputs(2, 3, batch=1, heads=1), CORNERS[:1])


def test_bfloat16(small_tiles):
    # The interpreter cuts off the bits that a GPU rounds, hence twice the error.
    factor = 2 if DEVICE.type == "cpu" else 1
    tolerance = tuple(factor * rtol for rtol in TOLERANCE[torch.bfloat16])
    inputs = grid_inputs(4, 3, 2, batch=1, dtype=torch.bfloat16)
    assert_equals_naive(inputs, CORNERS[1:3], tolerance)


def test_mixed_dtypes(small_tiles):
    """Products are widened unless q, k and v are all of them in bfloat16."""
    inputs = grid_inputs(3, 3, batch=1, dtype=torch.float32)
    dtypes = {"q": torch.bfloat16, "k": torch.bfloat16, "v": torch.float16}
    for name, dtype in dtypes.items():
        inputs[name] = inputs[name].detach().to(dtype).requires_grad_()
    assert_equals_naive(inputs, CORNERS[:1], TOLERANCE[torch.bfloat16])


def test_zero_transitions_have_gradients(small_tiles):
    """No division: every zero between a source and a read-out has the gradient of its two sides."""
    inputs = grid_inputs(4, 4, batch=1, heads=1)
    with torch.no_grad():
        inputs["transition"][:, :, 1::2, 1] = 0
        inputs["transition"][..., 1, 0] *= -1e-30
    assert_equals_naive(inputs, CORNERS[:1])
    (grad,) = torch.autograd.grad(
        run({name: x.to(DEVICE) for name, x in inputs.items()}, CORNERS[:1]).square().sum(),
        inputs["transition"],
    )
    assert (grad[:, :, 1, 1] != 0).all()  # no border beside this node: all four gates matter


def test_inputs_of_any_stride(small_tiles):
    inputs = grid_inputs(2, 3)
    strided = {
        name: x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for name, x in inputs.items()
    }
    assert not strided["q"].is_contiguous()
    assert_equals_naive(strided, CORNERS[:1])


def test_twice_the_same_bits(small_tiles):
    inputs = grid_inputs(3, 4, 2, batch=1, dtype=torch.float32)
    inputs = {name: x.detach().to(DEVICE).requires_grad_() for name, x in inputs.items()}
    first, second = (gradients(run(inputs, CORNERS[:2]), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in inputs)


@pytest.mark.parametrize(
    ("columns", "key_width", "value_width", "dtype", "fits"),
    [
        (128, 128, 128, torch.bfloat16, True),
        (129, 16, 16, torch.bfloat16, False),
        (12, 16, 129, torch.bfloat16, False),
        (64, 128, 16, torch.float32, True),
        (65, 128, 16, torch.float32, False),
        (128, 64, 64, torch.float16, True),
        (128, 64, 65, torch.float16, False),
    ],
)
def test_what_fits(columns, key_width, value_width, dtype, fits):
    inputs = grid_inputs(
        1, columns, batch=1, heads=1, key_width=key_width, value_width=value_width, dtype=dtype
    )
    assert triton_2d.supported(inputs["q"], inputs["k"], inputs["v"]) == fits
    if not fits:
        message = f"needs X, K, V <= 128 and at most 32768 bytes .* got X={columns}, K={key_width}"
        with pytest.raises(ValueError, match=message):
            run(inputs, CORNERS[:1])


def test_empty_batch():
    inputs = {name: x.to(DEVICE) for name, x in grid_inputs(2, 2, batch=0).items()}
    out = run(inputs, CORNERS[:1])
    assert out.shape == inputs["v"].shape
    assert all(grad.numel() == 0 for grad in gradients(out, inputs).values())


def test_operator(small_tiles):
    """Its schema, shapes, gradients and dynamic sizes, as PyTorch checks them."""
    inputs = grid_inputs(2, 2, batch=1, heads=1)
    tensors = (x.detach().to(DEVICE).requires_grad_() for x in inputs.values())
    torch.library.opcheck(triton_2d._forward, (*tensors, 0))


def test_one_node_of_an_exported_graph(small_tiles):
    class Recurrence(torch.nn.Module):
        def forward(self, inputs):
            return plstm_2d(**inputs, backend="triton")

    def placed(rows, columns, batch):
        inputs = grid_inputs(rows, columns, batch=batch, heads=1)
        return {name: x.detach().to(DEVICE) for name, x in inputs.items()}

    inputs = placed(2, 3, 2)
    dims = [torch.export.Dim(name) for name in ("batch", "rows")]
    dims.append(torch.export.Dim("columns", max=128))
    shapes = {name: dict(enumerate(dims)) for name in inputs}
    shapes |= {name: dict(enumerate(dims, 1)) for name in ("source", "transition", "mark")}
    exported = torch.export.export(Recurrence(), (inputs,), dynamic_shapes=(shapes,))
    graphs = (x.graph for x in exported.graph_module.modules() if isinstance(x, GraphModule))
    targets = [node.target for graph in graphs for node in graph.nodes]
    assert targets.count(torch.ops.plstm.grid_triton.default) == 1
    for inputs in (placed(4, 2, 1), placed(3, 5, 3)):
        want = plstm_2d(**inputs, backend="naive")
        assert_close("output", exported.module()(inputs), want)


@pytest.mark.parametrize(
    ("name", "message"),
    [("INTERPRETED", "needs tensors on a CUDA device, got cpu"), ("HAS_TRITON", "not installed")],
)
def test_where_it_cannot_run(name, message, monkeypatch):
    monkeypatch.setattr(kernels, name, False)
    with pytest.raises(ValueError, match=f'plstm_2d: backend "triton" .*{message}'):
        plstm_2d(**grid_inputs(2, 2), backend="triton")


def test_auto_takes_it_where_it_fits(small_tiles, monkeypatch):
    monkeypatch.setattr(MODULE, "prefers_triton", lambda device, dtype: True)
    inputs = grid_inputs(2, 3, batch=1, dtype=torch.float32)
    inputs = {name: x.to(DEVICE) for name, x in inputs.items()}
    asked = plstm_2d(**inputs, backend="triton")
    assert torch.equal(plstm_2d(**inputs), asked)
    assert_close("output", asked, plstm_2d(**inputs, backend="naive"), 1e-5)
    monkeypatch.setattr(triton_2d, "LONGEST_SIDE", 2)
    monkeypatch.setattr(triton_2d, "plstm_2d_triton", None)  # must not be called
    assert_close("output", plstm_2d(**inputs), asked, 1e-5)


class TestOnGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize(("rows", "columns"), [(1, 1), (12, 12), (24, 24), (17, 31), (3, 70)])
    def test_equals_naive(self, rows, columns, dtype):
        inputs = grid_inputs(rows, columns, 4, key_width=40, value_width=64, dtype=dtype)
        assert_equals_naive(inputs, CORNERS)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_longest_row_that_fits(self, dtype):
        columns = 128 if dtype == torch.bfloat16 else 64
        inputs = grid_inputs(2, columns, 4, batch=1, key_width=128, value_width=128, dtype=dtype)
        assert_equals_naive(inputs, CORNERS)

    def test_several_tiles_of_one_program(self, monkeypatch):
        monkeypatch.setattr(triton_2d, "BACKWARD_PROGRAMS", 4)
        assert_equals_naive(grid_inputs(17, 13, 4, dtype=torch.float32), CORNERS)
