"""Networks for the tests of checkpointing: what is hard to compute twice in the same way, as small as it gets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.models import ResNet, ViT


def resnet() -> nn.Module:
    """Batch norm and dropout in every block."""
    net = ResNet(depth=14, width=4)
    for stage in net.stages:
        for block in stage:  # type: ignore[attr-defined]
            block.bn2 = nn.Sequential(block.bn2, nn.Dropout(0.1))
    return net


def vit() -> nn.Module:
    return ViT(dim=16, depth=5, heads=2, dropout=0.1)


class GPT(nn.Module):
    """Pre-norm decoder; each block gets the causal mask and a random state of its own, and weights are tied."""

    def __init__(self, depth: int = 5, dim: int = 16, heads: int = 2, vocabulary: int = 32, context: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.zeros(context, dim))
        self.blocks = nn.ModuleList(_GPTBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool).tril(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = functional.dropout(self.embedding(tokens) + self.position, 0.1, self.training)
        for block in self.blocks:
            hidden = block(hidden, mask=self.mask)
        logits: Tensor = self.head(self.norm(hidden)).flatten(0, 1)
        return logits


class _GPTBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(0.1))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, dim = hidden.shape
        parts = self.qkv(self.norm1(hidden)).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1 if self.training else 0.0)
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(batch, tokens, dim))
        return hidden + self.mlp(self.norm2(hidden))


def gpt() -> nn.Module:
    return GPT()


class Layers(nn.Module):
    """Like layers in a list that the forward walks through; an input of three quarters of a layer's width."""

    def __init__(self, depth: int = 36, width: int = 64) -> None:
        super().__init__()
        widths = [width * 3 // 4] + [width] * depth
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


IMAGES = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(32, (6, 12), generator=torch.Generator().manual_seed(5))
NETS = {"resnet": (resnet, IMAGES), "vit": (vit, IMAGES), "gpt": (gpt, TOKENS)}
