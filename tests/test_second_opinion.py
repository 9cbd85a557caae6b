"""The second opinion on layers: it says nothing about right ones, and names what is wrong in wrong ones."""

from __future__ import annotations

import random
import warnings
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lr.layers import Layer, LayerMap, discover
from lightning_lr.layers.second_opinion import contradictions
from tests.support.nets import NETS
from tests.support.nets.collection import Tower, layers, lin
from tests.support.wrong_maps import WRONG


def placed(model: nn.Module, *names: str) -> LayerMap:
    """Layers from input to head by the beginnings of names, ``|`` between; one with ``-`` is beside the last.

    ``name=`` before them calls a layer otherwise.
    """
    found, depth = list[Layer](), -1
    for name in names:
        depth += not name.startswith("-")
        called, _, starting = name.lstrip("-").rpartition("=")
        starts = starting.split("|")
        inside = [n for n, _ in model.named_parameters() if any(n == s or n.startswith(f"{s}.") for s in starts)]
        assert inside, name
        found.append(Layer(called or starting, depth, tuple(inside)))
    assert sum(len(layer.parameters) for layer in found) == len(list(model.parameters()))
    return LayerMap(tuple(found), "repeated blocks")


class Routed(nn.Module):
    """A gate between the blocks, a list of two in front of them, and one head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.blocks = nn.Embedding(9, 4), layers(2), layers(3)
        self.gate, self.out, self.bias = lin(), lin(), nn.Parameter(torch.zeros(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.first:
            x = block(x)
        x = self.blocks[0](x)
        x = x * self.gate(x).sigmoid()
        x = self.blocks[2](self.blocks[1](x, self.bias))
        out: Tensor = self.out(x)
        return out


RIGHT = ("embed", "first.0", "first.1", "blocks.0|gate", "blocks.1|bias", "blocks.2", "out")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (RIGHT, []),
        (
            ("embed", "first.0", "first.1", "blocks.0", "blocks.1|bias", "blocks.2", "out|gate"),
            [
                "blocks.1 reads what gate makes, but is taken to be below it",
                "blocks.2 reads what gate makes, but is taken to be below it",
            ],
        ),
        (
            ("embed|gate", "first.0", "first.1", "blocks.0", "blocks.1|bias", "blocks.2", "out"),
            ["gate reads what blocks.0 makes, but is taken to be below it"],
        ),
        (
            ("embed", "first.0", "first.1", "blocks.0|gate|bias", "blocks.2", "blocks.1", "out"),
            [
                "blocks.2 reads what blocks.1 makes, but is taken to be below it",
                "blocks.2 is taken to be 2 below what reads it",
            ],
        ),
        (
            ("embed", "first.0", "first.1", "blocks.0|gate", "blocks.1", "blocks.2", "out|bias"),
            [
                "blocks.1 reads what bias makes, but is taken to be below it",
                "blocks.2 reads what bias makes, but is taken to be below it",
            ],
        ),
        (
            ("embed|first", "blocks.0|gate", "blocks.1|bias", "blocks.2", "out"),
            ["first.1 reads what first.0 makes, but both are taken for one layer"],
        ),
        (
            ("embed", "first.0", "-first.1", "blocks.0|gate", "blocks.1|bias", "blocks.2", "out"),
            ["first.1 reads what first.0 makes, but is taken to be next to it"],
        ),
    ],
)
def test_what_is_read_is_below(names: tuple[str, ...], said: list[str]) -> None:
    model = Routed()
    assert contradictions(model, placed(model, *names)) == said


class Two(nn.Module):
    """Two towers, and what reads both."""

    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__()
        self.left, self.right, self.out = Tower(2), other or Tower(2), lin()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.out(self.left(a) + self.right(b))
        return out


def test_towers_end_at_one_height() -> None:
    model = Two()
    beside = ("left.embed", "-right.embed", "left.layers.0", "-right.layers.0", "left.layers.1|left.norm")
    assert contradictions(model, placed(model, *beside, "-right.layers.1|right.norm", "out")) == []
    stack = ("left.embed", "left.layers.0", "left.layers.1|left.norm", "right.embed", "right.layers.0")
    assert contradictions(model, placed(model, *stack, "right.layers.1|right.norm", "out")) == [
        "left.layers.1|left.norm is taken to be 4 below what reads it",
        "left.norm and right.norm, read by the same parts, are taken to be at two heights",
    ]


class Reader(nn.Module):
    """A decoder that reads tokens of its own, and what an encoder made in another argument."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 4), layers(3)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, memory)
        return x  # type: ignore[no-any-return]


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out = Tower(2), Reader(), lin()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        out: Tensor = self.out(self.decoder(target, self.encoder(source)))
        return out


