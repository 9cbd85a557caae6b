"""Third sample, ways of writing: their right order written before the first run, by the rules of the card.

A stem and a head are one layer each; a model without blocks has one layer per part. *Right*: no place wrong and no
warning; *a warned guess*: the one warning with the table; *silently wrong*: any wrong place without it.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


@right("inp block0 block1 block2 out", name="blocks by eval")
class ByEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = lin()
        for i in range(3):
            setattr(self, f"block{i}", Layer())
        self.inp = lin()

    def forward(self, x: Any) -> Any:
        x = self.inp(x)
        for i in range(3):
            x = eval(f"self.block{i}")(x)
        return self.out(x)


@right("inp blocks.0-3 out", name="blocks by reduce")
class ByReduce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.inp, self.out = layers(4), lin(), lin()

    def forward(self, x: Any) -> Any:
        return self.out(reduce(lambda h, block: block(h), self.blocks, self.inp(x)))


def run_layers(blocks: Any, x: Any, after: Callable[[Any], Any] = F.relu) -> Any:
    """A helper of the module file that gets the list itself."""
    for index, block in enumerate(blocks):
        x = block(x) if index == len(blocks) - 1 else after(block(x))
    return x


@right("proj_in enc.0-1 dec.0-2 proj_out", name="lists given to a helper")
class GivenToAHelper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dec, self.enc = layers(3), layers(2)
        self.proj_out, self.proj_in = lin(), lin()

    def forward(self, x: Any) -> Any:
        x = run_layers(self.enc, self.proj_in(x))
        x = run_layers(self.dec, x, after=partial(F.leaky_relu, negative_slope=0.1))
        return self.proj_out(x)


@right("stem b.0|a.0 b.1|a.1 top", name="blocks by a property")
class ByProperty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.stem, self.top = layers(), layers(), lin(), lin()

    @property
    def chain(self) -> list[nn.Module]:
        return [block for pair in zip(self.b, self.a, strict=True) for block in pair]

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.chain:
            x = block(x)
        return self.top(x)


@right("embed layers.0-3 norm", name="features by a generator")
class ByGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layers, self.embed = nn.LayerNorm(4), layers(4), nn.Embedding(9, 4)

    def features(self, x: Any) -> Iterator[Any]:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
            yield x

    def forward(self, x: Any) -> Any:
        *_, last = self.features(x)
        return self.norm(last)


@right("stem blocks.low.0-1 blocks.mid.0-1 blocks.high.0 head", name="lists in a dict, by key")
class ListsByKey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = lin(), lin()
        self.blocks = nn.ModuleDict({"high": layers(1), "low": layers(2), "mid": layers(2)})

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for key in ("low", "mid", "high"):
            for block in self.blocks[key]:
                x = block(x)
        return self.head(x)


@right("tok layers.0-4 head", name="as many layers as the curriculum says")
class Curriculum(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.active = 2
        self.tok, self.layers, self.head = nn.Embedding(9, 4), layers(5), nn.Linear(4, 9)

    def forward(self, x: Any) -> Any:
        x = self.tok(x)
        for layer in self.layers[: self.active]:
            x = layer(x)
        return self.head(x)

    def on_train_epoch_start(self) -> None:
        self.active = min(len(self.layers), 2 + self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@right("net.embed net.layers.0-2 net.norm|heads.cola|heads.sst2|heads.rte", name="a head by the name in the batch")
class RoutedByData(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 2) for name in ("cola", "sst2", "rte")})
        self.net = Tower(3)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        name = batch["dataset"][0] if isinstance(batch["dataset"], list) else batch["dataset"]
        logits = self.heads[name](self.net(batch["x"]).mean(1))
        return F.cross_entropy(logits, batch["y"])


def scaled_forward(self: Any, x: Any, *more: Any) -> Any:
    """Instead of the block's own forward: its output is scaled by learned vectors."""
    return x + self.down(self.up(self.norm(x)).relu() * self.ia3_ff) * self.ia3_out


@right("body.embed body.layers.0-2 head", name="forwards replaced on instances")
def rescaled() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Tower(3), lin()

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x))

    model = Net()
    for layer in model.body.layers:
        layer.ia3_ff, layer.ia3_out = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        layer.forward = types.MethodType(scaled_forward, layer)
    return model


