"""pLSTM on sequences (path graphs)."""

from functools import partial

import torch
from torch import Tensor

from plstm.checks import (
    accumulation_dtype,
    check_choice,
    check_not_empty,
    check_shapes,
    output_scale,
    without_autocast,
)
from plstm.compiler import statically_known_true
from plstm.ops.derivatives import check_not_transformed, transformed
from plstm.ops.gates import Gates
from plstm.ops.kernels import check_triton, prefers_triton
from plstm.ops.packed import CuSeqlens, run_packed
from plstm.ops.plstm_1d.chunk import plstm_1d_chunk
from plstm.ops.plstm_1d.naive import plstm_1d_naive

__all__ = ["plstm_1d"]

FEW_POSITIONS = 2  # up to here, as in decoding, the loop is faster than the chunkwise form


def _triton(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    check_triton("plstm_1d", q.device)
    check_not_transformed("plstm_1d", "triton")
    if v.ndim == 5:
        raise ValueError(
            'plstm_1d: backend "triton" supports one lane only, got v with a lane axis; '
            'use backend "chunk"'
        )
    from plstm.ops.plstm_1d.triton import plstm_1d_triton  # imports triton

    return plstm_1d_triton(q, k, v, gates, state, scale)


FORMS = {"naive": plstm_1d_naive, "chunk": plstm_1d_chunk, "triton": _triton}


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
    cu_seqlens: CuSeqlens | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence with source, transition, mark and direct gates along a sequence.

        y_t = scale * (M_t C_{t-1}^T q_t + D_t (q_t . k_t) v_t)
        C_t = T_t C_{t-1} + S_t k_t v_t^T

    The mark reads the state that arrives at t; a position reaches its own output through direct
    only. With lanes an edge carries J states and T_t is a J x J matrix. With I input and O output
    lanes,

        y_t[:, o] = scale * (sum_j M_t[o, j] C_{t-1}[j]^T q_t
                             + sum_i D_t[o, i] (q_t . k_t) v_t[:, i])
        C_t[j] = sum_i T_t[j, i] C_{t-1}[i] + sum_i S_t[j, i] k_t v_t[:, i]^T

    Backend "naive" is causal for NaN and infinities too. The others multiply where it has no term,
    and there 0 * NaN is NaN: a NaN or infinity affects all outputs that it affects in "naive", and
    may also affect earlier ones of the same sample (or packed sequence) and head, but no others.

    Args:
        q: Queries, (B, L, H, K).
        k: Keys, (B, L, H, K).
        v: Values, (B, L, H, V), or (B, L, H, V, I) with lanes.
        source: S, (B, L, H), or (B, L, H, J, I).
        transition: T, (B, L, H), or (B, L, H, J, J) [to, from]. Any sign, zero included.
        mark: M, (B, L, H), or (B, L, H, O, J).
        direct: D, (B, L, H), or (B, L, H, O, I).
        state: Initial state, (B, H, K, V) or (B, H, K, V, J); zeros if None.
        return_state: Also return the state after the last position.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (the loop), "chunk" (linear time, matrix products; with one lane first
            derivatives only), "triton" (the same as CUDA kernels, one lane), or "auto".
        cu_seqlens: Cumulative lengths of S packed sequences, (S + 1,), see `plstm.ops.packed`; then
            B is 1, L the total length, and states have S in place of B.

    Returns:
        Output (B, L, H, V) or (B, L, H, V, O) in the dtype of v; with return_state also the state,
        in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices disagree, L is 0, cu_seqlens is invalid, or the
            backend is unknown or does not run here.
        NotImplementedError: gradients of "chunk" or "triton" are differentiated again; use
            torch.func, or "naive".

    Source: arXiv 2506.11997, the sequence case; lanes follow its state-tracking extension.
    """
    check_choice("plstm_1d", "backend", backend, ("auto", *FORMS))
    gates = Gates(source, transition, mark, direct)
    _check(q, k, v, gates, state, "B" if cu_seqlens is None else "S")
    if cu_seqlens is not None:
        op = partial(plstm_1d, return_state=True, scale=scale, backend=backend)
        neutral = {"transition": torch.eye(transition.shape[-1]) if v.ndim == 5 else 1.0}
        inputs = {"q": q, "k": k, "v": v, **gates._asdict()}
        out, state = run_packed("plstm_1d", op, cu_seqlens, inputs, state, neutral)
        return (out, state) if return_state else out
    scale = output_scale(scale, q.shape[-1])
    dtype = accumulation_dtype(q, k, v, *gates)
    if backend == "auto":
        backend = _choose_backend(q, k, v, dtype)
    if state is None:
        batch, _, heads, key_width = q.shape
        lanes = transition.shape[4:]
        state = v.new_zeros(batch, heads, key_width, v.shape[3], *lanes, dtype=dtype)

    out_dtype = v.dtype
    gates, state = Gates(*(gate.to(dtype) for gate in gates)), state.to(dtype)
    if backend != "triton":  # its kernels multiply bfloat16 without conversion
        q, k, v = (x.to(dtype) for x in (q, k, v))
    with without_autocast(q.device):
        out, state = FORMS[backend](q, k, v, gates, state, scale)
    out = out.to(out_dtype)
    return (out, state) if return_state else out


def _choose_backend(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> str:
    if v.ndim == 4 and not transformed() and prefers_triton(q.device, dtype):
        from plstm.ops.plstm_1d.triton import compiles  # imports triton

        if compiles(q, k, v):
            return "triton"
    return "naive" if statically_known_true(q.shape[1] <= FEW_POSITIONS) else "chunk"


def _check(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor | None, states: str
) -> None:
    """`states` is the letter of the first axis of `state`."""
    lanes = v.ndim == 5
    tensors = {
        "q": (q, "B L H K"),
        "k": (k, "B L H K"),
        "v": (v, "B L H V I" if lanes else "B L H V"),
        "transition": (gates.transition, "B L H J J" if lanes else "B L H"),
        "source": (gates.source, "B L H J I" if lanes else "B L H"),
        "mark": (gates.mark, "B L H O J" if lanes else "B L H"),
        "direct": (gates.direct, "B L H O I" if lanes else "B L H"),
    }
    if state is not None:
        tensors["state"] = (state, f"{states} H K V" + " J" * lanes)
    check_shapes("plstm_1d", **tensors)
    check_not_empty("plstm_1d", q)
