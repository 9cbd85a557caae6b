"""Modules for the ZeRO checkpoint tests: plain, frozen, tied and LoRA-like, with several parameters in a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.optim import LAMB

WIDTH = 6


class Plain(LightningModule):
    """Three blocks and a head: 10 parameters in two groups, a buffer, an integer buffer, and extra state."""

    def __init__(self, configure: Callable[[Any], Optimizer], seed: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.build()
        self.register_buffer("scale", torch.tensor(1.0 + seed / 100))
        self.register_buffer("large", torch.tensor(2**53 + seed))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.told = Told(seed)
        self._configure = configure

    def build(self) -> None:
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        out: Tensor = self.head(x) * self.scale
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self._configure(self)


class Told(nn.Module):
    """Has extra state, which is no tensor."""

    def __init__(self, word: int) -> None:
        super().__init__()
        self.word = word

    def get_extra_state(self) -> dict[str, int]:
        return {"word": self.word}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.word = state["word"]


class Frozen(Plain):
    """A frozen layer and a frozen bias among trained parameters, all in the groups of the optimizer."""

    def build(self) -> None:
        super().build()
        self.embed = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.blocks[1].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.embed(x))


class Tied(Plain):
    """One block's weight is another one's."""

    def build(self) -> None:
        super().build()
        self.blocks[2].weight = self.blocks[0].weight


class Adapter(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


class Adapted(Plain):
    """LoRA-like: every base layer frozen, adapters and head trained, and the optimizer given the trained ones alone."""

    def build(self) -> None:
        super().build()
        self.stem = Adapter(self.stem)
        self.blocks = nn.ModuleList(Adapter(block) for block in self.blocks)


MODELS: dict[str, type[Plain]] = {"plain": Plain, "frozen": Frozen, "tied": Tied, "adapted": Adapted}


def groups(module: Plain, **head: Any) -> list[dict[str, Any]]:
    keep = [p for p in module.parameters() if p.requires_grad or not isinstance(module, Adapted)]
    head_parameters = set(module.head.parameters())
    return [
        {"params": [p for p in keep if p not in head_parameters]},
        {"params": [p for p in keep if p in head_parameters], **head},
    ]


def adamw(module: Plain) -> Optimizer:
    return torch.optim.AdamW(groups(module, lr=0.02), lr=0.01, weight_decay=0.1)


def momentum(module: Plain) -> Optimizer:
    return torch.optim.SGD(groups(module, lr=0.02), lr=0.05, momentum=0.9)


def lamb(module: Plain) -> Optimizer:
    return LAMB(groups(module, lr=0.02), lr=0.01)


def adam(module: Plain) -> Optimizer:
    return torch.optim.Adam(groups(module, lr=0.02), lr=0.01, amsgrad=True)


def nadam(module: Plain) -> Optimizer:
    return torch.optim.NAdam(groups(module, lr=0.02), lr=0.01)


def radam(module: Plain) -> Optimizer:
    return torch.optim.RAdam(groups(module, lr=0.02), lr=0.01)


def adamax(module: Plain) -> Optimizer:
    return torch.optim.Adamax(groups(module, lr=0.02), lr=0.01)


def asgd(module: Plain) -> Optimizer:
    return torch.optim.ASGD(groups(module, lr=0.02), lr=0.05)


OPTIMIZERS: dict[str, Callable[[Plain], Optimizer]] = {
    "adamw": adamw,
    "momentum": momentum,
    "lamb": lamb,
    "adam": adam,
    "nadam": nadam,
    "radam": radam,
    "adamax": adamax,
    "asgd": asgd,
}
