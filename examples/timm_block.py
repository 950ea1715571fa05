"""A block for timm's VisionTransformer: PLSTM2d in place of attention, on handwritten digits.

With timm: VisionTransformer(block_fn=PLSTMBlock, class_token=False, pos_embed="none",
global_pool="max"). A small net of the same form does without timm here.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from plstm import PLSTM2d


class PLSTMBlock(nn.Module):
    """Maps tokens (B, N, dim) of square images to the same shape; ignores options of attention."""

    def __init__(self, dim, num_heads, mlp_ratio=4.0, depth=0, **ignored) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = PLSTM2d(dim, num_heads, mode="PD"[depth % 2])
        inner = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        x = x + self.mixer(self.norm1(x).unflatten(1, (side, side))).flatten(1, 2)
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.patch_embed, self.head = nn.Conv2d(1, dim, 2, stride=2), nn.Linear(dim, 10)
        self.blocks = nn.Sequential(*(PLSTMBlock(dim, 4, 2.0, depth=depth) for depth in range(2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch_embed(images).flatten(2).mT).amax(1))


def main(epochs: int = 6) -> None:
    torch.manual_seed(0)
    digits = load_digits()  # 1797 images of 8 x 8 pixels, shipped with scikit-learn
    images, labels = torch.tensor(digits.images[:, None]).float() / 16, torch.tensor(digits.target)
    test, train = torch.randperm(len(labels)).tensor_split([360])
    net = SmallViT()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (net(images[test]).argmax(1) == labels[test]).float().mean()
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
