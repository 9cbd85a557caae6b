"""Sixth sample, mixed: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


class Template(nn.Module, ABC):
    """The order is in a base class, the parts are in subclasses."""

    def forward(self, x: Any) -> Any:
        return self.predict(self.transform(self.prepare(x)))

    @abstractmethod
    def prepare(self, x: Any) -> Any: ...

    @abstractmethod
    def transform(self, x: Any) -> Any: ...

    @abstractmethod
    def predict(self, x: Any) -> Any: ...


@right("tokens body.0-2 answer", name="a template: abstract methods of a base class")
class Filled(Template):
    def __init__(self) -> None:
        super().__init__()
        self.answer, self.body, self.tokens = lin(), layers(3), nn.Embedding(9, 4)

    def prepare(self, x: Any) -> Any:
        return self.tokens(x)

    def transform(self, x: Any) -> Any:
        queue = deque(self.body)
        while queue:
            x = queue.popleft()(x)
        return x

    def predict(self, x: Any) -> Any:
        return self.answer(x)


class Strategy(Protocol):
    def __call__(self, net: Any, x: Any) -> Any: ...


class InReverse:
    """A strategy object that decides how the blocks are run."""

    def __call__(self, net: Any, x: Any) -> Any:
        for block in reversed(net.blocks):
            x = block(net.shared_norm(x))
        return x


@right("inp blocks.2-0 out", name="a strategy object runs the blocks")
class ByStrategy(nn.Module):
    def __init__(self, strategy: Strategy | None = None) -> None:
        super().__init__()
        self.inp, self.blocks, self.out, self.shared_norm = lin(), layers(3), lin(), nn.LayerNorm(4)
        self.strategy = strategy or InReverse()

    def forward(self, x: Any) -> Any:
        return self.out(self.strategy(self, self.inp(x)))


@right("stem trunk.0-2 left|right", name="cached properties and a context that is decided on the way")
class WithContext(nn.Module):
    """Two heads; the trunk is frozen on demand."""

    def __init__(self, train_trunk: bool = True) -> None:
        super().__init__()
        self.left, self.right = lin(), lin()
        self.trunk, self.stem, self.train_trunk = layers(3), lin(), train_trunk

    @cached_property
    def depth(self) -> int:
        return len(self.trunk)

    def forward(self, x: Any) -> dict[str, Any]:
        with nullcontext() if self.train_trunk else torch.no_grad():
            x = self.stem(x)
            for i in range(self.depth):
                x = self.trunk[i](x)
        return {name: getattr(self, name)(x) for name in ("left", "right")}


@right(
    "ct_stem ct_blocks.0-1 merge.0-1 risk", "pet_stem pet_blocks.0-1 merge.0-1 risk",
    name="scans of two kinds, merged in the middle",
)  # fmt: skip
class TwoScans(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ct_stem, self.pet_stem = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(1, 4, 3, padding=1)
        self.ct_blocks, self.pet_blocks = layers(2), layers(2)
        self.merge, self.risk = layers(2), nn.Linear(4, 1)

    def tower(self, kind: str, scan: Any) -> Any:
        x = getattr(self, f"{kind}_stem")(scan).flatten(2).transpose(1, 2)
        for block in getattr(self, f"{kind}_blocks"):
            x = block(x)
        return x

    def forward(self, ct: Any, pet: Any) -> Any:
        x = torch.cat([self.tower("ct", ct), self.tower("pet", pet)], 1)
        for block in self.merge:
            x = block(x)
        return self.risk(x.mean(1))


@right(
    "query_embed|question.embed question.layers.0-2 score", "passage_embed|passage.embed passage.layers.0-2 score",
    name="late interaction of two encoders",
)  # fmt: skip
class LateInteraction(LightningModule):
    """Each encoder gets a marker of its own in front of its tokens; the score joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(1, 1)
        self.query_embed, self.passage_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 1, 4))
        self.passage, self.question = Tower(3), Tower(3)

    def forward(self, q: Any, p: Any) -> Any:
        q = self.question(torch.cat([self.query_embed.expand(q.shape[0], -1, -1), q], 1))
        p = self.passage(torch.cat([self.passage_embed.expand(p.shape[0], -1, -1), p], 1))
        return self.score(torch.einsum("bqd,bpd->bqp", q, p).max(-1).values.sum(-1, keepdim=True))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        q, p, n = batch["query"], batch["positive"], batch["negative"]
        return F.margin_ranking_loss(self(q, p), self(q, n), torch.ones(len(q), 1), margin=0.2)


class Rollout(nn.Module):
    """A simulator: the same processor for many steps, with an encoder and a decoder in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(4, 2)
        self.process = nn.Sequential(Layer(), Layer(), Layer())

    def step(self, position: Any, velocity: Any) -> Any:
        h = self.process(self.encode(torch.cat([position, velocity, velocity.abs()], -1)))
        return self.decode(h)

    def forward(self, position: Any, velocity: Any, steps: int = 3) -> Any:
        track = []
        for _ in range(steps):
            velocity = velocity + self.step(position, velocity)
            position = position + velocity
            track.append(position)
        return torch.stack(track, 1)


right("encode process.0-2 decode", name="a simulator that is rolled out")(Rollout)


@right("embed rnn.weight_ih_l0 rnn.weight_ih_l1 attend|merge|out", name="one hop over a memory after a stacked GRU")
class Hop(nn.Module):
    """What follows the recurrent layers is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = nn.GRU(4, 4, num_layers=2, batch_first=True)
        self.attend, self.merge, self.out = lin(), nn.Linear(8, 4), nn.Linear(4, 9)

    def forward(self, story: Any, question: Any) -> Any:
        m, _ = self.rnn(self.embed(story))
        _, q = self.rnn(self.embed(question))
        q = q[-1]
        a = torch.softmax((m @ self.attend(q)[..., None]).squeeze(-1), -1)
        return self.out(torch.tanh(self.merge(torch.cat([q, (a[..., None] * m).sum(1)], -1))))


