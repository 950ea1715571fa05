"""The delta rule: a state that is corrected towards the values it should return."""

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
from plstm.ops.delta_rule.chunk import delta_rule_chunk
from plstm.ops.delta_rule.naive import delta_rule_naive
from plstm.ops.fla import check_fla, delta_rule_fla, prefers_fla
from plstm.ops.packed import CuSeqlens, run_packed

__all__ = ["delta_rule"]


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    cu_seqlens: CuSeqlens | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Gated delta rule: decay the state, then correct its value at the key.

        S'_t = exp(log_decay_t) S_{t-1}
        S_t = S'_t + beta_t k_t (v_t - S'_t^T k_t)^T
        o_t = scale * S_t^T q_t

    Keys are not normalized here. The state stays bounded if 0 <= beta |k|^2 <= 2, for example with
    keys of norm 1 and beta in (0, 1), or in (0, 2) for negative eigenvalues.

    Args:
        q: Queries, (B, L, H, K).
        k: Keys, (B, L, H, K).
        v: Values, (B, L, H, V).
        beta: Strength of the correction, (B, L, H).
        log_decay: Logarithm of the decay, at most 0 (not checked), -inf included; (B, L, H), or
            None for no decay.
        state: Initial state, (B, H, K, V); zeros if None.
        return_state: Also return the state after the last position.
        scale: Factor on the output, K^(-1/2) if None.
        backend: "naive" (the loop), "chunk" (linear time, matrix products), "fla" (the kernels of
            flash-linear-attention, where fla-core is installed, on CUDA devices, not in float64,
            K up to 256; decays are clamped to at least exp(-50)), or "auto".
        cu_seqlens: Cumulative lengths of S packed sequences, (S + 1,), see `plstm.ops.packed`; then
            B is 1, L the total length, and states have S in place of B.

    Returns:
        Output (B, L, H, V) in the dtype of v; with return_state also the state, in float32 or
        wider.

    Raises:
        ValueError: shapes, dtypes or devices disagree, L is 0, cu_seqlens is invalid, or the
            backend is unknown or does not run here.

    Source: arXiv 2406.06484 (chunkwise form), 2412.06464 (gated).
    """
    check_choice("delta_rule", "backend", backend, ("auto", "naive", "chunk", "fla"))
    _check(q, k, v, beta, log_decay, state, "B" if cu_seqlens is None else "S")
    if cu_seqlens is not None:
        op = partial(delta_rule, return_state=True, scale=scale, backend=backend)
        inputs = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay}
        out, state = run_packed("delta_rule", op, cu_seqlens, inputs, state)
        return (out, state) if return_state else out
    scale = output_scale(scale, q.shape[-1])
    decays = () if log_decay is None else (log_decay,)
    dtype = accumulation_dtype(q, k, v, beta, *decays)
    out_dtype = v.dtype
    if backend == "auto" and prefers_fla(q.device, dtype, q.shape[-1]):
        backend = "fla"

    with without_autocast(q.device):
        if backend == "fla":
            check_fla("delta_rule", q.device, dtype, q.shape[-1])
            options = {"state": state, "return_state": return_state, "scale": scale}
            out, state = delta_rule_fla(q, k, v, beta, log_decay, **options)
            return (out.to(out_dtype), state) if return_state else out.to(out_dtype)
        q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
        decay = torch.ones_like(beta) if log_decay is None else log_decay.to(dtype).exp()
        if state is None:
            state = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
        run = delta_rule_naive if backend == "naive" else delta_rule_chunk
        out, state = run(q, k, v, beta, decay, state.to(dtype), scale)
    out = out.to(out_dtype)
    return (out, state) if return_state else out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    states: str,
) -> None:
    tensors = {
        "q": (q, "B L H K"),
        "k": (k, "B L H K"),
        "v": (v, "B L H V"),
        "beta": (beta, "B L H"),
    }
    if log_decay is not None:
        tensors["log_decay"] = (log_decay, "B L H")
    if state is not None:
        tensors["state"] = (state, f"{states} H K V")
    check_shapes("delta_rule", **tensors)
    check_not_empty("delta_rule", q)
