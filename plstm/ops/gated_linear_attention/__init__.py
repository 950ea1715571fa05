"""Linear attention with a decay per key channel, per head, or without one."""

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
from plstm.ops.fla import check_fla, gated_linear_attention_fla, prefers_fla
from plstm.ops.gated_linear_attention.chunk import gated_linear_attention_chunk
from plstm.ops.gated_linear_attention.naive import gated_linear_attention_naive
from plstm.ops.packed import CuSeqlens, run_packed
from plstm.ops.plstm_1d import plstm_1d

__all__ = ["gated_linear_attention"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    cu_seqlens: CuSeqlens | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal linear attention with a decaying state.

        S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T
        o_t = scale * S_t^T q_t

    Without a decay this is linear attention; with a constant decay per head, RetNet and Lightning
    Attention; with one per position and head, Mamba-2; with one per key channel, GLA and causal
    LightNet. Without a decay, or with one per head, it is computed as pLSTM with the decay as
    transition and mark, and 1 as source and direct.

    Args:
        q: Queries, (B, L, H, K).
        k: Keys, (B, L, H, K).
        v: Values, (B, L, H, V).
        log_decay: Logarithm of the decay, at most 0 (not checked), -inf included; (B, L, H, K),
            (B, L, H), or None for no decay.
        state: Initial state, (B, H, K, V); zeros if None.
        return_state: Also return the state after the last position.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (the loop), "chunk" (linear time, matrix products), "fla" (the kernels of
            flash-linear-attention, where fla-core is installed, on CUDA devices, not in float64;
            decays are clamped to at least exp(-50)), or "auto".
        cu_seqlens: Cumulative lengths of S packed sequences, (S + 1,), see `plstm.ops.packed`; then
            B is 1, L the total length, and states have S in place of B.

    Returns:
        Output (B, L, H, V) in the dtype of v; with return_state also the state, in float32 or
        wider.

    Raises:
        ValueError: shapes, dtypes or devices disagree, L is 0, cu_seqlens is invalid, or the
            backend is unknown or does not run here.

    Source: arXiv 2006.16236 (no decay), 2307.08621 (per head), 2312.06635 (per channel).
    """
    check_choice("gated_linear_attention", "backend", backend, ("auto", "naive", "chunk", "fla"))
    _check(q, k, v, log_decay, state, "B" if cu_seqlens is None else "S")
    if cu_seqlens is not None:
        op = partial(gated_linear_attention, return_state=True, scale=scale, backend=backend)
        inputs = {"q": q, "k": k, "v": v, "log_decay": log_decay}
        out, state = run_packed("gated_linear_attention", op, cu_seqlens, inputs, state)
        return (out, state) if return_state else out
    scale = output_scale(scale, q.shape[-1])
    decays = () if log_decay is None else (log_decay,)
    dtype = accumulation_dtype(q, k, v, *decays)
    out_dtype = v.dtype
    if backend == "auto" and prefers_fla(q.device, dtype):
        backend = "fla"

    with without_autocast(q.device):
        if backend == "fla":
            check_fla("gated_linear_attention", q.device, dtype)
            options = {"state": state, "return_state": return_state, "scale": scale}
            out, state = gated_linear_attention_fla(q, k, v, log_decay, **options)
            return (out.to(out_dtype), state) if return_state else out.to(out_dtype)
        one = torch.ones((), dtype=dtype, device=q.device).expand(q.shape[:3])
        decay = one if log_decay is None else log_decay.to(dtype).exp()
        if backend != "naive" and decay.ndim == 3:
            options = {"state": state, "scale": scale, "backend": backend}
            out, state = plstm_1d(q, k, v, one, decay, decay, one, return_state=True, **options)
            return (out, state) if return_state else out
        q, k, v = (x.to(dtype) for x in (q, k, v))
        if state is None:
            state = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
        decay = decay if decay.ndim == 4 else decay[..., None]
        naive = backend == "naive"
        run = gated_linear_attention_naive if naive else gated_linear_attention_chunk
        out, state = run(q, k, v, decay, state.to(dtype), scale)
    out = out.to(out_dtype)
    return (out, state) if return_state else out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    states: str,
) -> None:
    tensors = {"q": (q, "B L H K"), "k": (k, "B L H K"), "v": (v, "B L H V")}
    if log_decay is not None:
        per_head = isinstance(log_decay, Tensor) and log_decay.ndim == 3
        tensors["log_decay"] = (log_decay, "B L H" if per_head else "B L H K")
    if state is not None:
        tensors["state"] = (state, f"{states} H K V")
    check_shapes("gated_linear_attention", **tensors)
    check_not_empty("gated_linear_attention", q)
