"""Random inputs of the recurrences; their transitions include zeros and negative factors."""

import torch
from torch import Tensor

Lanes = tuple[int, int, int]  # lanes of the state J, the values I and the outputs O


def sequence_inputs(
    length: int,
    lanes: Lanes | None = None,
    *,
    batch: int = 2,
    heads: int = 2,
    key_width: int = 3,
    value_width: int = 4,
    with_state: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of `plstm_1d` by name, all of them requiring gradients.

    Transitions have a magnitude near 1, so that far positions matter; every eleventh vanishes.
    """
    g = torch.Generator().manual_seed(seed)
    j, i, o = lanes or (1, 1, 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    positions = (batch, length, heads)
    rotation = torch.linalg.qr(normal(*positions, j, j)).Q
    factor = 1 - 0.1 * torch.rand(*positions, 1, j, generator=g, dtype=torch.float64)
    transition = rotation * factor * normal(*positions, 1, 1).sign()
    transition[:, 3::11] = 0
    gates = {
        "source": normal(*positions, j, i),
        "transition": transition,
        "mark": normal(*positions, o, j),
        "direct": normal(*positions, o, i),
    }
    v, state = normal(*positions, value_width, i), normal(batch, heads, key_width, value_width, j)
    if lanes is None:
        gates = {name: gate[..., 0, 0] for name, gate in gates.items()}
        v, state = v[..., 0], state[..., 0]
    inputs = {
        "q": normal(*positions, key_width),
        "k": normal(*positions, key_width),
        "v": v,
        **gates,
    }
    if with_state:
        inputs["state"] = state
    return require_grad(inputs, dtype)


def grid_inputs(
    rows: int,
    columns: int,
    corners: int = 1,
    *,
    batch: int = 2,
    heads: int = 2,
    key_width: int = 3,
    value_width: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Arguments of `plstm_2d` by name, all of them requiring gradients.

    Each transition has a norm below 1 and a random sign; those of every fifth column vanish.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    nodes = (batch, rows, columns, heads)
    transition = torch.linalg.qr(normal(corners, *nodes, 2, 2)).Q * 0.95
    transition[:, :, :, 2::5] = 0
    inputs = {
        "q": normal(*nodes, key_width),
        "k": normal(*nodes, key_width),
        "v": normal(*nodes, value_width),
        "source": normal(corners, *nodes, 2),
        "transition": transition,
        "mark": normal(corners, *nodes, 2),
        "direct": normal(*nodes),
    }
    return require_grad(inputs, dtype)


def require_grad(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Fresh leaves of the given dtype."""
    return {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
