"""A plain PyTorch loop: one PLSTM1d layer learns the parity of bits and keeps it at any length.

Four lanes let the state of a head rotate and reflect; nothing is written to it and nothing decays.
"""

import torch
from torch import Tensor, nn

from plstm import PLSTM1d


class Parity(nn.Module):
    """Logits (B, L, 2) of bits (B, L): whether the number of ones so far is even or odd."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        state = {"lanes": 4, "v_dim": 4, "qk_dim": 0, "expansion": 0, "conv_width": 0}
        start = {"source_bias": -20.0, "transition_bias": 3.0}  # sigmoid(-20) = 0, tanh(15) = 1
        self.embed, self.head = nn.Embedding(2, dim), nn.Linear(dim, 2)
        self.mixer = PLSTM1d(dim, num_heads=4, **state, **start)

    def forward(self, bits: Tensor) -> Tensor:
        return self.head(self.mixer(self.embed(bits)))


def main(steps: int = 120, lengths: tuple[int, ...] = (32, 128, 512)) -> None:
    torch.manual_seed(0)
    net = Parity()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(steps):
        bits = torch.randint(2, (64, 4 + 28 * step // steps))  # 4 to 31 bits
        loss = nn.functional.cross_entropy(net(bits).mT, bits.cumsum(1) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for length in lengths:
        bits = torch.randint(2, (64, length))
        with torch.no_grad():
            right = (net(bits).argmax(-1) == bits.cumsum(1) % 2).float().mean()
        print(f"{length} bits: share of right parities {right:.3f}")


if __name__ == "__main__":
    main()
