"""Encoders with decoders, flows, GANs, and modules of Lightning without a forward."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.support.nets.collection import Layer, Tower, layers, lin, must_decide, right


@right("q.0-1 mu|logvar|p.0 p.1 out", name="VAE whose decoder is defined first")
class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.out, self.mu, self.logvar, self.q = layers(), lin(), lin(), lin(), layers()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.q:
            x = layer(x)
        return self.mu(x), self.logvar(x)

    def decode(self, z: Tensor) -> Tensor:
        for layer in self.p:
            z = layer(z)
        y: Tensor = self.out(z)
        return y

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * logvar.exp())


@right("q.0-1 mu|logvar|p.0 p.1 out", name="VAE whose code decides")
class VariationalWithChecks(Variational):
    def forward(self, x: Tensor) -> Tensor:
        must_decide(x)
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * logvar.exp())


@right("q.0-1 p.0-1 out", name="only training_step")
class OnlyTrainingStep(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.p, self.q = lin(), layers(), layers()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        y = x
        for layer in self.q:
            y = layer(y)
        for layer in self.p:
            y = layer(y)
        loss: Tensor = (self.out(y) - x).pow(2).mean()
        self.log("loss", loss, prog_bar=True)
        return loss


@right("body.embed body.layers.0-1 classify", name="a shared step")
class SharedStep(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.classify, self.body = Layer(), Tower()

    def step(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        loss: Tensor = nn.functional.cross_entropy(self.classify(self.body(batch["x"])), batch["y"])
        self.log(f"{stage}/loss", loss)
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.step(batch, "train")


@right("flows.0-3", rising=("flows.0 flows.1 flows.2 flows.3",), name="a flow")
class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flows = layers(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(())
        for flow in self.flows:
            y = flow(x)
            total, x = total + (y - x).mean(), y
        return x, total


@right("generator.0-2", "discriminator.0-2", name="a GAN of Sequentials")
class Gan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(Layer(), Layer(), Layer())
        self.discriminator = nn.Sequential(Layer(), Layer(), Layer())
        self.automatic_optimization = False

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.generator(z)
        return y


@right("weights.0-2", name="weights without modules, in a list")
class FunctionalList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = linear(x, weight).relu()
        return x


@right("w1 w2 w3", name="weights without modules")
class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w3, self.w1, self.w2 = (nn.Parameter(torch.zeros(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = linear(x, self.w1).relu()
        x = linear(x, self.w2).relu()
        return linear(x, self.w3)


@right("inp blocks.0-1 table", name="weights without modules above blocks")
class FunctionalHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.inp, self.blocks = nn.Parameter(torch.zeros(4, 4)), lin(), layers()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return linear(x, self.table)


@right("inp blocks.0-1 out|scale", name="a scale of the output")
class OutputScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inp, self.blocks, self.out = nn.Parameter(torch.ones(())), lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.out(x) * self.scale.exp()
        return y


@right("inp blocks.0-1 crf|out", name="a conditional random field")
class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.crf = nn.Module()
        self.crf.transitions = nn.Parameter(torch.zeros(4, 4))
        self.inp, self.blocks, self.out = lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.out(x)[:, :, None] + self.crf.transitions
        return y


@right("f.0-2 out", "g.0-2 out", name="reversible")
class Reversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.out = layers(3), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f, g in zip(self.f, self.g, strict=True):
            a = a + f(b)
            b = b + g(a)
        y: Tensor = self.out(torch.cat([a, b], -1))
        return y


@right("source layers.encoder.layers.0-1 out", "target layers.decoder.layers.0-1 out", name="encoder-decoder of torch")
class TorchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.out = nn.Embedding(9, 4), nn.Embedding(9, 4), lin()
        self.layers = nn.Transformer(4, 2, 2, 2, 8, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        y: Tensor = self.out(self.layers(self.source(src), self.target(tgt)))
        return y
