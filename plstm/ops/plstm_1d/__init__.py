"""pLSTM on sequences (path graphs)."""

import torch
from torch import Tensor

from plstm.checks import (
    accumulation_dtype,
    check_choice,
    check_shapes,
    output_scale,
    without_autocast,
)
from plstm.ops.derivatives import check_not_transformed, transformed
from plstm.ops.gates import Gates
from plstm.ops.kernels import check_triton, prefers_triton
from plstm.ops.plstm_1d.chunk import plstm_1d_chunk
from plstm.ops.plstm_1d.naive import plstm_1d_naive

__all__ = ["plstm_1d"]

FEW_POSITIONS = 2  # up to here, in decoding above all, the loop is faster than the chunk form


def plstm_1d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence with source, transition, mark and direct gates along a sequence.

        y_t = scale * (M_t C_{t-1}^T q_t + D_t (q_t . k_t) v_t)
        C_t = T_t C_{t-1} + S_t k_t v_t^T

    The mark reads the state that arrives at t; a position reaches its own output through direct
    only. With lanes an edge carries J states, T_t is a J x J matrix, and (I, O input and output
    lanes)

        y_t[:, o] = scale * (sum_j M_t[o, j] C_{t-1}[j]^T q_t
                             + sum_i D_t[o, i] (q_t . k_t) v_t[:, i])
        C_t[j] = sum_i T_t[j, i] C_{t-1}[i] + sum_i S_t[j, i] k_t v_t[:, i]^T

    Backend "naive" is causal for numbers that are not finite too. The others multiply with zeros
    where it leaves out: a NaN or an infinity reaches every output that it reaches there, and may
    reach earlier ones of the same sample and head, but no other sample or head.

    Args:
        q: Queries, (B, L, H, K).
        k: Keys, (B, L, H, K).
        v: Values, (B, L, H, V), or (B, L, H, V, I) with lanes.
        source: S, (B, L, H), or (B, L, H, J, I).
        transition: T, (B, L, H), or (B, L, H, J, J) [to, from]. Any sign, zero included.
        mark: M, (B, L, H), or (B, L, H, O, J).
        direct: D, (B, L, H), or (B, L, H, O, I).
        state: State that arrives at the first position, (B, H, K, V) or (B, H, K, V, J); zeros if
            None.
        return_state: Also return the state after the last position.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (the loop), "chunk" (linear time, matrix products; with one lane first
            derivatives only), "triton" (the same in kernels for CUDA devices, one lane), or "auto".

    Returns:
        Output (B, L, H, V) or (B, L, H, V, O) in the dtype of v; with return_state also the state,
        in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices disagree, an empty sequence, an unknown backend or one
            that does not run here.
        NotImplementedError: gradients of "chunk" or "triton" are differentiated again; torch.func
            can, and so can "naive".

    Source: arXiv 2506.11997, the sequence case; lanes after its state-tracking extension.
    """
    check_choice("plstm_1d", "backend", backend, ("auto", "naive", "chunk", "triton"))
    lanes = v.ndim == 5
    _check(q, k, v, source, transition, mark, direct, state, lanes)
    scale = output_scale(scale, q.shape[-1])
    dtype = accumulation_dtype(q, k, v, source, transition, mark, direct)
    out_dtype = v.dtype
    if backend == "auto" and not lanes and not transformed() and _takes_triton(q, k, v, dtype):
        backend = "triton"

    with without_autocast(q.device):
        if backend == "triton":
            gates = Gates(source, transition, mark, direct)
            out, state = _run_triton(q, k, v, gates, state, scale, lanes)
            out = out.to(out_dtype)
            return (out, state) if return_state else out
        q, k, v, source, transition, mark, direct = (
            x.to(dtype) for x in (q, k, v, source, transition, mark, direct)
        )
        if not lanes:
            v = v[..., None]
            source, transition, mark, direct = (
                x[..., None, None] for x in (source, transition, mark, direct)
            )
            state = state[..., None] if state is not None else None
        if state is None:
            batch, _, heads, key_width = q.shape
            state = v.new_zeros(batch, heads, key_width, v.shape[3], transition.shape[-1])
        args = (q, k, v, source, transition, mark, direct, state.to(dtype), scale)
        if backend == "naive" or (backend == "auto" and q.shape[1] <= FEW_POSITIONS):
            out, state = plstm_1d_naive(*args)
        else:
            out, state = plstm_1d_chunk(*args)
        out, state = (out, state) if lanes else (out.squeeze(-1), state.squeeze(-1))
    out = out.to(out_dtype)
    return (out, state) if return_state else out


def _takes_triton(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> bool:
    if not prefers_triton(q.device, dtype):
        return False
    from plstm.ops.plstm_1d.triton import compiles  # imports triton

    return compiles(q, k, v)


def _run_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: Tensor | None,
    scale: float,
    lanes: bool,
) -> tuple[Tensor, Tensor]:
    check_triton("plstm_1d", q.device)
    check_not_transformed("plstm_1d", "triton")
    if lanes:
        raise ValueError(
            'plstm_1d: backend "triton" computes one lane, got v with an axis of lanes; '
            'use backend "chunk"'
        )
    from plstm.ops.plstm_1d.triton import plstm_1d_triton  # imports triton

    if state is None:
        state = v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    return plstm_1d_triton(q, k, v, gates, state, scale)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    state: Tensor | None,
    lanes: bool,
) -> None:
    tensors = {
        "q": (q, "B L H K"),
        "k": (k, "B L H K"),
        "v": (v, "B L H V I" if lanes else "B L H V"),
        "transition": (transition, "B L H J J" if lanes else "B L H"),
        "source": (source, "B L H J I" if lanes else "B L H"),
        "mark": (mark, "B L H O J" if lanes else "B L H"),
        "direct": (direct, "B L H O I" if lanes else "B L H"),
    }
    if state is not None:
        tensors["state"] = (state, "B H K V J" if lanes else "B H K V")
    check_shapes("plstm_1d", **tensors)
    if q.shape[1] == 0:
        raise ValueError("plstm_1d: the sequence must have at least one position, got q with L = 0")
