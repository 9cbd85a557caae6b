"""Networks that see: pyramids, U-Nets, detectors, early exits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tests.support.nets.collection import Conv, Layer, Twice, layers, lin, right


class Backbone(nn.Module):
    """Four numbered stages, whose outputs are all returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        for i in range(1, 5):
            setattr(self, f"layer{i}", nn.Sequential(Twice(), Twice()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.bn1(self.conv1(x)).relu()
        found = {}
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
            found[str(i)] = x
        return found


BODY = "conv1|bn1 layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0 layer4.1"
ON_BODY = " ".join("|".join(f"body.{part}" for part in word.split("|")) for word in BODY.split())


@right(rising=("body.conv1 body.layer1 body.layer2 body.layer3 body.layer4 lateral.3 smooth.3 box",))
class Pyramid(nn.Module):
    """A feature pyramid and its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.kind = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 9, 1)
        self.lateral, self.smooth = layers(4, Conv), layers(4, Conv)
        self.body = Backbone()

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = self.body(x)
        levels = [lateral(found[str(i + 1)]) for i, lateral in enumerate(self.lateral)]
        for i in (2, 1, 0):
            levels[i] = levels[i] + interpolate(levels[i + 1], scale_factor=2)
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        return [(self.kind(level), self.box(level)) for level in levels]


@right(ON_BODY + " neck.0 neck.1 out")
class BackboneNeckOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.neck, self.body = nn.Conv2d(4, 2, 1), layers(2, Twice), Backbone()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)["4"]
        for part in self.neck:
            x = part(x)
        y: Tensor = self.out(x)
        return y


@right("enc1-3 bottom dec3-1 out", "up3|dec3 dec2-1 out", name="U-Net, decoder first")
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(4, 2, 1)
        for i in (1, 2, 3):
            setattr(self, f"dec{i}", Twice())
        for i in (3, 1, 2):
            setattr(self, f"enc{i}", Twice())
            setattr(self, f"up{i}", nn.ConvTranspose2d(4, 4, 2, 2))
        self.bottom = Twice()

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(a)
        c = self.enc3(b)
        x = self.bottom(c)
        x = self.dec3(torch.cat([self.up3(x), c], 1))
        x = self.dec2(torch.cat([self.up2(x), b], 1))
        x = self.dec1(torch.cat([self.up1(x), a], 1))
        y: Tensor = self.out(x)
        return y


@right(rising=("e11 e12 e21 e22 upconv1 d11 d12 outconv",), name="U-Net of single convolutions")
class FlatUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outconv = nn.Conv2d(4, 2, 1)
        self.d11, self.d12 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.upconv1 = nn.ConvTranspose2d(4, 4, 2, 2)
        self.e11, self.e12 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.e21, self.e22 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.e12(self.e11(x).relu()).relu()
        b = self.e22(self.e21(self.pool(a)).relu()).relu()
        c = self.d12(self.d11(torch.cat([self.upconv1(b), a], 1)).relu()).relu()
        y: Tensor = self.outconv(c)
        return y


@right(rising=("conv0_0 conv1_0 conv2_0 conv1_1 conv0_2 final", "conv0_0 conv0_1 conv0_2 final"), name="U-Net++")
class NestedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i, j in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)):
            setattr(self, f"conv{i}_{j}", Twice())
        self.final = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x00 = self.conv0_0(x)
        x10 = self.conv1_0(x00)
        x01 = self.conv0_1(torch.cat([x00, x10], 1))
        x20 = self.conv2_0(x10)
        x11 = self.conv1_1(torch.cat([x10, x20], 1))
        x02 = self.conv0_2(torch.cat([x00, x01, x11], 1))
        y: Tensor = self.final(x02)
        return y


class Around(nn.Module):
    """pix2pix: what goes down, everything deeper, what comes up."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4)]
        parts += [inner] if inner is not None else []
        self.model = nn.Sequential(*parts, nn.ReLU(), nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


@right(rising=("model.0 model.2.model.0 model.2.model.2.model.0 model.2.model.2.model.3 model.2.model.4 model.4",),
       name="U-Net of which each level contains the next")  # fmt: skip
def pix2pix() -> nn.Module:
    return Around(Around(Around(None)))


@right("stem stages.0-2 out", "exits.2", name="exits after every stage")
class EarlyExits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stages, self.exits, self.out = lin(), layers(3), layers(3, lin), lin()

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            found.append(leave(x))
        return [*found, self.out(x)]


@right("stem block1-3 out", "aux1", "aux2", name="auxiliary outputs")
class Supervised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aux1, self.aux2, self.stem, self.out = lin(), lin(), lin(), lin()
        for i in (1, 2, 3):
            setattr(self, f"block{i}", Layer())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.block1(self.stem(x))
        a = self.aux1(x)
        x = self.block2(x)
        b = self.aux2(x)
        return self.out(self.block3(x)), a, b


@right(
    "pre hourglass.0-2",
    "pre features.0-2",
    rising=("pre hourglass.0 merge.0 hourglass.1 merge.1 hourglass.2",),
    name="hourglasses, one upon the other",
)
class Hourglasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outs, self.features, self.hourglass = layers(3, lin), layers(3, Layer), layers(3, Layer)
        self.merge = layers(2, lin)
        self.pre = lin()

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.pre(x), []
        for i in range(3):
            y = self.features[i](self.hourglass[i](x))
            found.append(self.outs[i](y))
            if i < 2:
                x = x + self.merge[i](found[-1])
        return found


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(4, 12, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        y: Tensor = x + self.proj((q * k).softmax(-1) * v)
        return y


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.one = lin(), Conv()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.time(t)[:, :, None, None]
        return y


@right(rising=("first downs.0 downs.1 mid1 mid_attn mid2 ups.0 ups.1 final", "time_mlp downs.0 final"),
       name="diffusion")  # fmt: skip
class Diffusion(nn.Module):
    """A U-Net with the time in every block, in lists of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.final = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.time_mlp = nn.Sequential(lin(), nn.GELU(), lin())
        self.ups = layers(2, lambda: nn.ModuleList([Timed(), Attend(), nn.ConvTranspose2d(4, 4, 2, 2)]))
        self.downs = layers(2, lambda: nn.ModuleList([Timed(), Attend(), nn.Conv2d(4, 4, 2, 2)]))
        self.mid1, self.mid_attn, self.mid2 = Timed(), Attend(), Timed()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, t, skips = self.first(x), self.time_mlp(time), []
        for block, attend, down in self.downs:
            x = attend(block(x, t))
            skips.append(x)
            x = down(x)
        x = self.mid2(self.mid_attn(self.mid1(x, t)), t)
        for block, attend, up in self.ups:
            x = attend(block(torch.cat([up(x), skips.pop()], 1), t))
        y: Tensor = self.final(x)
        return y
