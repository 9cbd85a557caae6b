"""Code that no symbol goes through: it decides by values, iterates over its input, or leaves torch."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.nets.collection import Layer, Tower, layers, lin, must_decide, right


@right("entry low.0-1 high.0-1 exit", name="stages out of order, decided by a value")
class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.exit, self.high, self.low, self.entry = lin(), layers(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 10:
            x = x / 10
        x = self.entry(x)
        for layer in self.low:
            x = layer(x)
        for layer in self.high:
            x = layer(x)
        y: Tensor = self.exit(x)
        return y


@right("entry low.0-1 high.0-1 exit", name="through helpers, decided by a value")
class ThroughHelpers(ByValue):
    def forward(self, x: Tensor) -> Tensor:
        must_decide(x)
        features = self.features(x)
        return self.finish(features)

    def finish(self, x: Tensor) -> Tensor:
        for layer in self.high:
            x = layer(x)
        y: Tensor = self.exit(x)
        return y

    def features(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for layer in self.low:
            x = layer(x)
        return x


@right(
    "ham.embed ham.layers.0-1 ham.norm|eggs.embed|eggs.layers.0 eggs.layers.1 out",
    name="towers in series, decided by a value",
)
class TowersByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.eggs, self.ham = lin(), Tower(), Tower()

    def forward(self, x: Tensor) -> Tensor:
        must_decide(x)
        x = self.ham(x)
        x = self.eggs(x)
        y: Tensor = self.out(x)
        return y


@right("ham.embed ham.layers.0-1 out", "eggs.embed eggs.layers.0-1 out", name="towers side by side, decided by a value")
class TwinsByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.eggs, self.ham = lin(), Tower(), Tower()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        must_decide(x)
        a = self.ham(x)
        b = self.eggs(y)
        z: Tensor = self.out(torch.cat([a, b], 1))
        return z


@right("convert blocks.0-1 out", name="lists of images")
class ListsOfImages(nn.Module):
    """A detector's habit: images as a list, targets as a list of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.convert = lin(), layers(), lin()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        x = torch.stack([self.convert(image) for image in images])
        for block in self.blocks:
            x = block(x)
        found = self.out(x)
        if targets is None:
            return found
        return {"loss": sum((f - t["y"]).pow(2).mean() for f, t in zip(found, targets, strict=True))}


@right("convert blocks.0-1 out", name="a loop until it is good enough")
class Until(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.convert = lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convert(x)
        steps = 0
        while x.norm() > 1 and steps < 3:
            for block in self.blocks:
                x = block(x)
            steps += 1
        y: Tensor = self.out(x)
        return y


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@right("convert blocks.0-1 out", name="an autograd function")
class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.convert = lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = Double.apply(self.convert(x))
        for block in self.blocks:
            x = Double.apply(block(x))
        y: Tensor = self.out(x)
        return y


@right("convert blocks.0-1 out", name="NumPy in between")
class ThroughNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.convert = lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convert(x)
        size = int(x.detach().abs().cpu().numpy().max())
        for block in self.blocks:
            x = block(x) / (1 + size)
        y: Tensor = self.out(x)
        return y


@right("convert blocks.0-2 out", name="blocks in random order")
class RandomOrder(nn.Module):
    """Python's own generator decides which block is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.convert = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convert(x)
        for block in self.blocks:
            if random.random() < 0.9:
                continue
            x = block(x)
        y: Tensor = self.out(x)
        return y


@right("source.embed source.layers.0-1 bridge|sink.embed|sink.layers.0 sink.layers.1 out", name="kinds of step")
class KindsOfStep(nn.Module):
    """What is called depends on an argument without a default."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.sink, self.bridge, self.source = lin(), Tower(), lin(), Tower()

    def forward(self, x: Tensor, mode: str) -> Tensor:
        if mode == "pretrain":
            return self.source(x)
        y: Tensor = self.out(self.sink(self.bridge(self.source(x))))
        return y


@right("net.embed net.layers.0-1 top", name="registered twice")
class RegisteredTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top, self.net = Layer(), Tower()
        self.all = nn.ModuleList([self.net, self.top])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.all:
            x = part(x)
        return x
