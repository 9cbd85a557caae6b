"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) made of torch's own encoder layers, with the
average over the patches in place of a class token."""

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """Pre-norm transformer encoder over square patches.

    Args:
        image_size: Height and width of the images, in pixels.
        patch: Height and width of a patch, in pixels; it divides `image_size`.
        dim: Width of the tokens.
        depth: Encoder layers.
        heads: Attention heads; they divide `dim`.
        mlp_ratio: Width of the feed-forward part, in multiples of `dim`.
        dropout: Probability.
        num_classes: Length of the output.
        in_channels: Channels of the input.

    Raises:
        ValueError: `patch` does not divide `image_size`.
    """

    def __init__(
        self,
        image_size: int = 28,
        patch: int = 7,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"patch={patch} must divide image_size={image_size}")
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch, patch)
        self.position_embedding = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, dim))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, round(dim * mlp_ratio), dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch x num_classes) of images (batch x in_channels x image_size x image_size)."""
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.classifier(self.norm(tokens).mean(dim=1))
        return logits
