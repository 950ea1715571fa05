"""Images of different sizes in a batch of plstm_2d give the same as each alone."""

import pytest
import torch

from plstm.ops import native, plstm_2d
from plstm.ops.plstm_2d import CORNERS, scan
from tests.canvas import CANVAS, SIZES, on_canvas, regions, valid_tokens
from tests.helpers import assert_close, gradients
from tests.ops.inputs import grid_inputs

OF_CORNERS = ("source", "transition", "mark")  # with a leading axis of corners
BACKENDS = [
    "naive",
    "rows",
    "chunk",
    *(
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not native.available(scan.SOURCE), reason="needs a C++ compiler"
            ),
        )
        for name in ("dense", "scan")
    ),
]


def filled(inputs, valid, fill):
    """Inputs of `plstm_2d` with NaN or other values at invalid positions."""
    return {
        name: on_canvas(
            valid.expand(len(x), *valid.shape) if name in OF_CORNERS else valid, x, fill
        )
        for name, x in inputs.items()
    }


def cut(name, x, image, region):
    """One image of an argument of `plstm_2d`."""
    part = (slice(image, image + 1), *region)
    return x[(slice(None), *part)] if name in OF_CORNERS else x[part]


@pytest.mark.parametrize("fill", [torch.nan, 7.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_each_alone(backend, fill):
    valid = valid_tokens()
    inputs = filled(grid_inputs(*CANVAS, 4, batch=len(SIZES)), valid, fill)
    out = plstm_2d(**inputs, corners=CORNERS, valid=valid, backend=backend)
    assert (out[~valid] == 0).all()
    cotangent = torch.randn_like(out)
    got = dict(zip(inputs, torch.autograd.grad(out, list(inputs.values()), cotangent), strict=True))
    assert all(grad.isfinite().all() for grad in got.values())
    for image, region in enumerate(regions()):
        alone = {
            name: cut(name, x, image, region).detach().requires_grad_()
            for name, x in inputs.items()
        }
        want = plstm_2d(**alone, corners=CORNERS, backend="naive")
        part = cut("out", cotangent, image, region)
        assert_close(f"output {image}", cut("out", out, image, region), want)
        grads = torch.autograd.grad(want, list(alone.values()), part, materialize_grads=True)
        for (name, grad), of in zip(got.items(), grads, strict=True):
            assert_close(f"gradient of {name} {image}", cut(name, grad, image, region), of)
            cut(name, grad, image, region).zero_()
    assert all((grad == 0).all() for grad in got.values())  # nothing beside the images


def test_nothing_passes_through_a_hole():
    inputs = grid_inputs(1, 7)
    valid = torch.ones(2, 1, 7, dtype=torch.bool)
    valid[:, :, 3] = False
    out = plstm_2d(**inputs, valid=valid)
    for part in (slice(3), slice(4, None)):
        alone = {
            name: x[:, :, :, part] if name in OF_CORNERS else x[:, :, part]
            for name, x in inputs.items()
        }
        assert_close("output", out[:, :, part], plstm_2d(**alone))


def test_all_valid_changes_nothing():
    inputs = grid_inputs(3, 4, 4)
    want = plstm_2d(**inputs, corners=CORNERS)
    out = plstm_2d(**inputs, corners=CORNERS, valid=torch.ones(2, 3, 4, dtype=torch.bool))
    assert torch.equal(out, want)
    got = gradients(out, inputs)
    for name, grad in gradients(want, inputs).items():
        assert torch.equal(got[name], grad)


@pytest.mark.parametrize(
    "valid",
    [torch.ones(2, 3, 4), torch.ones(2, 4, 3).bool(), torch.ones(2, 3, 4, device="meta").bool()],
    ids=["dtype", "shape", "device"],
)
def test_errors(valid):
    message = r"plstm_2d: valid must be a torch.bool tensor \(2, 3, 4\) on cpu, True where a token"
    with pytest.raises(ValueError, match=message):
        plstm_2d(**grid_inputs(3, 4), valid=valid)
