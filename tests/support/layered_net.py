"""The toy problem with a net that has layers: stem, two blocks, head, each with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW

from tests.support.toy import Toy


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


class Net(nn.Module):
    """Stem, two blocks, head: four layers, with and without weight decay eight groups (the stem has a bias too)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Deep(Toy):
    """The toy problem with a net that has layers, as an attribute of the module."""

    def __init__(self, configure: Callable[[LightningModule], Any] | None = None) -> None:
        super().__init__(configure)
        del self.body, self.head
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


NAMES = [
    f"{layer}{suffix}" for layer in ("stem", "net.blocks.0", "net.blocks.1", "head") for suffix in ("", "/no_decay")
]
FACTORS = [0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
"""decay=0.5: the head at distance 0, then the blocks from above, the stem last."""


def adamw(module: LightningModule) -> AdamW:
    return AdamW(module.parameters(), lr=0.1, weight_decay=0.01)
