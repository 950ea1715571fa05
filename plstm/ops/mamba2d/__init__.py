"""The two-dimensional scan of Mamba2D."""

from torch import Tensor

from plstm.checks import accumulation_dtype, check_choice, check_shapes, without_autocast
from plstm.ops.mamba2d.diagonals import mamba2d_diagonals
from plstm.ops.mamba2d.naive import mamba2d_naive

__all__ = ["mamba2d"]

BACKENDS = {"naive": mamba2d_naive, "diagonals": mamba2d_diagonals}


def mamba2d(
    x: Tensor,
    dt_left: Tensor,
    dt_top: Tensor,
    a_left: Tensor,
    a_top: Tensor,
    b_left: Tensor,
    b_top: Tensor,
    c: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Selective state-space recurrence over a grid, from the top-left corner.

    For every channel and state dimension, from the left (L) and from the top (T):

        left[i, j] = exp(dt_L A_L) h[i, j-1] + dt_L B_L x
        top[i, j]  = exp(dt_T A_T) h[i-1, j] + dt_T B_T x
        h[i, j] = left in row 0, top in column 0 below it, (left + top) / 2 elsewhere
        out[i, j] = sum_n C_n h_n

    The factor 1/2 keeps the sum of both factors at most 1 for negative A, and halves what each
    direction passes on per step. Cost O(Y X D N), in Y + X - 1 steps with backend "diagonals".

    Args:
        x: Inputs, (B, Y, X, D).
        dt_left: Step sizes from the left, >= 0, (B, Y, X, D).
        dt_top: Step sizes from the top, >= 0, (B, Y, X, D).
        a_left: Rates from the left, <= 0, (D, N).
        a_top: Rates from the top, <= 0, (D, N).
        b_left: Input vectors from the left, (B, Y, X, N).
        b_top: Input vectors from the top, (B, Y, X, N).
        c: Read-out vectors, (B, Y, X, N).
        backend: "naive" (the loop), "diagonals" (one anti-diagonal at a time) or "auto" (the same
            as "diagonals").

    Returns:
        Output (B, Y, X, D) in the dtype of x; computed in float32 or wider.

    Raises:
        ValueError: shapes or devices disagree, the grid is empty, or the backend is unknown.

    Source: arXiv 2412.16146, the two-dimensional scan.
    """
    check_choice("mamba2d", "backend", backend, ("auto", *BACKENDS))
    check_shapes(
        "mamba2d",
        x=(x, "B Y X D"),
        dt_left=(dt_left, "B Y X D"),
        dt_top=(dt_top, "B Y X D"),
        a_left=(a_left, "D N"),
        a_top=(a_top, "D N"),
        b_left=(b_left, "B Y X N"),
        b_top=(b_top, "B Y X N"),
        c=(c, "B Y X N"),
    )
    if 0 in x.shape[1:3]:
        raise ValueError(f"mamba2d: the grid must not be empty, got x of shape {tuple(x.shape)}")
    args = (x, dt_left, dt_top, a_left, a_top, b_left, b_top, c)
    dtype = accumulation_dtype(*args)
    scan = BACKENDS["diagonals" if backend == "auto" else backend]
    with without_autocast(x.device):
        return scan(*(arg.to(dtype) for arg in args)).to(x.dtype)
