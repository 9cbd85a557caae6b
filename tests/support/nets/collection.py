"""How the right order of a network's layers is written down, and small blocks to make networks of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """A network and the order of its layers.

    Args:
        make: builds it.
        chains: names from input to top, one layer after the other; the last has distance 0. ``a|b`` are at one height,
            ``blocks.0-2`` stands for three layers. A name is the beginning of parameters' names.
        rising: names of which none is farther from the top than the one before, and the last is nearer than the first:
            for what can be counted in more than one way.
    """

    make: Callable[[], nn.Module]
    chains: tuple[str, ...]
    rising: tuple[str, ...]


NETS: dict[str, Net] = {}


def right(*chains: str, rising: tuple[str, ...] = (), name: str = "") -> Callable[[Any], Any]:
    """Adds a class, or a function that makes a network, to the collection."""

    def add(make: Any) -> Any:
        NETS[name or make.__name__] = Net(make, chains, rising)
        return make

    return add


def layers_of(chain: str) -> list[list[str]]:
    """Names of each layer of a chain."""
    found: list[list[str]] = []
    for word in chain.split():
        numbers = re.search(r"(\d+)-(\d+)", word)
        if numbers is None:
            found.append(word.split("|"))
            continue
        first, last = int(numbers.group(1)), int(numbers.group(2))
        for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
            found.append([name.replace(numbers.group(), str(number)) for name in word.split("|")])
    return found


def wrong_places(name: str, distance: dict[str, int]) -> list[str]:
    """What is not as it should be, in words.

    Args:
        name: of the network.
        distance: of each parameter from the top.
    """

    def of(prefix: str) -> set[int]:
        found = {d for parameter, d in distance.items() if parameter == prefix or parameter.startswith(f"{prefix}.")
                 or (prefix.endswith("*") and parameter.startswith(prefix[:-1]))}  # fmt: skip
        assert found, f"{name}: no parameter is called {prefix}"
        return found

    wrong: list[str] = []
    for chain in NETS[name].chains:
        for expected, names in enumerate(reversed(layers_of(chain))):
            wrong += [f"{n} at {sorted(of(n))}, not {expected}" for n in names if of(n) != {expected}]
    for chain in NETS[name].rising:
        parts = [part for names in layers_of(chain) for part in names]
        for lower, upper in pairwise(parts):
            if max(of(upper)) > min(of(lower)):
                wrong.append(
                    f"{upper} at {sorted(of(upper))} is farther from the top than {lower} at {sorted(of(lower))}"
                )
        if max(of(parts[-1])) >= min(of(parts[0])):
            wrong.append(f"{parts[-1]} is not above {parts[0]}")
    return wrong


# ---------------------------------------------------------------------- blocks
class Layer(nn.Module):
    """A residual block."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        y: Tensor = x + self.down(self.up(self.norm(x)).relu())
        for other in more:
            y = y + other
        return y


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, a: int = 4, b: int = 4) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)).relu()
        return y


class Twice(nn.Module):
    """Two convolutions, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Conv(), Conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x))
        return y


class Tower(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(count))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, *more)
        y: Tensor = self.norm(x)
        return y


def layers(count: int = 2, make: Callable[[], nn.Module] = Layer) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(count))


def lin() -> nn.Linear:
    return nn.Linear(4, 4)


def must_decide(x: Tensor) -> None:
    """What no symbol goes through."""
    if np.asarray(x.detach().cpu()).sum() > 1e9:
        raise ValueError("too large")
