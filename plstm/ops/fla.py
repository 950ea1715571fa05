"""Kernels of flash-linear-attention (package fla-core) for the recurrences, on CUDA devices.

Its functions take (B, L, H, width) and states (B, H, K, V) as ours do, return the state in float32,
and apply `scale` to the output. They may multiply float32 in TF32, as the Triton compiler decides.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from plstm.ops.derivatives import check_not_transformed, first_derivatives_of, transformed
from plstm.ops.fallback import warn_slower

# Kernels subtract sums of 64 log decays: these must be finite, and small to keep their precision.
LOWEST = -50.0  # exp(-50) = 2e-22, negligible beside 1 in float32
WIDEST_KEY = 256  # of the delta rule


@functools.cache
def fla_ops() -> ModuleType | None:
    """The package's module of recurrences, imported on first use; None if not installed."""
    try:
        return importlib.import_module("fla.ops")
    except ImportError:
        return None


def prefers_fla(device: torch.device, dtype: torch.dtype, key_width: int = 1) -> bool:
    """Whether "auto" takes these kernels: on a GPU, not in float64, if installed."""
    fits = (
        device.type == "cuda"
        and dtype != torch.float64
        and key_width <= WIDEST_KEY
        and not transformed()
    )
    if fits and fla_ops() is None:
        reason = "the package fla-core is not installed"
        warn_slower("gated_linear_attention, delta_rule", reason, 'install the extra "gpu"')
    return fits and fla_ops() is not None


def check_fla(function: str, device: torch.device, dtype: torch.dtype, key_width: int = 1) -> None:
    """Raise a ValueError unless these kernels can run on such tensors."""
    if fla_ops() is None:
        raise ValueError(
            f'{function}: backend "fla" needs the package fla-core, which is not installed; '
            'install the extra "gpu", or use backend "auto"'
        )
    check_not_transformed(function, "fla")
    if device.type != "cuda":
        raise ValueError(
            f'{function}: backend "fla" needs tensors on a CUDA device, got {device}; move them '
            'there, or use backend "auto"'
        )
    if dtype == torch.float64:
        raise ValueError(
            f'{function}: backend "fla" does not support float64, got a float64 tensor; '
            'use backend "chunk"'
        )
    if key_width > WIDEST_KEY:
        raise ValueError(
            f'{function}: backend "fla" supports K up to {WIDEST_KEY}, got K = {key_width}; '
            'use backend "chunk"'
        )


def gated_linear_attention_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    state: Tensor | None,
    return_state: bool,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `gated_linear_attention`; the state is None unless requested."""
    per_channel = log_decay is not None and log_decay.ndim == 4
    run = fla_ops().chunk_gla if per_channel else fla_ops().chunk_simple_gla
    options = _options(state, return_state, scale)
    results = run(*_equal_dtypes(q, k, v), g=_finite(log_decay), **options)
    return first_derivatives_of("gated_linear_attention", *results)


def delta_rule_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    *,
    state: Tensor | None,
    return_state: bool,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `delta_rule`; the state is None unless requested."""
    q, k, v = _equal_dtypes(q, k, v)
    options = {"beta": beta.to(q.dtype), **_options(state, return_state, scale)}
    if log_decay is None and q.dtype != torch.float32:
        results = fla_ops().chunk_delta_rule(q, k, v, **options)
    else:  # the kernel without a decay refuses float32
        log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
        results = fla_ops().chunk_gated_delta_rule(q, k, v, g=_finite(log_decay), **options)
    return first_derivatives_of("delta_rule", *results)


def _equal_dtypes(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _finite(log_decay: Tensor | None) -> Tensor | None:
    return None if log_decay is None else log_decay.float().clamp(min=LOWEST)


def _options(state: Tensor | None, return_state: bool, scale: float) -> dict[str, object]:
    initial = None if state is None else state.float()
    return {"scale": scale, "initial_state": initial, "output_final_state": return_state}
