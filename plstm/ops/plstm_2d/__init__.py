"""pLSTM on two-dimensional grids."""

from functools import partial

import torch
from torch import Tensor

from plstm.checks import (
    accumulation_dtype,
    check_choice,
    check_shapes,
    check_valid,
    output_scale,
    without_autocast,
)
from plstm.ops.derivatives import check_not_transformed, transformed
from plstm.ops.gates import Gates
from plstm.ops.kernels import check_triton, prefers_triton
from plstm.ops.plstm_2d.corners import CORNERS, check_corners
from plstm.ops.plstm_2d.cpu import kernels_available, plstm_2d_native
from plstm.ops.plstm_2d.naive import plstm_2d_naive
from plstm.ops.plstm_2d.rows import plstm_2d_chunk, plstm_2d_gating, plstm_2d_rows

__all__ = ["CORNERS", "check_corners", "plstm_2d", "plstm_2d_gating"]

# Largest B H (Y X)^2, the entries of all gating matrices, for backend "rows": 1 GiB in float32, of
# which a training step holds several. Below it the parallel form was faster than the chunkwise one
# at every size measured on a CPU (up to 56 x 56 tokens, width 64: 2.7 times).
DENSE_ENTRIES = 2**28
CHUNK_TOKENS = 512  # tokens per block of rows of the chunkwise form


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    return plstm_2d_chunk(q, k, v, gates, corners, scale, max(1, CHUNK_TOKENS // q.shape[2]))


def _triton(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...], scale: float
) -> Tensor:
    check_triton("plstm_2d", q.device)
    from plstm.ops.plstm_2d.triton import plstm_2d_triton  # imports triton

    return plstm_2d_triton(q, k, v, gates, corners, scale)


COMPILED = ("native", "dense", "scan")  # in C++, for the CPU
FORMS = {
    "naive": plstm_2d_naive,
    "rows": plstm_2d_rows,
    "chunk": _chunk,
    **{name: partial(plstm_2d_native, form=name) for name in COMPILED},
    "triton": _triton,
}
KERNELS = (*COMPILED, "triton")  # first derivatives by backward() only


def plstm_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    *,
    corners: tuple[str, ...] = ("top_left",),
    scale: float | None = None,
    valid: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Linear recurrence over a grid, scanned from one or more of its four corners.

    Every node has an edge along x (direction 0) and one along y (direction 1), both away from the
    corner. A_0 and A_1 are the states that arrive on them. For the corner top_left,

        A_0[y, x] = C_0[y, x-1],   A_1[y, x] = C_1[y-1, x]
        C_g[y, x] = sum_h T[g, h] A_h[y, x] + S[g] k v^T
        out[y, x] = scale * (sum_h M[h] A_h^T q + D (q . k) v)

    The output is the sum over corners; the direct term counts once.

    Args:
        q: Queries, (B, Y, X, H, K).
        k: Keys, (B, Y, X, H, K).
        v: Values, (B, Y, X, H, V).
        source: S, (corners, B, Y, X, H, 2).
        transition: T, (corners, B, Y, X, H, 2, 2) [out, in].
        mark: M, (corners, B, Y, X, H, 2) [in].
        direct: D, (B, Y, X, H).
        corners: Corner of each leading entry of the gates. Gates are in image coordinates.
        scale: Factor on the output, K^(-1/2) if None.
        valid: Where tokens are, (B, Y, X), torch.bool; everywhere if None. Other positions have no
            edges, whatever they contain, NaN included: nothing enters or passes through them, and
            their output is 0. An image on a larger canvas gives the same outputs as without it.
        backend: "naive" (the loop), "rows" (parallel form, quadratic memory), "chunk" (chunkwise
            form over blocks of rows, memory linear in Y); C++ kernels for the CPU: "dense"
            (parallel form, the gating matrices of a few heads at a time), "scan" (recurrent form,
            time and memory linear in Y X) and "native" (the faster of these two); CUDA kernels:
            "triton" (parallel form, one row of the gating matrix at a time, linear memory; X, K, V
            up to 128); or "auto". Kernels have first derivatives by backward() only; under
            torch.func and forward-mode differentiation "auto" does not use them.

    Returns:
        Output (B, Y, X, H, V) in the dtype of v.

    Raises:
        ValueError: shapes, dtypes or devices disagree, the grid is empty, corners are unknown or
            repeated, or the backend is unknown or does not run here.
        NotImplementedError: the kernel does not support this derivative.
        RuntimeError: backend "native", "dense" or "scan" without a working C++ compiler.

    Source: arXiv 2506.11997, the grid case.
    """
    check_choice("plstm_2d", "backend", backend, ("auto", *FORMS))
    gates = Gates(source, transition, mark, direct)
    _check(q, k, v, gates, corners)
    if valid is not None:
        check_valid("plstm_2d", valid, q.shape[:3], q.device)
        q, k, v, gates = _cleared(q, k, v, gates, ~valid)
    scale = output_scale(scale, q.shape[-1])
    dtype = accumulation_dtype(q, k, v, *gates)
    if backend == "auto":
        backend = _fastest(q, k, v, corners, dtype)
    if backend in KERNELS:
        check_not_transformed("plstm_2d", backend)

    with without_autocast(q.device):
        gates = Gates(*(x.to(dtype) for x in gates))
        # Triton kernels accept q, k and v in bfloat16.
        qkv = (q, k, v) if backend == "triton" else (x.to(dtype) for x in (q, k, v))
        out = FORMS[backend](*qkv, gates, corners, scale)
    return out.to(v.dtype)


def _cleared(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, empty: Tensor
) -> tuple[Tensor, Tensor, Tensor, Gates]:
    """Set positions without a token (B, Y, X) to zero; q, k and v may contain NaN there."""
    q, k, v, source, mark = (
        x.masked_fill(empty[..., None, None], 0) for x in (q, k, v, gates.source, gates.mark)
    )
    transition = gates.transition.masked_fill(empty[..., None, None, None], 0)
    direct = gates.direct.masked_fill(empty[..., None], 0)
    return q, k, v, Gates(source, transition, mark, direct)


def _fastest(q: Tensor, k: Tensor, v: Tensor, corners: tuple[str, ...], dtype: torch.dtype) -> str:
    kernels = not transformed()
    if kernels and prefers_triton(q.device, dtype):
        from plstm.ops.plstm_2d.triton import compiles, supported  # imports triton

        if supported(q, k, v) and compiles(q, k, v, corners):
            return "triton"
    if kernels and q.device.type == "cpu" and kernels_available():
        return "native"
    batch, num_rows, num_columns, heads, _ = q.shape
    entries = batch * heads * (num_rows * num_columns) ** 2
    return "rows" if entries <= DENSE_ENTRIES else "chunk"


def runs_compiled(backend: str, device: torch.device) -> bool:
    """Whether `plstm_2d` uses a C++ form for tensors on a device."""
    if device.type != "cpu" or transformed():
        return False
    return backend in COMPILED or (backend == "auto" and kernels_available())


def _check(q: Tensor, k: Tensor, v: Tensor, gates: Gates, corners: tuple[str, ...]) -> None:
    check_corners("plstm_2d", corners)
    leading = str(len(corners))
    check_shapes(
        "plstm_2d",
        q=(q, "B Y X H K"),
        k=(k, "B Y X H K"),
        v=(v, "B Y X H V"),
        direct=(gates.direct, "B Y X H"),
        source=(gates.source, f"{leading} B Y X H 2"),
        transition=(gates.transition, f"{leading} B Y X H 2 2"),
        mark=(gates.mark, f"{leading} B Y X H 2"),
    )
    if q.shape[1] == 0 or q.shape[2] == 0:
        raise ValueError(f"plstm_2d: the grid must not be empty, got q of shape {tuple(q.shape)}")
