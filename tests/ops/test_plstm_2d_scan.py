import pytest
import torch

from plstm.ops import native, plstm_2d
from plstm.ops.plstm_2d import CORNERS, scan
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import grid_inputs, require_grad

pytestmark = pytest.mark.skipif(not native.available(scan.SOURCE), reason="needs a C++ compiler")


@pytest.fixture(params=[1, 3], ids=["one_thread", "three_threads"])
def threads(request):
    """With one thread an image and a head keep their corners together, with three they do not."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_agrees_with_naive(inputs, corners=CORNERS, dtype=torch.float64):
    cast = require_grad(inputs, dtype)
    want, got = (
        plstm_2d(**x, corners=corners, backend=backend)
        for x, backend in ((inputs, "naive"), (cast, "scan"))
    )
    assert got.dtype == dtype
    rtol, gradient_rtol = TOLERANCE[dtype]
    assert_close("output", got, want, rtol)
    got = gradients(got, cast)
    for name, grad in gradients(want, inputs).items():
        assert_close(f"gradient of {name}", got[name], grad, gradient_rtol)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("corners", [CORNERS[:1], CORNERS[1:3], CORNERS])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (3, 5), (7, 4), (13, 3)], ids=str)
def test_grids(size, corners):
    assert_agrees_with_naive(grid_inputs(*size, len(corners)), corners)


@pytest.mark.parametrize("size", [(3, 300), (7, 70)], ids=["rows", "last_block_smaller"])
def test_blocks_of_rows(size):
    """So many columns that the backward pass keeps the states of one row, or of a few."""
    inputs = grid_inputs(*size, 2, batch=1, heads=1, key_width=2, value_width=1)
    assert_agrees_with_naive(inputs, CORNERS[::3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("key_width", "value_width"), [(1, 1), (64, 64), (37, 24), (8, 65), (17, 113)]
)
def test_widths(key_width, value_width, dtype):
    """Tiles of states with all numbers of vectors, and keys that do not fill the last tile."""
    widths = {"key_width": key_width, "value_width": value_width}
    assert_agrees_with_naive(grid_inputs(3, 4, 4, **widths), dtype=dtype)
