"""The gates between one token and every other token, and how they are drawn.

The gate of a pair is the factor on k v^T of one token when the other reads it: the sum over all
paths between them of the product of mark, transitions and source.
"""

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import FigureBase
from torch import Tensor

from plstm.ops.plstm_1d import plstm_1d
from plstm.ops.plstm_2d import plstm_2d

HEADS = 4  # maximum heads drawn
# The same scale in all pictures, so that layers and runs can be compared.
LEAST, MOST, COLOURS = 1e-3, 1, "YlOrRd"


def grid_reach(
    gates: tuple[Tensor, ...], corners: tuple[str, ...], query: tuple[int, int]
) -> Tensor:
    """Gates between one token of a grid and all tokens, (corners + 1, H, Y, X).

    One entry per corner, then one for all corners and the direct gate. With q, k and v of width 1
    and q = k = 1, the output is the gating matrix times v, so a row of the matrix is the gradient
    of one output with respect to v: time and memory are linear in the tokens.

    Args:
        gates: Source, transition, mark and direct of one image, as in `plstm_2d` with B = 1.
        corners: Corner of each leading entry of the gates.
        query: Row and column of the query token.
    """
    with torch.inference_mode(False), torch.enable_grad():
        *gates, direct = (_plain(gate) for gate in gates)
        ones, none = torch.ones_like(direct)[..., None], torch.zeros_like(direct)
        v = ones.clone().requires_grad_()
        rows = []
        for c, corner in enumerate(corners):
            single = (gate[c : c + 1] for gate in gates)
            out = plstm_2d(ones, ones, v, *single, none, corners=(corner,), scale=1.0)
            rows.extend(torch.autograd.grad(out[0, *query].sum(), v))
    rows = torch.stack(rows)[:, 0, ..., 0].movedim(-1, 1)  # (corners, H, Y, X)
    together = rows.sum(0)
    together[:, *query] += direct[0, *query]
    return torch.cat([rows, together[None]])


def sequence_reach(gates: tuple[Tensor, ...]) -> Tensor:
    """Gates between all positions of a sequence, (H, L, L) [reading, read].

    Args:
        gates: Source, transition, mark and direct of one sequence and one lane, (1, L, H).
    """
    gates = [_plain(gate) for gate in gates]
    _, length, heads = gates[0].shape
    ones = torch.ones_like(gates[0])[..., None]
    v = torch.eye(length, dtype=ones.dtype)[None, :, None].expand(1, length, heads, length)
    return plstm_1d(ones, ones, v, *gates, scale=1.0)[0].transpose(0, 1)


def draw_reach(axes: Axes, reach: Tensor) -> None:
    """Draw gates (rows, columns) by magnitude; grey without a path."""
    axes.set_facecolor("0.8")
    strength = torch.where(reach == 0, torch.nan, reach.abs())
    axes.imshow(strength.numpy(), cmap=COLOURS, norm=LogNorm(LEAST, MOST))


def draw_scale(figure: FigureBase, **place: object) -> None:
    """Draw the colour bar of draw_reach."""
    colours = ScalarMappable(LogNorm(LEAST, MOST), COLOURS)
    label = "|gate| (1: passes unchanged)"
    figure.colorbar(colours, label=label, extend="both", **place)


def _plain(gate: Tensor) -> Tensor:
    """A copy on the CPU that requires gradients."""
    return gate.detach().cpu().clone()
