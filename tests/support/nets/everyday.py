"""Networks of the kinds that are in every second repository."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.support.nets.collection import Conv, Layer, Tower, Twice, layers, lin, right
from tests.support.nets.vision import Backbone


@right(rising=("net.conv1 net.layer1 net.layer2 net.layer3 net.layer4 dec3 dec2 dec1 out",), name="ResNet in a U-Net")
class ResNetUNet(nn.Module):
    """The stages of a backbone are called one by one from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.dec1, self.dec2, self.dec3 = nn.Conv2d(4, 2, 1), Twice(), Twice(), Twice()
        self.net = Backbone()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.bn1(self.net.conv1(x)).relu()
        a = self.net.layer1(x)
        b = self.net.layer2(a)
        c = self.net.layer3(b)
        d = self.net.layer4(c)
        d = self.dec3(torch.cat([d, c], 1))
        d = self.dec2(torch.cat([d, b], 1))
        y: Tensor = self.out(self.dec1(torch.cat([d, a], 1)))
        return y


@right(
    "text.embed text.layers.0-2 out", "image.embed image.layers.0-2 out", name="towers whose layers are called in turn"
)
class Bridged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.image, self.text = lin(), Tower(3), Tower(3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.text.embed(x), self.image.embed(y)
        for one, other in zip(self.text.layers, self.image.layers, strict=True):
            x, y = one(x), other(y)
        z: Tensor = self.out(torch.cat([self.text.norm(x), self.image.norm(y)], 1))
        return z


@right(rising=("net.0 net.1 mid net.2 net.3 out",), name="a module between slices of a Sequential")
class BetweenSlices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.mid = lin(), Layer()
        self.net = nn.Sequential(Layer(), Layer(), Layer(), Layer())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.net[2:](self.mid(self.net[:2](x))))
        return y


@right("start blocks.0-2 out", name="reduce")
class Reduced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.start = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(reduce(lambda v, block: block(v), self.blocks, self.start(x)))
        return y


