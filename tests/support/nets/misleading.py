"""Names that say one thing where the code does another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.nets.collection import Layer, Tower, layers, lin, right


@right("head blocks.0-1 stem", name="head in, stem out")
class HeadIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = lin(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.stem(x)
        return y


@right("first body.0-1 embed", name="embedding out")
class EmbedOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.body = lin(), lin(), layers()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.body:
            x = block(x)
        y: Tensor = self.embed(x)
        return y


@right("body.embed body.layers.0-1 layers", name="heads called layers")
class HeadsCalledLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.body = layers(3, lin), Tower()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [layer(x) for layer in self.layers]


@right("classifier.embed classifier.layers.0-1 backbone", name="backbone called classifier")
class Swapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.classifier = Layer(), Tower()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.backbone(self.classifier(x))
        return y


@right("decoder.embed decoder.layers.0-1 decoder.norm|encoder.embed|encoder.layers.0 encoder.layers.1 out",
       name="decoder below encoder")  # fmt: skip
class DecoderFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out = Tower(), Tower(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.encoder(self.decoder(x)))
        return y


@right(
    "text.embed text.layers.0-1 text.norm|image.embed|image.layers.0 image.layers.1 out",
    name="towers in series with names of twins",
)
class TextThenImage(nn.Module):
    """A text encoder that a generator of images reads."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.out = Tower(), Tower(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.image(self.text(x)))
        return y


@right("stem branches.0-2 out", name="branches in series")
class BranchesInSeries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branches, self.out = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = branch(x)
        y: Tensor = self.out(x)
        return y


@right("stem experts.0-2 out", name="experts in series")
class ExpertsInSeries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.experts, self.out = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for expert in self.experts:
            x = expert(x)
        y: Tensor = self.out(x)
        return y


@right("a stage1|stage2|stage3 z", name="numbered, but side by side")
class NumberedSideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = lin(), lin()
        for i in (1, 2, 3):
            setattr(self, f"stage{i}", Layer())

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y: Tensor = self.z(torch.cat([self.stage1(x), self.stage2(x), self.stage3(x)], 1))
        return y


@right("query_proj|key.embed key.layers.0-1 out", name="key is no copy")
class KeyIsNoCopy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_proj, self.key, self.out = lin(), Tower(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.key(self.query_proj(x)))
        return y


@right("net.embed net.layers.0-1 net.norm|teacher.embed|teacher.layers.0 teacher.layers.1 out",
       name="a teacher that reads")  # fmt: skip
class TeacherThatReads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.net, self.out = Tower(), Tower(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.teacher(self.net(x)))
        return y


@right("z y.0-1 x", name="one letter each")
class Letters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.z = Layer(), layers(), Layer()

    def forward(self, v: Tensor) -> Tensor:
        v = self.z(v)
        for part in self.y:
            v = part(v)
        w: Tensor = self.x(v)
        return w


@right("pooler.embed pooler.layers.0-1 score.0-1", name="pooler and score bear the blocks")
class PoolerAndScore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.pooler = layers(), Tower()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooler(x)
        for layer in self.score:
            x = layer(x)
        return x


@right("input_proj layers.0-1 output_embedding", name="output embedding")
class OutputEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_embedding, self.layers, self.input_proj = lin(), layers(), lin()

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.input_proj(x)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.output_embedding(x)
        if targets is not None:
            y = (y - targets).pow(2).mean()
        return y