def test_a_decoder_with_tokens_of_its_own_may_stand_beside_the_encoder_that_it_reads() -> None:
    model = EncoderDecoder()
    names = (
        "decoder.embed", "decoder.layers.0", "-encoder.embed", "decoder.layers.1", "-encoder.layers.0",
        "decoder.layers.2", "-encoder.layers.1|encoder.norm", "out",
    )  # fmt: skip
    assert contradictions(model, placed(model, *names)) == []


class Short(nn.Module):
    """One block in a list, then several."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.local, self.deep, self.out = lin(), layers(1), layers(2), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in (*self.local, *self.deep):
            x = block(x)
        out: Tensor = self.out(x)
        return out


def test_a_block_of_a_list_is_no_part_of_the_stem() -> None:
    model = Short()
    assert contradictions(model, placed(model, "embed", "local", "deep.0", "deep.1", "out")) == []
    assert contradictions(model, placed(model, "stem=embed|local", "deep.0", "deep.1", "out")) == [
        "local holds a block like those of deep, but is taken for a part of stem"
    ]


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(9, 4), nn.LSTM(4, 4, 2), lin()

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(self.embed(ids))[0])
        return out


def test_layers_of_a_recurrent_network_are_in_their_order() -> None:
    model = Stacked()
    first, second = ("|".join(n for n, _ in model.named_parameters() if n.endswith(f"_l{i}")) for i in range(2))
    assert contradictions(model, placed(model, "embed", first, second, "out")) == []
    assert contradictions(model, placed(model, "embed", second, first, "out")) == [
        "the layers of rnn are taken to be 1, 2 from the top"
    ]


class Unrunnable(nn.Module):
    """A part in the middle whose code no symbol goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.out = layers(2), lin()

    def forward(self, x: Tensor) -> Tensor:
        out = self.out(torch.from_numpy(x.numpy()))
        for block in self.blocks:
            out = block(out)
        return out  # type: ignore[no-any-return]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.part, self.above = layers(2), Unrunnable(), layers(2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.below:
            x = block(x)
        x = self.part(x)
        for block in self.above:
            x = block(x)
        return x


def test_what_cannot_be_run_is_one_part() -> None:
    model = Around()
    inner = ("part.blocks.0", "part.blocks.1|part.out")
    right = ("below.0", "below.1", *inner, "above.0", "above.1")
    assert contradictions(model, placed(model, *right)) == []
    assert contradictions(model, placed(model, "below.0", "below.1", "above.0", "above.1", *inner)) == [
        "above.0 reads what part makes, but is taken to be below it",
        "above.1 reads what part makes, but is taken to be below it",
        "above.1 is taken to be 2 below the top, though nothing reads it",
    ]


class Detached(nn.Module):
    """An output after each block; the next block reads of it what no gradient goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.boxes = layers(3), layers(3, lin)

    def forward(self, x: Tensor) -> list[Tensor]:
        found, box = [], x
        for block, head in zip(self.blocks, self.boxes, strict=True):
            x = block(x, box.detach())
            box = head(x)
            found.append(box)
        return found


def test_what_is_detached_is_no_way() -> None:
    model = Detached()
    assert contradictions(model, placed(model, "blocks.0", "blocks.1", "blocks.2", "boxes")) == []


class Sided(nn.Module):
    """A part that takes what the first block makes to the output, and one that draws tokens for another network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.side, self.out = layers(5), lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:]:
            x = block(x)
        out: Tensor = self.out(x + self.side(first))
        return out