@right("patch levels.0.0-1 levels.1.0-1 levels.2.0-1 classify", name="levels of a pyramid in a ModuleDict by number")
class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.classify = Conv(3), nn.Linear(4, 5)
        self.levels = nn.ModuleDict({str(i): nn.Sequential(Conv(), Conv()) for i in range(3)})

    def forward(self, x: Any) -> Any:
        x = self.patch(x)
        for key in sorted(self.levels, key=int):
            x = F.avg_pool2d(self.levels[key](x), 2)
        return self.classify(x.mean([2, 3]))


@right(
    "wte layers.0-3 norm|out",
    rising=("wte router layers.3",),
    name="mixture of depths: tokens that skip layers",
)
class MixtureOfDepths(nn.Module):
    """One router for all layers: with what it first feeds, or in the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.layers, self.router = nn.Embedding(30, 4), layers(4), nn.Linear(4, 1)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 30)

    def forward(self, ids: Any) -> Any:
        x = self.wte(ids)
        for i, layer in enumerate(self.layers):
            if i % 2 == 0:
                x = layer(x)
                continue
            weight = self.router(x).squeeze(-1)
            top = weight.topk(max(1, x.shape[1] // 2), dim=1).indices
            chosen = torch.gather(x, 1, top[..., None].expand(-1, -1, 4))
            x = x.scatter_add(
                1, top[..., None].expand(-1, -1, 4), layer(chosen) * torch.gather(weight, 1, top)[..., None]
            )
        return self.out(self.norm(x))


@right(
    rising=("first.0 first.2", "first.2 second.0", "second.0 second.2", "second.2 third.0", "third.0 third.2"),
    name="three small networks one upon the other, each with a loss",
)
class Greedy(LightningModule):
    """Each is trained on the detached output of the one below: a series all the same, as in a greedy stack."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.second, self.first = (
            nn.Sequential(lin(), nn.ReLU(), lin()),
            nn.Sequential(lin(), nn.ReLU(), lin()),
            nn.Sequential(lin(), nn.ReLU(), lin()),
        )

    def forward(self, x: Any) -> Any:
        return self.third(self.second(self.first(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, total = batch, 0
        for net in (self.first, self.second, self.third):
            y = net(x)
            total = total + F.mse_loss(y, batch)
            x = y.detach()
        return total


@right(
    "speaker|text_embed blocks.0-2 mel|stop",
    rising=("speaker mel",),
    name="speech in any voice: a speaker is added before every block",
)
class Voices(nn.Module):
    def __init__(self, speakers: int = 4) -> None:
        super().__init__()
        self.speaker, self.text_embed = nn.Embedding(speakers, 4), nn.Embedding(30, 4)
        self.blocks, self.mel, self.stop = layers(3), nn.Linear(4, 8), nn.Linear(4, 1)

    def forward(self, text: Any, speaker_id: Any | None = None) -> Any:
        x = self.text_embed(text)
        s = 0 if speaker_id is None else self.speaker(speaker_id)[:, None]
        for block in self.blocks:
            x = block(x + s)
        return self.mel(x), self.stop(x)


@right("head_of_stack tail.0-2 begin", name="names that say the opposite of what is done")
class Upside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.begin, self.tail, self.head_of_stack = lin(), layers(3), nn.Embedding(9, 4)

    def forward(self, x: Any) -> Any:
        x = self.head_of_stack(x)
        for part in self.tail:
            x = part(x)
        return self.begin(x)


@right("pre.0 core.0-3 post", name="layers that are applied in several orders, averaged")
class Permuted(nn.Module):
    """The first order is the one in which the blocks stand."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.core, self.post = nn.Sequential(lin()), layers(4), lin()
        self.register_buffer("weights", torch.ones(2) / 2)

    def forward(self, x: Any) -> Any:
        x, outs = self.pre(x), []
        for order in ((0, 1, 2, 3), (0, 2, 1, 3)):
            y = x
            for i in order:
                y = self.core[i](y)
            outs.append(y)
        return self.post(sum(w * y for w, y in zip(self.weights, outs, strict=True)))


@right("tok encoder.layers.0-2", "decoder_tok decoder.layers.0-2", name="a decoder without a head")
class Headless(nn.Module):
    """The encoder ends where the decoder does: both read tokens of their own, and nothing follows."""

    def __init__(self) -> None:
        super().__init__()
        layer = {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "batch_first": True}
        self.tok, self.decoder_tok = nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 3)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), 3)

    def forward(self, src: Any, tgt: Any) -> Any:
        memory = self.encoder(self.tok(src))
        return self.decoder(self.decoder_tok(tgt), memory)
