"""Several networks in one: side by side, one upon the other, copies, experts, and one that makes another's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.support.nets.collection import Layer, Tower, layers, lin, right


@right("eggs.embed eggs.layers.0-1 eggs.norm|ham.embed|ham.layers.0 ham.layers.1 ham.norm|out")
class OneUponTheOther(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ham, self.eggs, self.out = Tower(), Tower(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.ham(self.eggs(x)))
        return y


@right("ham.embed ham.layers.0-1 out", "eggs.embed eggs.layers.0-1 out")
class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ham, self.eggs, self.out = Tower(), Tower(), lin()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.out(self.ham(batch["x"]) * self.eggs(batch["y"]))
        return y


@right("towers.image.embed towers.image.layers.0-1 out", "towers.text.embed towers.text.layers.0-1 out")
class TowersInADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"text": Tower(), "image": Tower()})
        self.out = lin()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.out(torch.cat([self.towers[name](batch[name]) for name in ("text", "image")], -1))
        return y


@right("body.embed body.layers.0-1 heads", name="one head per task")
class Tasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Tower()
        self.heads = nn.ModuleDict({"a": nn.Sequential(lin(), lin()), "b": nn.Sequential(lin(), lin())})

    def forward(self, x: Tensor, task: str = "a") -> dict[str, Tensor]:
        x = self.body(x)
        return {name: head(x) for name, head in self.heads.items()}


@right("body.embed body.layers.0-1 tasks", name="one classifier per task, called otherwise")
class OtherTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tasks, self.body = layers(3, lambda: nn.Sequential(lin(), lin())), Tower()

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [task(x) for task in self.tasks]


@right("body.embed body.layers.0-1 projector|predictor")
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predictor, self.projector, self.body = lin(), Layer(), Tower()

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        z1, z2 = self.projector(self.body(one)), self.projector(self.body(two))
        return (self.predictor(z1) - z2.detach()).pow(2).mean() + (self.predictor(z2) - z1.detach()).pow(2).mean()


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), layers(3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))  # type: ignore[return-value]


class ExpertLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.moe = Layer(), Experts()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.moe(self.attention(x))
        return y


@right("embed layers.0-1 out", name="experts in every layer")
class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers, self.out = lin(), layers(2, ExpertLayer), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.out(x)
        return y


@right("members.0.embed members.0.layers.0-1 out", "members.2.embed members.2.layers.0-1 out",
       name="a mixture of whole networks")  # fmt: skip
class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.members, self.out = nn.Linear(4, 3), layers(3, Tower), lin()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        y: Tensor = self.out(sum(weights[..., i] * member(x) for i, member in enumerate(self.members)))
        return y


@right(rising=("hyper.embed hyper.layers.0 hyper.layers.1 main.0 main.1 out",))
class Hypernetwork(nn.Module):
    """One network makes weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.out, self.hyper = layers(2), lin(), Tower()

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        x = linear(x, self.hyper(task))
        for layer in self.main:
            x = layer(x)
        y: Tensor = self.out(x)
        return y


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.lm_head = nn.Embedding(9, 4), layers(), lin()

    def forward(self, ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = self.embed_tokens(ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.lm_head(x)
        return y


@right(
    "eye.embed eye.layers.0-1 queries|qformer.0 qformer.1 proj|mouth.embed_tokens|mouth.layers.0 "
    "mouth.layers.1 mouth.lm_head",
    name="vision tower, queries, language model",
)
class Captions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mouth, self.proj, self.eye, self.qformer = Writer(), lin(), Tower(), layers()
        self.queries = nn.Parameter(torch.zeros(2, 4))

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        seen, x = self.eye(image), self.queries
        for layer in self.qformer:
            x = layer(x, seen)
        words = self.mouth.embed_tokens(ids)
        y: Tensor = self.mouth(inputs_embeds=torch.cat([self.proj(x), words], 1))
        return y


@right("image.0-1 joint.0-1 out", "words.0-1 joint.0-1 out")
class FusedTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.joint, self.image, self.words, self.out = layers(), layers(), layers(), lin()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.image:
            x = layer(x)
        for layer in self.words:
            y = layer(y)
        z = torch.cat([x, y], 1)
        for layer in self.joint:
            z = layer(z)
        out: Tensor = self.out(z)
        return out


@right("a.0-2 out", "b.0-2 out", name="two towers that exchange what they have after every layer")
class CrossStitch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = layers(3), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for one, other in zip(self.a, self.b, strict=True):
            x, y = one(x) + y, other(y) + x
        z: Tensor = self.out(x + y)
        return z


@right("rgb.0-2 out", "depth.0-2 out", "fusion.0-2 out", name="two cameras, fused at every stage")
class Cameras(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth, self.fusion, self.out = layers(3), layers(3), layers(3, lin), lin()

    def forward(self, x: Tensor, d: Tensor) -> Tensor:
        for i in range(3):
            x, d = self.rgb[i](x), self.depth[i](d)
            x = x + self.fusion[i](torch.cat([x, d], 1))
        y: Tensor = self.out(x)
        return y


@right("latents|embed cross.0|selfs.0 cross.1|selfs.1 out", name="a perceiver")
class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(2, 4))
        self.embed, self.cross, self.selfs, self.out = lin(), layers(), layers(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.embed(x), self.latents
        for cross, own in zip(self.cross, self.selfs, strict=True):
            z = own(cross(z, x))
        y: Tensor = self.out(z.mean(0))
        return y


@right("trunk.0-1 advantage|value")
class Dueling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.advantage, self.value, self.trunk = lin(), nn.Linear(4, 1), nn.Sequential(Layer(), Layer())

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        a = self.advantage(x)
        y: Tensor = self.value(x) + a - a.mean(-1, keepdim=True)
        return y
