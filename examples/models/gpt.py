"""A small pre-norm transformer that says which byte comes next (Radford et al. 2019, GPT-2, without its tokens)."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class GPT(nn.Module):
    """A causal transformer over bytes, with fused attention.

    Args:
        dim: Width of the tokens.
        depth: Blocks.
        heads: Attention heads; they divide `dim`.
        context: The longest text, in tokens.
        tokens: How many there are; 256 for bytes.
    """

    def __init__(self, dim: int = 128, depth: int = 4, heads: int = 4, context: int = 128, tokens: int = 256) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(GPTBlock(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, tokens)

    def forward(self, text: Tensor) -> Tensor:
        """Logits (batch x length x tokens) of text (batch x length)."""
        x = self.tokens(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class GPTBlock(nn.Module):
    """Pre-norm attention and feed-forward part."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch x length x dim) to the same."""
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))
