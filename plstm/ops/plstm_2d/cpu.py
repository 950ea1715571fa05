"""The two C++ forms as one operator, which chooses between them at run time.

So compiled and exported graphs contain one node for all sizes.
"""

import torch
from einops import rearrange
from torch import Tensor

from plstm.compiler import assume_constant_result
from plstm.ops import native
from plstm.ops.derivatives import first_derivatives_only
from plstm.ops.gates import Gates
from plstm.ops.plstm_2d import dense, scan
from plstm.ops.plstm_2d.corners import scan_orders

FORMS = {"dense": dense, "scan": scan}
# The scan takes over where the dense form needs more than this many times the products of the scan:
# N (K + V) against G K V per node (N nodes, G corners). With K = V = 64 and four corners the dense
# form was faster at 24 x 24 tokens, the scan at 32 x 32.
DENSE_WORK = 7


@assume_constant_result
def kernels_available() -> bool:
    """Whether this machine can compile the kernels for grids."""
    return native.available(dense.SOURCE)


def plstm_2d_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    corners: tuple[str, ...],
    scale: float,
    form: str,
) -> Tensor:
    """Equation (6) in C++; form is "dense", "scan" or "native" (the faster of the two).

    Shapes as in `plstm_2d`.
    """
    if q.device.type != "cpu":
        raise ValueError(
            f'plstm_2d: backend "{form}" needs tensors on the CPU, got {q.device}; use "auto"'
        )
    of_corners = (rearrange(x, "g b y x h ... -> b h g y x ...") for x in gates[:3])
    of_nodes = (rearrange(x, "b y x h ... -> b h y x ...") for x in (q, k, v, gates.direct))
    q, k, v, direct, *of_corners = (x.contiguous() for x in (*of_nodes, *of_corners))
    out = _grid(q, k, v, *of_corners, direct, scan_orders(corners), scale, form)
    return rearrange(out, "b h y x v -> b y x h v")


def chosen_form(form: str, q: torch.Size, v: torch.Size, source: torch.Size) -> str:
    """The form that the operator `grid` uses for inputs of these shapes."""
    if form != "native":
        return form
    nodes, key_width, value_width, corners = q[2] * q[3], q[-1], v[-1], source[2]
    whole, states = nodes * (key_width + value_width), corners * key_width * value_width
    return "dense" if whole <= DENSE_WORK * states else "scan"


@torch.library.custom_op("plstm::grid", mutates_args=(), device_types="cpu")
def _grid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
    scale: float,
    form: str,
) -> Tensor:
    """q, k (B, H, Y, X, K), v (B, H, Y, X, V), gates (B, H, G, Y, X, ...) and (B, H, Y, X).

    G is the number of corners, orders is their `scan_orders`.
    """
    chosen = FORMS[chosen_form(form, q.shape, v.shape, source.shape)]
    return chosen.forward(q, k, v, source, transition, mark, direct, orders, scale)


@_grid.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: object) -> Tensor:
    return torch.empty_like(v)


@torch.library.custom_op("plstm::grid_backward", mutates_args=(), device_types="cpu")
def _grid_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    orders: int,
    scale: float,
    form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = FORMS[chosen_form(form, q.shape, v.shape, source.shape)]
    return chosen.backward(grad, q, k, v, source, transition, mark, direct, orders, scale)


@_grid_backward.register_fake
def _(grad: Tensor, *args: object) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in args if isinstance(x, Tensor))


def _setup_context(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    *tensors, orders, scale, form = inputs
    ctx.options = orders, scale, form
    ctx.save_for_backward(*tensors)


@first_derivatives_only("plstm_2d")
def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _grid_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None


_grid.register_autograd(_backward, setup_context=_setup_context)