@right("net.embed net.layers.0-2 fc", "ema.module.embed ema.module.layers.0-2 fc", name="an average of torch's own")
class Averaged(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.fc = Tower(3), lin()
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, _ = batch
        with torch.no_grad():
            target = self.ema(x)
        return F.mse_loss(self.fc(self.net(x)), target)

    def on_train_batch_end(self, *args: Any) -> None:
        self.ema.update_parameters(self.net)


@right("net.embed net.layers.0-2 net.norm", name="inner steps through functional_call")
class InnerSteps(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Tower(3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        support, target, query, answer = batch
        fast = dict(self.net.named_parameters())
        for _ in range(2):
            loss = F.mse_loss(functional_call(self.net, fast, (support,)), target)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        return F.mse_loss(functional_call(self.net, fast, (query,)), answer)


class Hook:
    """Keeps what a module made."""

    def __init__(self, module: nn.Module) -> None:
        self.stored: Any = None
        self.handle = module.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stored = output


@right(
    rising=(
        "encoder.0 encoder.1", "encoder.1 encoder.2", "encoder.2 middle", "middle ups.0", "ups.0 ups.1",
        "ups.1 final", "middle final",
    ),
    name="a U-Net whose skips are kept by hooks",
)  # fmt: skip
class HookedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Conv(3), Conv(), Conv())
        self.kept = [Hook(self.encoder[i]) for i in (1, 0)]
        self.middle = nn.Sequential(Conv(), Conv())
        self.ups = nn.ModuleList([Conv(8), Conv(8)])
        self.final = nn.Conv2d(4, 1, 1)

    def forward(self, x: Any) -> Any:
        x = self.middle(self.encoder(x))
        for up, kept in zip(self.ups, self.kept, strict=True):
            x = up(torch.cat([x, kept.stored], 1))
        return self.final(x)


@right(
    rising=(
        "unet.inc control.downs.0", "unet.inc unet.downs.0", "unet.downs.0 unet.downs.1", "unet.downs.1 unet.ups.0",
        "unet.ups.0 unet.ups.1", "unet.ups.1 unet.outc", "control.downs.0 control.downs.1",
        "control.downs.1 unet.ups.1", "control.zeros.0 unet.outc", "hint control.downs.0",
    ),
    name="a trained copy beside a frozen U-Net, joined by zero convolutions",
)  # fmt: skip
class Controlled(nn.Module):
    """The control is a copy of the encoder half, trained, and feeds the frozen decoder half."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inc, self.outc = Conv(3), nn.Conv2d(4, 3, 1)
            self.downs, self.ups = nn.ModuleList([Conv(), Conv()]), nn.ModuleList([Conv(8), Conv(8)])

        def forward(self, x: Any, control: Any = None) -> Any:
            skips = [x := self.inc(x)]
            for down in self.downs:
                skips.append(x := F.max_pool2d(down(x), 2))
            if control is not None:
                x = x + control.pop()
            skips.pop()
            for up in self.ups:
                skip = skips.pop()
                if control is not None:
                    skip = skip + control.pop()
                x = up(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
            return self.outc(x)

    class Control(nn.Module):
        def __init__(self, unet: Any) -> None:
            super().__init__()
            self.downs = copy.deepcopy(unet.downs)
            self.zeros = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(3)])

        def forward(self, x: Any) -> Any:
            outs = [self.zeros[0](x)]
            for down, zero in zip(self.downs, self.zeros[1:], strict=True):
                x = F.max_pool2d(down(x), 2)
                outs.append(zero(x))
            return outs

    def __init__(self) -> None:
        super().__init__()
        self.unet = Controlled.UNet()
        self.control, self.hint = Controlled.Control(self.unet), nn.Conv2d(1, 4, 3, padding=1)
        self.unet.requires_grad_(False)

    def forward(self, x: Any, hint: Any) -> Any:
        with torch.no_grad():
            h = self.unet.inc(x)
        return self.unet(x, self.control(h + self.hint(hint)))


@right("backbone.conv backbone.blocks.0-2 concepts|label", name="a bottleneck of concepts")
class Concepts(nn.Module):
    """Each concept is an output of its own, and the label reads them all."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.blocks = Conv(3), nn.Sequential(Conv(), Conv(), Conv())

        def forward(self, x: Any) -> Any:
            return self.blocks(self.conv(x)).mean([2, 3])

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Concepts.Backbone()
        self.concepts = nn.ModuleList([nn.Linear(4, 1) for _ in range(3)])
        self.label = nn.Linear(3, 5)

    def forward(self, x: Any) -> Any:
        h = self.backbone(x)
        concepts = [c(h) for c in self.concepts]
        return self.label(torch.cat(concepts, 1).sigmoid()), concepts


@right("net.inp net.layers.0-1 net.out", name="a wrapper that passes everything on")
class PassesOn(LightningModule):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.layers, self.inp = lin(), layers(), lin()

        def forward(self, x: Any, *, mask: Any = None, return_dict: bool = True) -> Any:
            x = self.inp(x)
            for layer in self.layers:
                x = layer(x) if mask is None else layer(x) * mask
            y = self.out(x)
            return {"logits": y} if return_dict else (y,)

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.net = PassesOn.Net()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        y = batch.pop("labels")
        return F.cross_entropy(self(**batch)["logits"], y)


@right(
    rising=("enc.0 enc.1", "enc.1 enc.2", "enc.2 enc.3", "enc.3 skip4 up1 up2", "enc.2 skip3 up2"),
    name="a fully convolutional network of slices",
)
class Slices(nn.Module):
    """FCN-8s: the skips are read from slices of the features; scores are outputs that are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(Conv(3), Conv(), Conv(), Conv())
        self.up1, self.up2 = nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2)
        self.skip3, self.skip4 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        pool3 = self.enc[:3](x)
        pool4 = self.enc[3:](pool3)
        y = self.up1(self.skip4(pool4)) + self.skip3(pool3)
        return self.up2(y)
