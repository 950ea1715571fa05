from functools import partial

import pytest
import torch

from plstm.ops.mamba2d import mamba2d
from tests.helpers import assert_close, gradients

SIZES = [(1, 1), (1, 6), (6, 1), (3, 5), (7, 4)]
D, N = 3, 2


def inputs(rows, columns, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    grid = (batch, rows, columns)
    tensors = {
        "x": draw(*grid, D),
        "dt_left": draw(*grid, D).abs(),
        "dt_top": draw(*grid, D).abs(),
        "a_left": -draw(D, N).abs(),
        "a_top": -draw(D, N).abs(),
        "b_left": draw(*grid, N),
        "b_top": draw(*grid, N),
        "c": draw(*grid, N),
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_diagonals_equal_naive(size):
    args = inputs(*size)
    got, want = (mamba2d(**args, backend=name) for name in ("auto", "naive"))
    assert_close("output", got, want)
    wants = gradients(want, args)
    for name, grad in gradients(got, args).items():
        assert_close(name, grad, wants[name])
    if min(size) > 1:
        assert all(grad.norm() > 0 for grad in wants.values())


def test_naive_by_hand():
    """2 x 2, one channel and state, all decays 1/2 and inputs 1 from the left, 10 from the top."""
    one = torch.ones(1, 2, 2, 1)
    a = torch.full((1, 1), 0.5).log()
    got = mamba2d(one, one, one, a, a, one, 10 * one, one, backend="naive")[0, ..., 0]
    first, right, below = 1.0, 0.5 + 1, 0.5 + 10
    last = (0.5 * below + 1 + 0.5 * right + 10) / 2
    assert_close("output", got, torch.tensor([[first, right], [below, last]]), 1e-6)


def test_gradcheck():
    args = inputs(2, 3, batch=1)
    assert torch.autograd.gradcheck(partial(mamba2d, backend="naive"), tuple(args.values()))


@pytest.mark.parametrize("axis", ["row", "column"])
def test_one_row_or_column_is_a_sequence(axis):
    size, side = ((1, 6), "left") if axis == "row" else ((6, 1), "top")
    args = {name: x.detach() for name, x in inputs(*size).items()}
    x, c = (args[name].flatten(1, 2) for name in "xc")
    dt, b = (args[f"{name}_{side}"].flatten(1, 2) for name in ("dt", "b"))
    state, outs = torch.zeros(2, D, N).double(), []
    for t in range(6):
        first = axis == "column" and t == 0  # the corner is read from the left
        dt_t = args["dt_left"][:, 0, 0] if first else dt[:, t]
        b_t = args["b_left"][:, 0, 0] if first else b[:, t]
        state = (dt_t[..., None] * args[f"a_{side}"]).exp() * state
        state = state + torch.einsum("bd,bn->bdn", dt_t * x[:, t], b_t)
        outs.append(torch.einsum("bdn,bn->bd", state, c[:, t]))
    assert_close("output", mamba2d(**args), torch.stack(outs, 1).view(2, *size, D))


def test_impulse_in_the_corner_reaches_every_node():
    """Without decay a node takes the mean of its neighbors, which all hold 1."""
    rows, columns = 4, 5
    x = torch.zeros(1, rows, columns, 1).double()
    x[0, 0, 0] = 1
    one, a = torch.ones_like(x), torch.zeros(1, 1).double()
    assert_close("response", mamba2d(x, one, one, a, a, one, one, one), one)


def test_reads_what_is_above_and_to_the_left():
    args = {name: x.detach() for name, x in inputs(4, 5, batch=1).items()}
    moved = {**args, "x": args["x"].clone()}
    moved["x"][0, 1, 2] += 1
    changed = (mamba2d(**moved) - mamba2d(**args))[0].norm(dim=-1) > 1e-12
    want = torch.zeros(4, 5, dtype=torch.bool)
    want[1:, 2:] = True
    assert torch.equal(changed, want)


def test_very_fast_decay_is_finite():
    args = {name: x.detach() for name, x in inputs(5, 4, dtype=torch.float32).items()}
    args["a_left"], args["a_top"] = args["a_left"] * 1e4, args["a_top"] * 1e4
    args = {name: x.requires_grad_() for name, x in args.items()}
    out = mamba2d(**args)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(out, args).values())


def test_low_precision_keeps_wide_states():
    args = {name: x.detach() for name, x in inputs(9, 9).items()}
    half = {name: x.bfloat16() for name, x in args.items()}
    got = mamba2d(**half)
    assert got.dtype == torch.bfloat16
    want = mamba2d(**{name: x.double() for name, x in half.items()})
    assert_close("output", got, want, 5e-3)


def test_errors():
    args = inputs(3, 5)
    with pytest.raises(ValueError, match="mamba2d: backend must be one of"):
        mamba2d(**args, backend="rows")
    with pytest.raises(ValueError, match=r"c must have shape \(B, Y, X, N\)"):
        mamba2d(**{**args, "c": args["c"][..., :1]})
    with pytest.raises(ValueError, match="the grid must not be empty"):
        mamba2d(**{name: x[:, :0] if x.ndim == 4 else x for name, x in args.items()})
