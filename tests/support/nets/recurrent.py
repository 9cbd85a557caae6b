"""Networks that read a sequence step by step, or a tree."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.nets.collection import Layer, layers, lin, right


@right("emb rnn.*_l0 rnn.*_l1 rnn.*_l2 out".replace("rnn.*_", "rnn.weight_ih_"))
class StackedRecurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.emb, self.rnn = lin(), nn.Embedding(9, 4), nn.LSTM(4, 4, 3, batch_first=True)

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        y: Tensor = self.out(self.rnn(self.emb(x), state)[0][:, -1])
        return y


@right("emb rnns.0-2 out", "norms.0-2 out")
class ListOfRecurrent(nn.Module):
    """AWD-LSTM: a list of LSTMs of one layer, with norms and dropout of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnns = layers(3, lambda: nn.LSTM(4, 4, 1))
        self.norms, self.drops = layers(3, partial(nn.LayerNorm, 4)), layers(3, lambda: nn.Dropout(0.1))
        self.emb, self.out = nn.Embedding(9, 4), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        for rnn, norm, drop in zip(self.rnns, self.norms, self.drops, strict=True):
            x, _ = rnn(x)
            x = drop(norm(x))
        y: Tensor = self.out(x)
        return y


@right("emb cells.0-2 out")
class CellsUnrolledInTime(nn.Module):
    """The number of steps is that of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.cells, self.emb = lin(), layers(3, lambda: nn.GRUCell(4, 4)), nn.Embedding(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        states = [x.new_zeros(x.shape[0], 4) for _ in self.cells]
        for t in range(x.shape[1]):
            h = x[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = h = cell(h, states[i])
        y: Tensor = self.out(states[-1])
        return y


@right("emb reader.weight_ih_l0 reader.weight_ih_l1 writer.weight_ih_l0 writer.weight_ih_l1 out")
class ReaderAndWriter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.writer, self.reader, self.emb, self.out = nn.GRU(4, 4, 2), nn.GRU(4, 4, 2), nn.Embedding(9, 4), lin()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.reader(self.emb(source))
        y: Tensor = self.out(self.writer(self.emb(target), state)[0])
        return y


@right("emb forwards.0-1 out", "backwards.0-1 out")
class TwoDirections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(9, 4), lin()
        self.forwards, self.backwards = (layers(2, lambda: nn.GRU(4, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        for one, other in zip(self.forwards, self.backwards, strict=True):
            x = torch.cat([one(x)[0], other(x.flip(0))[0].flip(0)], -1)
        y: Tensor = self.out(x)
        return y


@right("emb cell out")
class TreeOfCells(nn.Module):
    """Recursion over the children of a node, as long as there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.cell, self.emb = lin(), Layer(), lin()

    def node(self, tree: Any) -> Tensor:
        inside = [self.node(child) for child in tree.children]
        y: Tensor = self.cell(self.emb(tree.value), *inside)
        return y

    def forward(self, tree: Any) -> Tensor:
        y: Tensor = self.out(self.node(tree))
        return y


@right("start dilated.0-2 out", "gates.0-2 out", name="dilated convolutions with gates and skips",
       rising=("start dilated.0 dilated.1 dilated.2 out",))  # fmt: skip
class Dilated(nn.Module):
    """WaveNet: five lists, and every layer adds to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.out = lin(), lin()
        self.dilated, self.gates, self.residual, self.skips = (layers(3, lin) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for i in range(3):
            h = self.dilated[i](x).tanh() * self.gates[i](x).sigmoid()
            total = total + self.skips[i](h)
            x = x + self.residual[i](h)
        y: Tensor = self.out(total)
        return y


@right("encoder.0-1 joiner", "predictor.emb predictor.rnn joiner", name="a transducer")
class Transducer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.joiner = lin()
        self.encoder = layers()
        self.predictor = nn.ModuleDict({"emb": nn.Embedding(9, 4), "rnn": nn.GRU(4, 4)})

    def forward(self, sound: Tensor, text: Tensor) -> Tensor:
        for layer in self.encoder:
            sound = layer(sound)
        words = self.predictor["rnn"](self.predictor["emb"](text))[0]
        y: Tensor = self.joiner(sound[:, :, None] + words[:, None])
        return y


@right("emb convs fc")
class ConvolutionsOfManyWidths(nn.Module):
    """TextCNN: every convolution reads the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.fc = nn.ModuleList(nn.Conv1d(4, 4, k) for k in (3, 4, 5)), nn.Linear(12, 2)
        self.emb = nn.Embedding(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x).transpose(1, 2)
        y: Tensor = self.fc(torch.cat([conv(x).relu().amax(-1) for conv in self.convs], 1))
        return y