def test_a_part_is_next_to_what_it_reads_or_to_what_reads_it() -> None:
    model = Sided()
    blocks = [f"blocks.{i}" for i in range(5)]
    for at in (0, 1, 4):
        names = [f"{name}|side" if index == at else name for index, name in enumerate(blocks)]
        assert contradictions(model, placed(model, *names, "out")) == []
    assert contradictions(model, placed(model, *blocks[:2], "blocks.2|side", *blocks[3:], "out")) == [
        "side is taken to be next to nothing that it reads or that reads it"
    ]


class Drawn(nn.Module):
    """Tokens that one network draws are read by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.small, self.large = nn.Embedding(9, 4), layers(1), layers(3)
        self.guess, self.out = nn.Linear(4, 9), lin()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        guess = self.guess(self.small[0](self.embed(ids)))
        x = self.embed(guess.argmax(-1))
        for layer in self.large:
            x = layer(x)
        return guess, self.out(x)


def test_a_choice_is_no_way() -> None:
    model = Drawn()
    names = ("embed", "large.0", "large.1", "-small.0", "large.2", "out|guess")
    assert contradictions(model, placed(model, *names)) == []


class Shared(nn.Module):
    """One block after every other one, each time with a small part of its own for the place."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Module()
        self.common.attn, self.common.mlp, self.common.adapters = lin(), lin(), layers(2, lin)
        self.first, self.second = nn.Module(), nn.Module()
        self.first.block, self.second.block = self.common, self.common
        self.embed, self.layers, self.out = lin(), layers(2), lin()
        del self.common

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer, holder, index in zip(self.layers, (self.first, self.second), (0, 1), strict=True):
            block: Any = holder.block
            y = layer(x)
            x = block.mlp(block.attn(y) + block.adapters[index](y))
        out: Tensor = self.out(x)
        return out


def test_a_shared_block_is_in_the_lowest_of_its_places() -> None:
    model = Shared()
    assert contradictions(model, placed(model, "embed", "layers.0|first", "layers.1", "out")) == []


def test_nothing_of_the_model_is_touched() -> None:
    model = Routed()
    before = {name: (id(value), dict(vars(value))) for name, value in model.named_modules()}
    contradictions(model, placed(model, "embed|gate", *RIGHT[1:3], "blocks.0", *RIGHT[4:]))
    assert {name: (id(value), dict(vars(value))) for name, value in model.named_modules()} == before
    assert model(torch.tensor([1, 2])).shape == (2, 4)


def test_contradictions_are_in_the_warning_with_the_table() -> None:
    with pytest.warns(UserWarning, match="backbone.layer2.1 is taken to be 3 below what reads it") as said:
        discover(NETS["BiSeNet: a spatial path beside a context path"].make())
    assert "from the top  layer" in str(said[0].message)


@pytest.mark.parametrize(("way", "share"), {
    "two layers in each other's place": 0.95, "a layer in the head": 0.93, "a layer in the stem": 0.92,
    "a list in one layer": 0.88, "a tower below another one": 0.8,
}.items())  # fmt: skip
def test_most_wrong_maps_are_seen(way: str, share: float) -> None:
    """Right maps of networks written by hand, each wrong in one place; every second network, and all with towers."""
    tried, missed = 0, list[str]()
    for index, (name, net) in enumerate(sorted(NETS.items())):
        if index % 2 and way != "a tower below another one":
            continue
        model: Any = net.make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            right = discover(model)
        wrong = WRONG[way](model, right, random.Random(zlib.crc32(name.encode())))
        if wrong is None or contradictions(model, right):
            continue
        tried += 1
        if not contradictions(model, wrong):
            missed.append(name)
    assert tried >= 30
    assert 1 - len(missed) / tried >= share, missed
