"""One stack of blocks, in the many ways in which people write it."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


@right("stem enc_a enc_b enc_c out")
class BlocksInAPythonList(nn.Module):
    """Registered with ``add_module``, called from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.stem, self.blocks = lin(), lin(), []
        for letter in "cab":
            self.add_module(f"enc_{letter}", Layer())
        self.blocks = [self.enc_a, self.enc_b, self.enc_c]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.out(x)
        return y


@right("stem conv_0-2 out", "bns.0-2 out")
class GraphLayersInAPythonList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bns = lin(), layers(3, partial(nn.BatchNorm1d, 4))
        self.convs = [Layer() for _ in range(3)]
        for i, conv in enumerate(self.convs):
            self.add_module(f"conv_{i}", conv)
        self.out = lin()

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = bn(conv(x, edges)).relu()
        y: Tensor = self.out(x)
        return y


@right("stem layer0-2 out")
class BlocksByGetattr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = lin(), lin()
        for i in range(3):
            setattr(self, f"layer{i}", Layer())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(3):
            x = getattr(self, f"layer{i}")(x)
        y: Tensor = self.out(x)
        return y


@right("layer4-1 out")
class CountedDownwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 5):
            setattr(self, f"layer{i}", Layer())
        self.out = lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layer1(self.layer2(self.layer3(self.layer4(x)))))
        return y


@right("embed shared out")
class OneBlockManyTimes(nn.Module):
    """A universal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.shared, self.out = lin(), Layer(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(6):
            x = self.shared(x)
        y: Tensor = self.out(x)
        return y


@right("embed groups.0 groups.1 out")
class GroupsOfSharedBlocks(nn.Module):
    """ALBERT with two groups, each used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.groups, self.out = lin(), layers(2), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(6):
            x = self.groups[i // 3](x)
        y: Tensor = self.out(x)
        return y


@right("transformer.wte|transformer.wpe transformer.h.0-2 transformer.ln_f|lm_head")
class EverythingInADict(nn.Module):
    """nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(9, 4), "wpe": nn.Embedding(9, 4), "drop": nn.Dropout(0.1), "h": layers(3),
             "ln_f": nn.LayerNorm(4)}
        )  # fmt: skip
        self.lm_head = nn.Linear(4, 9, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        _, length = idx.size()
        assert length <= 9, "too long"
        x = self.transformer["drop"](self.transformer.wte(idx) + self.transformer.wpe(torch.arange(length)))
        for block in self.transformer.h:
            x = block(x)
        y: Tensor = self.lm_head(self.transformer.ln_f(x))
        return y


@right("embed net.zeta net.alpha net.mid out")
class NamedInASequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.embed = lin(), lin()
        self.net = nn.Sequential(OrderedDict([("zeta", Layer()), ("alpha", Layer()), ("mid", Layer())]))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.net(self.embed(x)))
        return y


@right("embed blocks.2 blocks.0 blocks.1 out")
class DictCalledInAnotherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = lin(), lin()
        self.blocks = nn.ModuleDict({str(i): Layer() for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for key in ("2", "0", "1"):
            x = self.blocks[key](x)
        y: Tensor = self.out(x)
        return y


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([nn.MultiheadAttention(4, 2), Layer()]) for _ in range(3)])
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        for attention, feed in self.layers:
            x = feed(x + attention(x, x, x)[0])
        y: Tensor = self.norm(x)
        return y


@right("pos|patch transformer.layers.0-2 transformer.norm|mlp_head")
class PairsInAList(nn.Module):
    """lucidrains' ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(1, 4))
        self.patch, self.transformer, self.mlp_head = lin(), Pair(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x + self.pos[:, : x.shape[1]]
        y: Tensor = self.mlp_head(self.transformer(x).mean(1))
        return y


@right("inp blocks.0-5 out")
class SlicesOfAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.blocks, self.out = lin(), layers(6), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        skips = []
        for block in self.blocks[:3]:
            x = block(x)
            skips.append(x)
        for block in self.blocks[3:]:
            x = block(x, skips.pop())
        y: Tensor = self.out(x)
        return y


@right("stem blocks.0-3 out")
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.stem = lin(), layers(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        y: Tensor = self.out(x)
        return y


@right("stem blocks.0-3 out")
class LayersDroppedAtRandom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.stem = lin(), layers(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.training and torch.rand(()).item() < 0.7:
                continue
            x = block(x)
        y: Tensor = self.out(x)
        return y


@right("stem dense0-1 out", rising=("dense0 trans0 dense1 out",))
class DenselyConnected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense0, self.dense1, self.trans0, self.out = lin(), Layer(), Layer(), lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.trans0(self.dense0(torch.cat(features, 1))))
        features.append(self.dense1(torch.cat(features, 1)))
        y: Tensor = self.out(torch.cat(features, 1))
        return y


@right("pts.0-3 out", rising=("pts.3 feature out",))
class LinearLayersWithASkip(nn.Module):
    """NeRF: a list of single layers."""

    def __init__(self) -> None:
        super().__init__()
        self.pts, self.feature, self.alpha, self.out = layers(4, lin), lin(), lin(), lin()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x
        for i, layer in enumerate(self.pts):
            h = layer(h).relu()
            if i == 2:
                h = torch.cat([x, h], -1)
        return self.alpha(h), self.out(self.feature(h))


@right("downsample.0 stages.0.0 stages.0.1 downsample.1|stages.1.0 stages.1.1 norm|head",
       name="ConvNeXt as its authors wrote it")  # fmt: skip
class StagesWithTheirDownsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsample = layers(2, Conv)
        self.stages = nn.ModuleList(nn.Sequential(Layer(), Layer()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.stages[i](self.downsample[i](x))
        y: Tensor = self.head(self.norm(x.mean([-2, -1])))
        return y


class Compiled(nn.Module):
    """As ``torch.compile`` wraps a module, without the seconds that its import takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._orig_mod(x)
        return y


@right("net.embed net.layers.0-1 head", name="part of it compiled")
class PartlyCompiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.net = lin(), Compiled(Tower(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.net(x))
        return y
