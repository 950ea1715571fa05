"""Gates of a layer in C++: one pass from its logits to the layout of the C++ kernels.

Letters: F logits per node, G corners.
"""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from plstm.ops import native
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates

SOURCE = Path(__file__).with_name("gates.cpp")
TURNS = {"L": 1, "R": 2}  # index into a flattened transition matrix


def compiled_gates(
    logits: Tensor, angle: Tensor | None, num_corners: int, num_heads: int, chirality: str
) -> Gates:
    """Gates of `PLSTM2d`, shaped as in `plstm_2d`.

    Args:
        logits: (B, Y, X, F), float32 or float64: source, mark, direct and transition, each over
            (corners, heads, entries), direct over heads.
        angle: Logits of mode P's angle, (B, Y, X, corners * heads); None in mode D.
        num_corners: Corners of the gates.
        num_heads: Heads of the gates.
        chirality: The turn kept in mode D, "L" or "R".
    """
    turn = TURNS[chirality] if angle is None else 0
    if angle is None:
        angle = logits.new_empty(0)
    made = _gates(logits.contiguous(), angle.contiguous(), num_heads, num_corners, turn)
    *of_corners, direct = made
    return Gates(
        *(rearrange(x, "b h g y x ... -> g b y x h ...") for x in of_corners),
        direct=rearrange(direct, "b h y x -> b y x h"),
    )


@torch.library.custom_op("plstm::grid_gates", mutates_args=(), device_types="cpu")
def _gates(
    logits: Tensor, angle: Tensor, heads: int, corners: int, turn: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (B, Y, X, F) to gates (B, H, G, Y, X, ...) and direct (B, H, Y, X)."""
    gates = _empty(logits, heads, corners)
    activated = _activated(logits, heads, corners, turn), torch.sigmoid(angle)
    native.call(SOURCE, "gates", *activated, *gates, *_sizes(logits), heads, corners, turn)
    return gates


@_gates.register_fake
def _(logits: Tensor, angle: Tensor, heads: int, corners: int, turn: int) -> tuple[Tensor, ...]:
    return _empty(logits, heads, corners)


@torch.library.custom_op("plstm::grid_gates_backward", mutates_args=(), device_types="cpu")
def _gates_backward(
    logits: Tensor,
    angle: Tensor,
    dsource: Tensor,
    dtransition: Tensor,
    dmark: Tensor,
    ddirect: Tensor,
    corners: int,
    turn: int,
) -> tuple[Tensor, Tensor]:
    heads = ddirect.shape[1]
    # The kernel overwrites these with their gradients.
    made = _activated(logits, heads, corners, turn), torch.sigmoid(angle)
    grads = dsource, dtransition, dmark, ddirect
    native.call(SOURCE, "gates_backward", *grads, *made, *_sizes(logits), heads, corners, turn)
    return made


@_gates_backward.register_fake
def _(logits: Tensor, angle: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(logits), torch.empty_like(angle)


def _setup_context(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    logits, angle, _, *ctx.sizes = inputs
    ctx.save_for_backward(logits, angle)


@first_derivatives_only("plstm_2d")
def _backward(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grads = (grad.contiguous() for grad in grads)
    return *_gates_backward(*ctx.saved_tensors, *grads, *ctx.sizes), None, None, None


_gates.register_autograd(_backward, setup_context=_setup_context)


def _activated(logits: Tensor, heads: int, corners: int, turn: int) -> Tensor:
    """Sigmoid, and tanh(5 z) for the transition."""
    transition = logits[..., -(3 if turn else 1) * corners * heads :]
    activated = torch.sigmoid(logits)  # of all columns, which is cheaper than copying some
    activated[..., -transition.shape[-1] :] = torch.tanh(5 * transition)
    return activated


def _empty(logits: Tensor, heads: int, corners: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, *grid, _ = logits.shape
    source, transition, mark = (
        logits.new_empty(batch, heads, corners, *grid, *edges) for edges in ((2,), (2, 2), (2,))
    )
    return source, transition, mark, logits.new_empty(batch, heads, *grid)


def _sizes(logits: Tensor) -> tuple[int, int]:
    batch, num_rows, num_columns, _ = logits.shape
    return batch, num_rows * num_columns
