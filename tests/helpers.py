"""Comparison and random-input helpers shared by all tests."""

import torch
from torch import Tensor

# Relative RMS error allowed per dtype: (values, gradients).
TOLERANCE = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 1e-2),
}


def assert_close(name: str, got: Tensor, want: Tensor, rtol: float = 1e-10) -> None:
    """Raise unless the RMS of the difference is at most rtol times the RMS of `want`."""
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if got.numel() == 0:
        return
    got, want = got.detach().double(), want.detach().double()
    if not torch.isfinite(got).all():
        raise AssertionError(f"{name}: not finite")
    error = (got - want).square().mean().sqrt().item()
    size = want.square().mean().sqrt().item()
    if error > rtol * size + 1e-14:
        raise AssertionError(
            f"{name}: relative RMS error {error / max(size, 1e-300):.2e} above {rtol:.0e}"
        )


def gradients(out: Tensor, inputs: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Gradient of every input under one random cotangent, a function of seed and shape."""
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    grads = torch.autograd.grad(out, list(inputs.values()), cotangent, allow_unused=True)
    return {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(inputs.items(), grads, strict=True)
    }
