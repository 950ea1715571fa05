"""The matrix memory of xLSTM: exponential input gates and a normalizer."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from plstm.checks import (
    accumulation_dtype,
    check_choice,
    check_not_empty,
    check_shapes,
    output_scale,
    without_autocast,
)
from plstm.ops.mlstm.naive import mlstm_naive
from plstm.ops.mlstm.stabilizer import running_stabilizer
from plstm.ops.packed import CuSeqlens, run_packed
from plstm.ops.plstm_1d import plstm_1d

__all__ = ["MLSTMState", "mlstm"]


class MLSTMState(NamedTuple):
    """State of `mlstm`: C e^{-m}, n e^{-m} and m; `scale` is not part of it."""

    memory: Tensor  # (B, H, K, V)
    normalizer: Tensor  # (B, H, K)
    stabilizer: Tensor  # (B, H)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    *,
    state: MLSTMState | None = None,
    return_state: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    cu_seqlens: CuSeqlens | None = None,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """Normalized matrix memory with an exponential input gate i and a sigmoid forget gate f.

        C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T
        n_t = sigmoid(f_t) n_{t-1} + exp(i_t) k_t
        o_t = scale * C_t^T q_t / max(|scale * n_t . q_t|, 1)

    Computed as C e^{-m} and n e^{-m} with the stabilizer

        m_t = max(log sigmoid(f_t) + m_{t-1}, i_t, 0)

    The output does not depend on m_t, and no gradient flows through it. All factors of the
    stabilized recurrence are at most 1. It is computed as pLSTM: the normalizer is the memory of
    one more value channel, which is always 1.

    Args:
        q: Queries, (B, L, H, K).
        k: Keys, (B, L, H, K).
        v: Values, (B, L, H, V).
        input_gate: Logits i, (B, L, H); -inf closes the gate.
        forget_gate: Logits f, (B, L, H); -inf resets the state.
        state: Initial state; zeros if None.
        return_state: Also return the state after the last position.
        scale: Factor on the queries, K^(-1/2) if None.
        backend: "naive" (the loop), "chunk" (linear time, matrix products), or "auto".
        cu_seqlens: Cumulative lengths of S packed sequences, (S + 1,), see `plstm.ops.packed`; then
            B is 1, L the total length, and states have S in place of B.

    Returns:
        Output (B, L, H, V) in the dtype of v; with return_state also the state, in float32 or
        wider.

    Raises:
        ValueError: shapes, dtypes or devices disagree, L is 0, cu_seqlens is invalid, or the
            backend is unknown.

    Source: arXiv 2405.04517, equations (19) to (27). We add the 0 in m_t, which keeps e^{-m} from
        overflowing and changes no output. The authors' code adds 1e-6 to the stabilized
        denominator; we omit it, as the equations do, because with it the output depends on m_t.
    """
    check_choice("mlstm", "backend", backend, ("auto", "naive", "chunk"))
    _check(q, k, v, input_gate, forget_gate, state, "B" if cu_seqlens is None else "S")
    if cu_seqlens is not None:
        op = partial(mlstm, return_state=True, scale=scale, backend=backend)
        inputs = {"q": q, "k": k, "v": v, "input_gate": input_gate, "forget_gate": forget_gate}
        neutral = {"input_gate": -torch.inf, "forget_gate": torch.inf}
        out, state = run_packed("mlstm", op, cu_seqlens, inputs, state, neutral)
        return (out, state) if return_state else out
    scale = output_scale(scale, q.shape[-1])
    dtype = accumulation_dtype(q, k, v, input_gate, forget_gate)
    out_dtype = v.dtype

    with without_autocast(q.device):
        q, k, v, input_gate, forget_gate = (x.to(dtype) for x in (q, k, v, input_gate, forget_gate))
        if state is None:
            rows = (q.shape[0], q.shape[2], q.shape[3])
            state = (v.new_zeros(*rows, v.shape[-1]), v.new_zeros(rows), v.new_zeros(rows[:2]))
        memory, normalizer, stabilizer = (x.to(dtype) for x in state)
        state = (memory, normalizer, stabilizer.detach())
        args = (q, k, v, input_gate, logsigmoid(forget_gate), *state, scale)
        out, *state = mlstm_naive(*args) if backend == "naive" else _as_plstm(*args, backend)
    out = out.to(out_dtype)
    return (out, MLSTMState(*state)) if return_state else out


def _as_plstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    log_forget: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    stabilizer: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same result as `mlstm_naive`; the normalizer is the memory of one more value, always 1."""
    m = running_stabilizer(input_gate, log_forget, stabilizer)
    before = torch.cat([stabilizer[:, None], m[:, :-1]], 1)
    source, transition = (input_gate - m).exp(), (log_forget + before - m).exp()
    both, state = plstm_1d(
        q,
        k,
        nn.functional.pad(v, (0, 1), value=1.0),
        source=source,
        transition=transition,
        mark=transition,
        direct=source,
        state=torch.cat([memory, normalizer[..., None]], -1),
        return_state=True,
        scale=scale,
        backend=backend,
    )
    out, weight = both[..., :-1], both[..., -1:].abs()
    out = out / torch.maximum(weight, (-m).exp()[..., None])
    return out, state[..., :-1], state[..., -1], m[:, -1]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    state: MLSTMState | None,
    states: str,
) -> None:
    tensors = {
        "q": (q, "B L H K"),
        "k": (k, "B L H K"),
        "v": (v, "B L H V"),
        "input_gate": (input_gate, "B L H"),
        "forget_gate": (forget_gate, "B L H"),
    }
    if state is not None:
        if not isinstance(state, MLSTMState):
            raise ValueError(
                f"mlstm: state must be an MLSTMState(memory, normalizer, stabilizer), got "
                f"{type(state).__name__}; pass what return_state=True returned"
            )
        tensors["memory"] = (state.memory, f"{states} H K V")
        tensors["normalizer"] = (state.normalizer, f"{states} H K")
        tensors["stabilizer"] = (state.stabilizer, f"{states} H")
    check_shapes("mlstm", **tensors)
    check_not_empty("mlstm", q)
