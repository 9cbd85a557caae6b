"""Ways to write a forward: other people's code, in which the order is clear to a reader and hidden from a tracer."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import Conv, Layer, Tower, Twice, layers, lin, right


@right(
    "patch_embed1|pos_embed1 block1.0 block1.1 block2.0|patch_embed2|pos_embed2 block2.1 norm2|head",
    name="stages by getattr",
)
class ByGetattr(nn.Module):
    """PVT: everything set and taken by names that are put together."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(2):
            setattr(self, f"block{i + 1}", layers())
            setattr(self, f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, 4, 4)))
            setattr(self, f"patch_embed{i + 1}", nn.Conv2d(4, 4, 2, 2))
        self.norm2, self.head, self.num_stages = nn.LayerNorm(4), lin(), 2

    def forward_features(self, x: Tensor) -> Tensor:
        B = x.shape[0]  # noqa: N806
        for i in range(self.num_stages):
            patch_embed, pos_embed = getattr(self, f"patch_embed{i + 1}"), getattr(self, f"pos_embed{i + 1}")
            x = patch_embed(x).flatten(2).transpose(1, 2)
            n = x.shape[1]
            h = w = int(math.sqrt(n))
            if n != pos_embed.shape[1]:
                pos_embed = interpolate(pos_embed.reshape(1, 2, 2, -1).permute(0, 3, 1, 2), size=(h, w))
            x = x + pos_embed
            for block in getattr(self, f"block{i + 1}"):
                x = block(x)
            if i != self.num_stages - 1:
                x = x.reshape(B, h, w, -1).permute(0, 3, 1, 2).contiguous()
        return self.norm2(x).mean(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.forward_features(x))
        return y


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(4, 4, 3), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Any, Any]:
        x = self.proj(x)
        _, _, h, w = x.shape
        return self.norm(x.flatten(2).transpose(1, 2)), h, w


@right(
    "patch_embed1 block1.0 block1.1|norm1 block2.0|patch_embed2 block2.1 norm2|head",
    name="stages one after the other in the text",
)
class MixTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = lin()
        self.patch_embed1, self.patch_embed2 = Patches(), Patches()
        self.block1, self.norm1 = layers(), nn.LayerNorm(4)
        self.block2, self.norm2 = layers(), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]  # noqa: N806
        outs = []
        x, h, w = self.patch_embed1(x)
        for _, blk in enumerate(self.block1):
            x = blk(x)
        x = self.norm1(x).reshape(B, h, w, -1).permute(0, 3, 1, 2).contiguous()
        outs.append(x)
        x, h, w = self.patch_embed2(x)
        for _, blk in enumerate(self.block2):
            x = blk(x)
        x = self.norm2(x).reshape(B, h, w, -1).permute(0, 3, 1, 2).contiguous()
        outs.append(x)
        y: Tensor = self.head(outs[-1].mean((2, 3)))
        return y


@right("inp res.res2 res.res3 res.res4 out", name="a dict of stages")
class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.res = lin(), nn.ModuleDict({"res2": Twice(), "res3": Twice(), "res4": Twice()})
        self.inp, self.out_features = Conv(), ("res4",)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        x = self.inp(x)
        for name, stage in self.res.items():
            x = stage(x)
            if name in self.out_features:
                found[name] = x
        return {k: self.out(v) for k, v in found.items()}


@right("embed net.first net.second net.third out", name="a Sequential with names")
class Ordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = lin()
        self.net = nn.Sequential(OrderedDict([("first", Layer()), ("second", Layer()), ("third", Layer())]))
        self.embed = lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.net(self.embed(x)))
        return y


@right("embed layers.2 layers.1 layers.0 out", name="a list read backwards")
class Backwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.layers, self.embed = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in reversed(self.layers):
            x = layer(x)
        y: Tensor = self.out(x)
        return y


