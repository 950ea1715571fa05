"""The definition of the recurrence on a sequence: a loop over positions."""

import torch
from torch import Tensor

from plstm.ops.gates import Gates
from plstm.ops.lanes import accept_one_lane


@accept_one_lane
def plstm_1d_naive(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Equation (5), step by step; shapes as in `plstm_1d`."""
    source, transition, mark, direct = gates
    outs = []
    for t in range(q.shape[1]):
        read = torch.einsum("bhkvj,bhk->bhvj", state, q[:, t])  # C^T q for every lane
        own = (q[:, t] * k[:, t]).sum(-1)[..., None, None] * v[:, t]  # (q . k) v, (B, H, V, I)
        outs.append(
            torch.einsum("bhoj,bhvj->bhvo", mark[:, t], read)
            + torch.einsum("bhoi,bhvi->bhvo", direct[:, t], own)
        )
        update = torch.einsum("bhji,bhk,bhvi->bhkvj", source[:, t], k[:, t], v[:, t])
        state = torch.einsum("bhji,bhkvi->bhkvj", transition[:, t], state) + update
    return scale * torch.stack(outs, 1), state
