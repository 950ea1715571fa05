"""Image model: patches, blocks of any mixer over the grid of patches, a head."""

from collections.abc import Sequence

from torch import Tensor, nn

from plstm.checks import check_choice, check_positive, check_valid
from plstm.models.pretrained import Pretrained
from plstm.modules.block import MixerFactory, build_blocks
from plstm.modules.init import reset_children, small_init_
from plstm.modules.norm import RMSNorm
from plstm.modules.pooling import POOLINGS
from plstm.modules.position import LearnedPosition2d
from plstm.modules.stem import ConvStem


class VisionModel(Pretrained, nn.Module):
    """Classifies images of any size divisible by the patch.

    With mixers [PLSTM2d P, PLSTM2d D] it is pLSTM-Vis, with [SoftmaxAttention] a ViT.

    Args:
        in_dim: Channels of the image.
        out_dim: Number of classes.
        dim: Model width.
        depth: Number of blocks.
        mixers: Factories called with `dim`, cycled over the depth.
        patch_size: Side of a square patch in pixels.
        position_grid: Rows and columns of learned position encodings, interpolated for other grids;
            None for none.
        stem: Channels of the 3 x 3 convolutions of the stem, without the last, at least one for
            patch_size 4 and three for 16; empty for a single patch-embedding convolution.
        pooling: "corners" concatenates the four corner tokens, "mean" averages all tokens, "max"
            takes the maximum of each channel.
        feed_forward_ratio: Hidden width of the feed-forward part relative to `dim`; 0 for none.
        dropout: Dropout on every branch.
        drop_path: Drop-path probability of the last block; increases linearly with depth.
        layer_scale: Initial value of a learned scale on every branch, None for no scale.
        bias: Biases in stem, patch embedding and feed-forward parts. Without them, and with
            PLSTM2d(bias=False), tokens of black pixels stay 0, so that with max pooling a black
            margin around the image has no effect.

    Raises:
        ValueError: sizes below 1, no mixers, unknown pooling, a stem too short for the patch_size.

    Source: arXiv 2506.11997, the vision model.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int,
        depth: int,
        mixers: Sequence[MixerFactory],
        patch_size: int = 16,
        position_grid: tuple[int, int] | None = None,
        stem: Sequence[int] = (),
        pooling: str = "corners",
        feed_forward_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_choice("VisionModel", "pooling", pooling, tuple(POOLINGS))
        check_positive(
            "VisionModel", in_dim=in_dim, out_dim=out_dim, dim=dim, patch_size=patch_size
        )
        self.in_dim, self.patch_size, self.pooling = in_dim, patch_size, pooling
        self.embed = (
            ConvStem(in_dim, dim, patch_size, stem, bias)
            if stem
            else nn.Conv2d(in_dim, dim, patch_size, stride=patch_size, bias=bias)
        )
        self.position = LearnedPosition2d(dim, *position_grid) if position_grid else None
        self.blocks = build_blocks(
            dim,
            depth,
            mixers,
            feed_forward_ratio=feed_forward_ratio,
            dropout=dropout,
            drop_path=drop_path,
            layer_scale=layer_scale,
            bias=bias,
        )
        self.norm = RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim * (4 if pooling == "corners" else 1), out_dim)
        small_init_(self.head)

    def reset_parameters(self) -> None:
        """Initialize all parameters."""
        reset_children(self)
        small_init_(self.head)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (B, out_dim) of images (B, in_dim, height, width).

        Images of different sizes can share a batch on a common canvas: valid (B, Y, X), torch.bool,
        is True at the patches of the image, at least one of them. The logits equal those of the
        image alone, if mixers accept `valid`, patches do not overlap and there are no position
        encodings.

        Raises:
            ValueError: images have a wrong shape, or the model does not support valid.
        """
        self._check_images(images)
        blocks = {}
        if valid is not None:
            images = self._without_margins(images, valid)
            blocks["valid"] = valid
        x = self.embed(images).movedim(1, -1)  # (B, Y, X, dim)
        if self.position is not None:
            x = self.position(x)
        for block in self.blocks:
            x = block(x, **blocks)
        return self.head(POOLINGS[self.pooling](self.norm(x), valid))

    def _without_margins(self, images: Tensor, valid: Tensor) -> Tensor:
        """Set the pixels of all invalid patches to zero."""
        if self.position is not None or isinstance(self.embed, ConvStem):
            raise ValueError(
                "VisionModel: valid needs patches that do not overlap and no position encodings, "
                "which depend on the canvas, not on the image; set stem=() and position_grid=None"
            )
        patches = images.shape[0], *(n // self.patch_size for n in images.shape[2:])
        check_valid("VisionModel", valid, patches, images.device)
        pixels = valid.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)
        return images.masked_fill(~pixels[:, None], 0)

    def _check_images(self, images: Tensor) -> None:
        fits = images.ndim == 4 and images.shape[1] == self.in_dim
        if not fits or any(n % self.patch_size or n == 0 for n in images.shape[2:]):
            raise ValueError(
                f"VisionModel: images must have shape (B, {self.in_dim}, height, width) with sides "
                f"divisible by the patch size {self.patch_size}, got {tuple(images.shape)}; "
                "resize or pad them"
            )