@right("start blocks.0-2 out", "gammas.0-2 out", name="a weight per block")
class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.start = lin(), layers(3), lin()
        self.gammas = nn.ParameterList(nn.Parameter(torch.ones(4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block, gamma in zip(self.blocks, self.gammas, strict=True):
            x = x + gamma * block(x)
        y: Tensor = self.out(x)
        return y


@right("start blocks.0-2 mix|out", name="a weighted sum of all layers")
class WeightedSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(3))
        self.out, self.blocks, self.start = lin(), layers(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.start(x), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        weights = self.mix.softmax(0)
        y: Tensor = self.out(sum(w * f for w, f in zip(weights.unbind(0), found, strict=False)))
        return y


@right("emb blocks.0-1 norm", name="an output tied by its weight")
class TiedByWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.blocks, self.emb = nn.LayerNorm(4), layers(), nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return linear(self.norm(x), self.emb.weight)


@right(rising=("mapping.0 blocks.0 blocks.1 blocks.2", "mapping.0 const blocks.0", "blocks.0 to_rgb.2"),
       name="styles for a generator")  # fmt: skip
class Styles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.zeros(1, 4))
        self.to_rgb, self.blocks = layers(3, lin), layers(3)
        self.mapping = nn.Sequential(lin(), nn.ReLU(), lin())

    def forward(self, z: Tensor) -> Tensor:
        style, x, image = self.mapping(z), self.const, torch.zeros(())
        for block, rgb in zip(self.blocks, self.to_rgb, strict=True):
            x = block(x, style)
            image = image + rgb(x)
        return image


@right("patch|pos|cls blocks.0-1 norm|decoder_embed|decoder_blocks.0|mask_token decoder_blocks.1 decoder_norm|pred",
       name="a masked autoencoder")  # fmt: skip
class Masked(nn.Module):
    """MAE: two stacks in one flat module, and a mask token that only the second reads."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 9, 4))
        self.mask_token, self.patch, self.blocks, self.norm = nn.Parameter(torch.zeros(1, 1, 4)), lin(), layers(), lin()
        self.decoder_embed, self.decoder_blocks = lin(), layers()
        self.decoder_norm, self.pred = nn.LayerNorm(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x) + self.pos
        x = torch.cat([self.cls, x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        x = torch.cat([x, self.mask_token.repeat(1, 3, 1)], 1)
        for block in self.decoder_blocks:
            x = block(x)
        y: Tensor = self.pred(self.decoder_norm(x))
        return y


@right(rising=("enc.0 enc.1 codebook dec.0 dec.1",), name="a codebook between two stacks")
class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dec, self.enc = nn.Sequential(Layer(), Layer()), nn.Sequential(Layer(), Layer())
        self.codebook = nn.Embedding(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.enc(x)
        nearest = torch.cdist(z, self.codebook.weight).argmin(-1)
        y: Tensor = self.dec(z + (self.codebook(nearest) - z).detach())
        return y


@right(rising=("embeddings hidden.0 hidden.2 out",), name="embeddings of many columns")
class Tabular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 1)
        self.hidden = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4))
        self.embeddings = layers(3, lambda: nn.Embedding(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        columns = [table(x[:, i]) for i, table in enumerate(self.embeddings)]
        y: Tensor = self.out(self.hidden(torch.cat(columns, 1)))
        return y


@right(rising=("user.0 user.2 score", "item.0 item.2 score"), name="a recommender")
class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)
        self.user, self.item = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        y: Tensor = self.score(torch.cat([self.user(u), self.item(i)], 1))
        return y


@right("fc1 fc2 fc3", name="a perceptron out of order")
class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc3, self.fc1, self.fc2 = lin(), lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc3(self.fc2(self.fc1(x).relu()).relu())
        return y


@right("features.0-2 label|domain", name="a domain discriminator")
class Domains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.domain, self.label = Layer(), Layer()
        self.features = nn.Sequential(Layer(), Layer(), Layer())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x)
        return self.label(x), self.domain(x.detach())


@right("body.embed body.layers.0-1 margin", name="a loss with weights of its own")
class ArcFace(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.margin, self.body = nn.Module(), Tower()
        self.margin.weight = nn.Parameter(torch.zeros(9, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        cosine = linear(self.body(x), self.margin.weight)
        loss: Tensor = nn.functional.cross_entropy(cosine, y)
        self.log_dict({"loss": loss, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss


@right(
    "generator.embed generator.layers.0-1 generator.norm",
    "critic.embed critic.layers.0-1 critic.norm",
    name="a GAN by hand",
)
class GanByHand(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic, self.generator = Tower(), Tower()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        g, d = self.optimizers()
        fake = self.generator(torch.randn(real.shape[0], 4))
        d.zero_grad()
        self.manual_backward(self.critic(fake.detach()).mean() - self.critic(real).mean())
        d.step()
        g.zero_grad()
        self.manual_backward(-self.critic(fake).mean())
        g.step()


@right("start.conv body.0-2 neck.0-1 box|kind", name="a detector as a list of parts")
class Detector(nn.Module):
    """Parts of many classes in a flat list, some of which read earlier outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.box, self.neck = nn.Conv2d(4, 9, 1), nn.Conv2d(4, 4, 1), layers(2, Twice)
        self.body, self.start = layers(3, Twice), Conv()

    def forward(self, x: Tensor, targets: Any = None) -> dict[str, Tensor]:
        x, kept = self.start(x), []
        for part in self.body:
            x = part(x)
            kept.append(x)
        for part, old in zip(self.neck, kept[-2::-1], strict=True):
            x = part(torch.cat([x, old], 1))
        return {"kind": self.kind(x), "box": self.box(x)}


@right("stacks.0-2", name="residuals and forecasts", rising=("stacks.0 stacks.1 stacks.2",))
class Forecast(nn.Module):
    """N-BEATS: every block takes something away from the input and adds to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = layers(3)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for stack in self.stacks:
            back, ahead = stack(x).chunk(2, -1)
            x, total = x - back, total + ahead
        return total


@right(rising=("backbone.conv1 backbone.layer1 backbone.layer4 transformer.encoder.layers.0 kind",
               "backbone.layer4 conv transformer.encoder.layers.1"), name="DETR in fifty lines")  # fmt: skip
class SmallDetr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(4, 2, 2, 2, 8)
        self.kind, self.box, self.conv = lin(), lin(), nn.Conv2d(4, 4, 1)
        self.query_pos, self.row = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(9, 4))
        self.backbone = Backbone()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(self.backbone(x)["4"])
        h = h.flatten(2).permute(2, 0, 1) + self.row[:4]
        h = self.transformer(h, self.query_pos.unsqueeze(1))
        return self.kind(h), self.box(h).sigmoid()


@right("spec blocks.0-1 rnn.weight_ih_l0 rnn.weight_ih_l1 pool|out", name="convolutions, then a GRU")
class Sound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.pool, self.rnn, self.blocks, self.spec = lin(), lin(), nn.GRU(4, 4, 2), layers(2, Twice), Conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.spec(x)
        for block in self.blocks:
            x = block(x)
        x, _ = self.rnn(x.mean(2).transpose(1, 2))
        weights = self.pool(x).softmax(1)
        y: Tensor = self.out((weights * x).sum(1))
        return y