def run(blocks: nn.ModuleList, x: Tensor, use_checkpoint: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if use_checkpoint else block(x)
    return x


@right("embed second.0-1 first.0-1 out", name="a function from outside")
class Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.first, self.second, self.embed = lin(), layers(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        go = partial(run, use_checkpoint=True)
        y: Tensor = self.out(go(self.first, go(self.second, self.embed(x))))
        return y


@right("embed blocks.0-1 out", name="keywords of a batch")
class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.embed = lin(), layers(), nn.Embedding(9, 4)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        x = self.embed(batch["input_ids"])
        for block in self.blocks:
            x = block(x * batch["attention_mask"])
        logits = self.out(x)
        if "labels" in batch:
            return {"logits": logits, "loss": cross_entropy(logits, batch["labels"])}
        return {"logits": logits}


class Graph(NamedTuple):
    x: Tensor
    edge_index: Tensor


@right("lift conv.0-2 out.0|out.1", name="a batch with attributes")
class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.conv, self.lift = nn.Sequential(lin(), nn.LayerNorm(4)), layers(3), lin()

    def forward(self, data: Graph) -> Tensor:
        x, edge_index = data.x, data.edge_index
        row, col = edge_index
        x = self.lift(x)
        for conv in self.conv:
            x = conv(x.index_add(0, row, x[col]))
        y: Tensor = self.out(x)
        return y


@right("first shared.0 shared.1 second", name="positional arguments of any number")
class Positional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.shared, self.first = lin(), layers(), lin()

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.first(inputs[0])
        for block in self.shared:
            x = block(x)
        y: Tensor = self.second(x)
        return y


@right("embed layers.0-3 head", name="depth that a router chooses")
class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.layers, self.embed = lin(), layers(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            keep = torch.rand(x.shape[0]) > 0.2
            if keep.any():
                x[keep] = layer(x[keep])
        y: Tensor = self.head(x)
        return y


@right("embed layers.0-3 head", "exits.0", "exits.2", name="a confident exit")
class Confident(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.exits, self.head, self.layers, self.embed = layers(3, lin), lin(), layers(4), lin()

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        found = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.exits):
                y = self.exits[i](x.mean(1))
                found.append(y)
                if not self.training and y.softmax(-1).max() > 0.9:
                    return y
        return [*found, self.head(x.mean(1))]


@right("body.embed body.layers.0-1 heads", name="a head that an argument chooses")
class ByTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Sequential(lin(), lin()), "b": nn.Sequential(lin(), lin())})
        self.body = Tower()

    def forward(self, x: Tensor, task: str) -> Tensor:
        y: Tensor = self.heads[task](self.body(x))
        return y


@right("embed_tokens layers.0-2 lm_heads", name="a table and a head per codebook")
class Codebooks(nn.Module):
    """The number of codebooks comes from the input's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_heads, self.layers = layers(2, lin), layers(3)
        self.embed_tokens = layers(2, lambda: nn.Embedding(9, 4))

    def forward(self, ids: Tensor) -> Tensor:
        _, books, _ = ids.shape
        x = sum(self.embed_tokens[book](ids[:, book]) for book in range(books))
        for layer in self.layers:
            x = layer(x)
        return torch.stack([head(x) for head in self.lm_heads], 1)


@right("embed layers.0-1 out", name="layers with parts in a dict")
class Dicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.embed = lin(), lin()
        self.layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": Layer()}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer["mlp"](layer["norm"](x))
        y: Tensor = self.out(x)
        return y


@right(
    rising=("net.start net.down.0 net.down.1 net.middle net.up.0 net.up.1 net.end", "time.0 time.2 net.down.1"),
    name="noise predicted in a training step",
)
class Noise(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.time = nn.Module(), nn.Sequential(lin(), nn.SiLU(), lin())
        self.net.end, self.net.start = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.net.up, self.net.down, self.net.middle = layers(2, Twice), layers(2, Twice), Twice()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        t = torch.randint(0, 1000, (x.shape[0],), device=x.device)
        noise = torch.randn_like(x)
        emb = self.time(t[:, None].float())[:, :, None, None]
        h, kept = self.net.start(x + noise), []
        for down in self.net.down:
            h = down(h + emb)
            kept.append(h)
        h = self.net.middle(h)
        for up in self.net.up:
            h = up(torch.cat([h, kept.pop()], 1))
        loss = (self.net.end(h) - noise).pow(2).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=x.shape[0])
        return loss


@right("stem body.0-2 out", name="NumPy for a size")
class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.body, self.stem = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        n = int(np.prod(x.shape[1:]))
        x = self.stem(x.reshape(-1, n))
        for block in self.body:
            x = block(x)
        y: Tensor = self.out(x)
        return y


@right(
    "entry|towers.left.embed|towers.right.embed towers.left.layers.0|towers.right.layers.0 "
    "towers.left.layers.1|towers.right.layers.1 out",
    name="towers over one entry",
    rising=("entry towers.left.layers.0 out",),
)
class OverOneEntry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.towers, self.entry = lin(), nn.ModuleDict({"left": Tower(), "right": Tower()}), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        y: Tensor = self.out(torch.stack([tower(x) for tower in self.towers.values()]).mean(0))
        return y


@right("inp low.0 low.1 mid.0 mid.1 high.0 high.1 out", name="three stages in words, defined in another order")
class InWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.high, self.mid, self.low = layers(), layers(), layers()
        self.out, self.inp = lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for stage in (self.low, self.mid, self.high):
            for block in stage:
                x = block(x)
        y: Tensor = self.out(x)
        return y


@right("inp low.0 low.1 mid.0 mid.1 high.0 high.1 out", name="three stages in words, with a value on the way")
class InWordsByValue(InWords):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 1e6:
            x = x / 1e6
        return super().forward(x)


@right("embed blocks.0-2 head", rising=("blocks.0 gates.1 head",), name="gates between blocks")
class Gates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.gates, self.blocks, self.embed = lin(), layers(3, lin), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            g = gate(x).sigmoid()
            x = g * block(x) + (1 - g) * x
        y: Tensor = self.head(x)
        return y


@right("body.embed body.layers.0-1 body.norm|cls", name="no forward, and a loss")
class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls, self.body = lin(), Tower()

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.cls(self.features(x).mean(1)), y)


@right("model.body.embed model.body.layers.0-1 model.body.norm|model.cls", name="a step that calls a loss")
class StepWithALoss(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = NoForward()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model.loss(batch["x"], batch["y"])


@right("model.body.embed model.body.layers.0-1 model.body.norm|model.cls", name="a step that unpacks its batch")
class Unpacking(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = NoForward()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model.loss(*batch)


@right(
    "student.embed student.layers.0-1 student.norm|project",
    "teacher.embed teacher.layers.0-3 teacher.norm",
    name="distillation of a larger teacher",
)
class Distilled(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.student, self.teacher = lin(), Tower(2), Tower(4)
        self.teacher.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        with torch.no_grad():
            t = self.teacher(x)
        return (self.project(self.student(x)) - t).pow(2).mean()


@right(
    "encode.0 encode.2 decode.0 decode.2",
    rising=("encode.0 encode.2 decode.0 decode.2",),
    name="an autoencoder of two Sequentials",
)
class TwoSequentials(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 8))
        self.encode = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decode(self.encode(x.flatten(1))).view_as(x)
        return y


@right(
    "enc.embed enc.layers.0-1 latent|enc.norm|dec.embed|dec.layers.0 dec.layers.1 dec.norm",
    name="an autoencoder with noise and a check",
    rising=("enc.embed enc.layers.1 latent dec.layers.1",),
)
class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dec, self.latent, self.enc = Tower(), lin(), Tower()

    def forward(self, x: Tensor, sigma: float = 0.1) -> Tensor:
        if x.dim() == 2:
            x = x.unsqueeze(1)
        if self.training:
            x = x + sigma * torch.randn(x.shape)
        z = self.latent(self.enc(x))
        z = z / max(1.0, sigma)
        y: Tensor = self.dec(z)
        return y


@right("embed layers.0-1 norm|head", "cross.0-1 head", name="cross attention in a list of its own")
class CrossInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm, self.cross, self.layers, self.embed = lin(), nn.LayerNorm(4), layers(), layers(), lin()

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        for i in range(len(self.layers)):
            x = self.layers[i](x)
            if memory is not None:
                x = self.cross[i](x, memory)
        y: Tensor = self.head(self.norm(x))
        return y


@right(
    rising=("front.embed front.layers.0 front.layers.1 back.layers.0 back.layers.1",),
    name="a Sequential of whole networks",
)
def pipeline() -> nn.Module:
    return nn.Sequential(OrderedDict([("front", Tower()), ("back", Tower())]))


@right(
    "a.embed a.layers.0-1 out",
    "b.embed b.layers.0-1 out",
    "c.embed c.layers.0-1 out",
    name="three inputs, one of them left out at times",
)
class Modalities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.c, self.b, self.a = nn.Linear(12, 4), Tower(), Tower(), Tower()

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        found = []
        for name, x in (("a", a), ("b", b), ("c", c)):
            mask = torch.isnan(x).any(-1, keepdim=True)
            y = getattr(self, name)(torch.nan_to_num(x))
            found.append(torch.where(mask, torch.zeros_like(y), y))
        z: Tensor = self.out(torch.cat(found, -1))
        return z


@right(
    "emb fwd.weight_ih_l0 fwd.weight_ih_l1 out",
    "bwd.weight_ih_l0 bwd.weight_ih_l1 out",
    name="packed sequences in two directions",
)
class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.bwd, self.fwd, self.emb = nn.Linear(8, 4), nn.LSTM(4, 4, 2), nn.LSTM(4, 4, 2), nn.Embedding(9, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.emb(ids)
        one = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        other = nn.utils.rnn.pack_padded_sequence(x.flip(1), lengths, batch_first=True, enforce_sorted=False)
        _, (a, _) = self.fwd(one)
        _, (b, _) = self.bwd(other)
        y: Tensor = self.out(torch.cat([a[-1], b[-1]], -1))
        return y
