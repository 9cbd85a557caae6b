"""Second sample, images and scenes: as somebody else would write them,
their right order written before the first run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.support.nets.collection import Conv, Layer, Tower, lin, right


class CapsuleLayer(nn.Module):
    def __init__(self, num_capsules: int, num_route_nodes: int) -> None:
        super().__init__()
        self.num_route_nodes = num_route_nodes
        if num_route_nodes != -1:
            self.route_weights = nn.Parameter(torch.randn(num_capsules, num_route_nodes, 8, 4))
        else:
            self.capsules = nn.ModuleList([nn.Conv2d(4, 2, 3, stride=2) for _ in range(num_capsules)])

    def forward(self, x: Any) -> Any:
        if self.num_route_nodes != -1:
            priors = x[None, :, :, None, :] @ self.route_weights[:, None, :, :, :]
            logits = torch.zeros(*priors.size())
            outputs = None
            for i in range(3):
                probs = F.softmax(logits, dim=2)
                outputs = self.squash((probs * priors).sum(dim=2, keepdim=True))
                if i != 2:
                    logits = logits + (priors * outputs).sum(dim=-1, keepdim=True)
            return outputs
        outputs = [capsule(x).view(x.size(0), -1, 1) for capsule in self.capsules]
        return self.squash(torch.cat(outputs, dim=-1))

    def squash(self, tensor: Any, dim: int = -1) -> Any:
        squared = (tensor**2).sum(dim=dim, keepdim=True)
        return squared / (1 + squared) * tensor / torch.sqrt(squared)


@right(
    rising=(  # a layer between two lists belongs to the first block after it
        "conv1 primary_capsules", "primary_capsules digit_capsules", "digit_capsules decoder.0 decoder.2",
        "decoder.0 decoder.2", "decoder.2 decoder.4",
    ),
    name="capsules: two layers of one class, one a list and one a weight",
)  # fmt: skip
class CapsuleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.primary_capsules = CapsuleLayer(8, -1)
        self.digit_capsules = CapsuleLayer(5, 50)
        self.decoder = nn.Sequential(
            nn.Linear(20, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 16),
            nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x: Any, y: Any = None) -> Any:
        x = F.relu(self.conv1(x), inplace=True)
        x = self.primary_capsules(x)
        x = self.digit_capsules(x).squeeze().transpose(0, 1)
        classes = F.softmax((x**2).sum(dim=-1) ** 0.5, dim=-1)
        if y is None:
            _, index = classes.max(dim=1)
            y = torch.eye(5).index_select(dim=0, index=index)
        return classes, self.decoder((x * y[:, :, None]).view(x.size(0), -1))


class ConcatConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._layer = nn.Conv2d(5, 4, 3, 1, 1)

    def forward(self, t: Any, x: Any) -> Any:
        return self._layer(torch.cat([torch.ones_like(x[:, :1, :, :]) * t, x], 1))


class OdeFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, 4), ConcatConv()
        self.norm2, self.conv2 = nn.GroupNorm(2, 4), ConcatConv()
        self.norm3 = nn.GroupNorm(2, 4)
        self.nfe = 0

    def forward(self, t: Any, x: Any) -> Any:
        self.nfe += 1
        out = self.conv1(t, F.relu(self.norm1(x)))
        return self.norm3(self.conv2(t, F.relu(self.norm2(out))))


def odeint(func: Callable[..., Any], y: Any, t: Any, steps: int = 4) -> Any:
    """Runge-Kutta of order four on a fixed grid."""
    h = (t[1] - t[0]) / steps
    for n in range(steps):
        at = t[0] + n * h
        k1 = func(at, y)
        k2 = func(at + h / 2, y + h / 2 * k1)
        k3 = func(at + h / 2, y + h / 2 * k2)
        k4 = func(at + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


class OdeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odefunc = OdeFunction()
        self.integration_time = torch.tensor([0, 1]).float()

    def forward(self, x: Any) -> Any:
        self.integration_time = self.integration_time.type_as(x)
        return odeint(self.odefunc, x, self.integration_time)


@right(
    rising=("0 3 6 7.odefunc.conv1", "7.odefunc.conv1 7.odefunc.conv2", "7.odefunc.conv2 12"),  # the stem is one layer
    name="a neural ODE in a flat Sequential",
)
def neural_ode() -> nn.Module:
    downsampling = [
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 4, 2, 1), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.Conv2d(4, 4, 4, 2, 1),
    ]  # fmt: skip
    classifier = [nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    return nn.Sequential(*downsampling, OdeBlock(), *classifier)


class FixedPointLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)

    def forward(self, z: Any, x: Any) -> Any:
        y = self.norm1(F.relu(self.conv1(z)))
        return self.norm3(F.relu(z + self.norm2(x + self.conv2(y))))


class DeqFixedPoint(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def solve(self, f: Callable[..., Any], x0: Any) -> Any:
        f0, res = f(x0), []
        while len(res) < 10:
            x, f0 = f0, f(f0)
            res.append((f0 - x).norm().item() / (1e-5 + f0.norm().item()))
            if res[-1] < 1e-2:
                break
        return f0

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            z = self.solve(lambda z: self.f(z, x), torch.zeros_like(x))
        z = self.f(z, x)
        z0 = z.clone().detach().requires_grad_()
        f0 = self.f(z0, x)

        def backward_hook(grad: Any) -> Any:
            return self.solve(lambda y: torch.autograd.grad(f0, z0, y, retain_graph=True)[0] + grad, grad)

        if z.requires_grad:
            z.register_hook(backward_hook)
        return z


@right(rising=("0 2", "2 6", "0|1 2"), name="a deep equilibrium")
def deep_equilibrium() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), DeqFixedPoint(FixedPointLayer()), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, oup // 2
        first = inp if stride > 1 else half
        self.branch1 = (
            nn.Sequential(nn.Conv2d(inp, inp, 3, stride, 1, groups=inp), nn.Conv2d(inp, half, 1), nn.BatchNorm2d(half))
            if stride > 1
            else nn.Sequential()
        )
        self.branch2 = nn.Sequential(
            nn.Conv2d(first, half, 1), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half), nn.Conv2d(half, half, 1), nn.BatchNorm2d(half),
        )  # fmt: skip

    @staticmethod
    def channel_shuffle(x: Any, groups: int) -> Any:
        b, c, h, w = x.size()
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)

    def forward(self, x: Any) -> Any:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return self.channel_shuffle(out, 2)


@right("conv1 stage2.0-1 stage3.0-3 stage4.0-1 conv5 fc", name="ShuffleNet: stages by setattr")
class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        channels = 4
        self.conv1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for name, repeats, out in zip([f"stage{i}" for i in (2, 3, 4)], [2, 4, 2], [8, 8, 8], strict=True):
            seq = [ShuffleUnit(channels, out, 2)]
            for _ in range(repeats - 1):
                seq.append(ShuffleUnit(out, out, 1))
            setattr(self, name, nn.Sequential(*seq))
            channels = out
        self.conv5 = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 10)

    def _forward_impl(self, x: Any) -> Any:
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        return self.fc(self.conv5(x).mean([2, 3]))

    def forward(self, x: Any) -> Any:
        return self._forward_impl(x)


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.weight, self.bias = nn.Parameter(torch.zeros(9, 9)), nn.Parameter(torch.ones(9))

    def forward(self, x: Any) -> Any:
        res, gate = x.chunk(2, dim=-1)
        gate = torch.einsum("bnd,mn->bmd", self.norm(gate), self.weight) + self.bias[None, :, None]
        return gate * res


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj_in, self.sgu, self.proj_out = nn.LayerNorm(4), nn.Linear(4, 8), SpatialGate(), lin()

    def forward(self, x: Any) -> Any:
        return self.proj_out(self.sgu(F.gelu(self.proj_in(self.norm(x))))) + x


def survivors(layers: Any, prob: float) -> Any:
    drop = torch.zeros(len(layers)).uniform_(0.0, 1.0) > prob
    if all(drop):
        drop[torch.randperm(len(layers))[0]] = False
    return [layer for layer, gone in zip(layers, drop, strict=True) if not gone]


@right("to_patch_embed layers.0-3 to_logits", name="gMLP with layers that survive, run in a Sequential made on the way")
class GMlpVision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embed = nn.Sequential(nn.Unfold(2, stride=2), nn.Identity(), nn.Conv1d(12, 4, 1))
        self.layers = nn.ModuleList([GatedMlp() for _ in range(4)])
        self.to_logits = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 10))

    def forward(self, x: Any) -> Any:
        x = self.to_patch_embed(x).transpose(1, 2)
        layers = self.layers if not self.training else survivors(self.layers, 0.99)
        x = nn.Sequential(*layers)(x)
        return self.to_logits(x.mean(1))


class Skip(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(x) + x


@right("0|2 3-6 9", name="ConvMixer in one expression")
def conv_mixer() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.BatchNorm2d(4),
        *[nn.Sequential(
            Skip(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.GELU(), nn.BatchNorm2d(4))),
            nn.Conv2d(4, 4, 1), nn.GELU(), nn.BatchNorm2d(4),
        ) for _ in range(4)],
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip


class Basic(nn.Module):
    def __init__(self, a: int = 4, b: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b)
        self.shortcut = nn.Sequential()
        if stride != 1 or a != b:
            self.shortcut = nn.Sequential(nn.Conv2d(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x: Any) -> Any:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class Root(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(width, 4, 1), nn.BatchNorm2d(4)

    def forward(self, xs: Any) -> Any:
        return F.relu(self.bn(self.conv(torch.cat(xs, 1))))


class Tree(nn.Module):
    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        self.root = Root(8 if level == 1 else 4 * (level + 2))
        if level == 1:
            self.left_tree, self.right_tree = Basic(), Basic()
        else:
            for i in reversed(range(1, level)):
                setattr(self, f"level_{i}", Tree(i))
            self.prev_root = Basic()
            self.left_tree, self.right_tree = Basic(), Basic()

    def forward(self, x: Any) -> Any:
        xs = [self.prev_root(x)] if self.level > 1 else []
        for i in reversed(range(1, self.level)):
            x = getattr(self, f"level_{i}")(x)
            xs.append(x)
        x = self.left_tree(x)
        xs.append(x)
        x = self.right_tree(x)
        xs.append(x)
        return self.root(xs)


@right("base|layer1 layer2 layer3 layer4 linear", name="deep layer aggregation: trees of trees")
class DeepAggregation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.layer2, self.layer3, self.layer4 = Tree(1), Tree(2), Tree(1)
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Any) -> Any:
        out = self.layer1(self.base(x))
        out = self.layer4(self.layer3(self.layer2(out)))
        return self.linear(F.avg_pool2d(out, 4).view(out.size(0), -1))


class FlowExtractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for word in ("One", "Two", "Thr", "Fou"):
            setattr(
                self, f"net{word}", nn.Sequential(nn.Conv2d(3 if word == "One" else 4, 4, 3, 2, 1), nn.LeakyReLU(0.1))
            )

    def forward(self, x: Any) -> Any:
        one = self.netOne(x)
        two = self.netTwo(one)
        thr = self.netThr(two)
        fou = self.netFou(thr)
        return [one, two, thr, fou]


class FlowDecoder(nn.Module):
    def __init__(self, level: int) -> None:
        super().__init__()
        if level < 4:
            self.netUpflow, self.netUpfeat = nn.ConvTranspose2d(2, 2, 4, 2, 1), nn.ConvTranspose2d(8, 2, 4, 2, 1)
        size = 8 if level == 4 else 12
        self.netOne = nn.Sequential(nn.Conv2d(size, 8, 3, 1, 1), nn.LeakyReLU(0.1))
        self.netTwo = nn.Sequential(nn.Conv2d(8, 2, 3, 1, 1))

    def forward(self, one: Any, two: Any, previous: Any = None) -> Any:
        if previous is None:
            feat = torch.cat([one, two], 1)
        else:
            flow = self.netUpflow(previous["flow"])
            feat = torch.cat([one, two * flow.mean(1, True), flow, self.netUpfeat(previous["feat"])], 1)
        feat = self.netOne(feat)
        return {"flow": self.netTwo(feat), "feat": feat}


@right(
    "netExtractor netFou netThr netTwo netRefiner",  # no blocks: one layer per part
    name="flow from coarse to fine, numbered in words downwards",
)
class PyramidFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.netExtractor = FlowExtractor()
        self.netTwo, self.netThr, self.netFou = FlowDecoder(2), FlowDecoder(3), FlowDecoder(4)
        self.netRefiner = nn.Module()
        self.netRefiner.netMain = nn.Sequential(nn.Conv2d(8, 4, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 3, 1, 1))

    def forward(self, one: Any, two: Any) -> Any:
        one, two = self.netExtractor(one), self.netExtractor(two)
        estimate = self.netFou(one[-1], two[-1], None)
        estimate = self.netThr(one[-2], two[-2], estimate)
        estimate = self.netTwo(one[-3], two[-3], estimate)
        return (estimate["flow"] + self.netRefiner.netMain(estimate["feat"])) * 20.0


class Padded(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.pad, self.conv = nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3)

    def forward(self, x: Any) -> Any:
        return self.conv(self.pad(x))


class DepthDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs: Any = OrderedDict()
        for i in range(2, -1, -1):
            self.convs[("upconv", i, 0)] = Padded(4, 4)
            self.convs[("upconv", i, 1)] = Padded(8 if i > 0 else 4, 4)
        for s in range(3):
            self.convs[("dispconv", s)] = Padded(4, 1)
        self.decoder = nn.ModuleList(list(self.convs.values()))
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_features: Any) -> Any:
        self.outputs = {}
        x = input_features[-1]
        for i in range(2, -1, -1):
            x = F.elu(self.convs[("upconv", i, 0)](x))
            x = [F.interpolate(x, scale_factor=2, mode="nearest")]
            if i > 0:
                x += [input_features[i - 1]]
            x = F.elu(self.convs[("upconv", i, 1)](torch.cat(x, 1)))
            if i in range(3):
                self.outputs[("disp", i)] = self.sigmoid(self.convs[("dispconv", i)](x))
        return self.outputs


class ResEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.conv1, self.encoder.bn1 = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.encoder.layer1 = nn.Sequential(Basic(), Basic())
        self.encoder.layer2 = nn.Sequential(Basic(stride=2), Basic())

    def forward(self, image: Any) -> Any:
        self.features = []
        x = (image - 0.45) / 0.225
        x = self.encoder.bn1(self.encoder.conv1(x))
        self.features.append(F.relu(x))
        self.features.append(self.encoder.layer1(self.features[-1]))
        self.features.append(self.encoder.layer2(self.features[-1]))
        return self.features


@right(
    rising=(
        "encoder.encoder.conv1 encoder.encoder.layer1.0", "encoder.encoder.layer1.1 encoder.encoder.layer2.0",
        "encoder.encoder.layer2.1 depth.decoder.0", "depth.decoder.0 depth.decoder.1",
        "depth.decoder.1 depth.decoder.2",
        "depth.decoder.2 depth.decoder.3", "depth.decoder.3 depth.decoder.4", "depth.decoder.4 depth.decoder.5",
        "depth.decoder.5 depth.decoder.6", "depth.decoder.1 depth.decoder.8",
    ),
    name="depth: convolutions in a plain dict by tuples, registered in a list beside it",
)  # fmt: skip
class DepthNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.depth = ResEncoder(), DepthDecoder()

    def forward(self, inputs: dict[Any, Any]) -> Any:
        features = self.encoder(inputs[("color_aug", 0, 0)])
        outputs = self.depth(features)
        outputs["loss"] = sum(outputs[("disp", s)].mean() for s in range(3))
        return outputs


class TransBlock(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.attn, self.ffn = nn.GroupNorm(1, width), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.norm(x))
        return x + self.ffn(x)


class Resize(nn.Module):
    def __init__(self, up: bool) -> None:
        super().__init__()
        self.body = (
            nn.Sequential(nn.Conv2d(4, 16, 3, 1, 1), nn.PixelShuffle(2))
            if up
            else nn.Sequential(nn.Conv2d(4, 1, 3, 1, 1), nn.PixelUnshuffle(2))
        )

    def forward(self, x: Any) -> Any:
        return self.body(x)


@right(
    "patch_embed encoder_level1.0-1 encoder_level2.0-1 latent.0-2 decoder_level2.0-1 decoder_level1.0-1 "
    "refinement.0-1 output",
    rising=("encoder_level1.1 down1_2 encoder_level2.1", "latent.2 up3_2 decoder_level2.1",
            "latent.2 reduce_chan_level2 decoder_level2.1"),
    name="Restormer",
)  # fmt: skip
class Restormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.encoder_level1 = nn.Sequential(*[TransBlock() for _ in range(2)])
        self.down1_2 = Resize(False)
        self.encoder_level2 = nn.Sequential(*[TransBlock() for _ in range(2)])
        self.down2_3 = Resize(False)
        self.latent = nn.Sequential(*[TransBlock() for _ in range(3)])
        self.up3_2 = Resize(True)
        self.reduce_chan_level2 = nn.Conv2d(8, 4, 1)
        self.decoder_level2 = nn.Sequential(*[TransBlock() for _ in range(2)])
        self.up2_1 = Resize(True)
        self.decoder_level1 = nn.Sequential(*[TransBlock(8) for _ in range(2)])
        self.refinement = nn.Sequential(*[TransBlock(8) for _ in range(2)])
        self.output = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, inp_img: Any) -> Any:
        inp_enc_level1 = self.patch_embed(inp_img)
        out_enc_level1 = self.encoder_level1(inp_enc_level1)
        out_enc_level2 = self.encoder_level2(self.down1_2(out_enc_level1))
        latent = self.latent(self.down2_3(out_enc_level2))
        inp_dec_level2 = self.reduce_chan_level2(torch.cat([self.up3_2(latent), out_enc_level2], 1))
        out_dec_level2 = self.decoder_level2(inp_dec_level2)
        inp_dec_level1 = torch.cat([self.up2_1(out_dec_level2), out_enc_level1], 1)
        out_dec_level1 = self.refinement(self.decoder_level1(inp_dec_level1))
        return self.output(out_dec_level1) + inp_img


class BiFpn(nn.Module):
    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.conv4_up, self.conv3_up, self.conv4_down, self.conv5_down = (Conv() for _ in range(4))
        self.first_time = first
        if first:
            self.p5_down_channel, self.p4_down_channel = Conv(), Conv()
            self.p3_down_channel = Conv()
        self.p4_w1, self.p3_w1 = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.p4_w2, self.p5_w2 = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def forward(self, inputs: Any) -> Any:
        if self.first_time:
            p3, p4, p5 = inputs
            p3, p4, p5 = self.p3_down_channel(p3), self.p4_down_channel(p4), self.p5_down_channel(p5)
        else:
            p3, p4, p5 = inputs
        w = F.relu(self.p4_w1)
        w = w / (torch.sum(w, dim=0) + 1e-4)
        p4_up = self.conv4_up(w[0] * p4 + w[1] * F.interpolate(p5, scale_factor=2))
        w = F.relu(self.p3_w1)
        p3_out = self.conv3_up(w[0] * p3 + w[1] * F.interpolate(p4_up, scale_factor=2))
        w = F.relu(self.p4_w2)
        p4_out = self.conv4_down(w[0] * p4 + w[1] * p4_up + w[2] * F.max_pool2d(p3_out, 2))
        w = F.relu(self.p5_w2)
        return p3_out, p4_out, self.conv5_down(w[0] * p5 + w[1] * F.max_pool2d(p4_out, 2))


class SharedHead(nn.Module):
    """Convolutions shared by the levels, batch norms of each level."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
        self.bn_list = nn.ModuleList([nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)]) for _ in range(3)])
        self.header = nn.Conv2d(4, outputs, 3, padding=1)

    def forward(self, inputs: Any) -> Any:
        feats = []
        for feat, bn_list in zip(inputs, self.bn_list, strict=True):
            for _i, bn, conv in zip(range(2), bn_list, self.conv_list, strict=True):
                feat = F.silu(bn(conv(feat)))
            feats.append(self.header(feat).flatten(2))
        return torch.cat(feats, dim=2)


class Pyramidal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = Conv(3)
        self.blocks = nn.ModuleList([Basic(stride=2) for _ in range(4)])

    def forward(self, x: Any) -> Any:
        x, found = self.conv_stem(x), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i > 0:
                found.append(x)
        return found


@right(
    "backbone_net.conv_stem backbone_net.blocks.0-3 bifpn.0-2 regressor|classifier",
    name="EfficientDet: pyramids in turn, convolutions shared by levels",
)
class EfficientDet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bifpn = nn.Sequential(*[BiFpn(i == 0) for i in range(3)])
        self.regressor, self.classifier = SharedHead(4), SharedHead(9)
        self.backbone_net = Pyramidal()

    def forward(self, inputs: Any) -> Any:
        p3, p4, p5 = self.backbone_net(inputs)
        features = self.bifpn((p3, p4, p5))
        return features, self.regressor(features), self.classifier(features)


class Aspp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aspp1, self.aspp2 = Conv(), Conv()
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        x1, x2 = self.aspp1(x), self.aspp2(x)
        x3 = F.interpolate(self.global_avg_pool(x), size=x2.size()[2:], mode="bilinear", align_corners=True)
        return F.relu(self.bn1(self.conv1(torch.cat((x1, x2, x3), dim=1))))


class SegDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.last_conv = nn.Sequential(Conv(6), nn.Dropout(0.5), Conv(), nn.Conv2d(4, 9, 1))

    def forward(self, x: Any, low: Any) -> Any:
        low = F.relu(self.bn1(self.conv1(low)))
        x = F.interpolate(x, size=low.size()[2:], mode="bilinear", align_corners=True)
        return self.last_conv(torch.cat((x, low), dim=1))


class LowAndHigh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.inplanes = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), 4
        self.layer1, self.layer2 = self._make_layer(2, 1), self._make_layer(2, 2)

    def _make_layer(self, blocks: int, stride: int) -> nn.Module:
        return nn.Sequential(Basic(self.inplanes, 4, stride), *[Basic() for _ in range(1, blocks)])

    def forward(self, x: Any) -> Any:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        low = x
        return self.layer2(x), low


@right(
    rising=(
        "backbone.conv1 backbone.layer1.0", "backbone.layer1.0 backbone.layer1.1",
        "backbone.layer1.1 backbone.layer2.0",
        "backbone.layer2.1 aspp.conv1", "backbone.layer2.1 aspp.aspp1 aspp.conv1 decoder.last_conv.3",
        "backbone.layer1.1 decoder.conv1", "aspp.conv1 decoder.last_conv.3",
    ),
    name="DeepLab v3+: a decoder reads early features",
)  # fmt: skip
class DeepLab(nn.Module):
    def __init__(self, freeze_bn: bool = False) -> None:
        super().__init__()
        self.backbone, self.aspp, self.decoder, self.freeze_bn = LowAndHigh(), Aspp(), SegDecoder(), freeze_bn

    def forward(self, image: Any) -> Any:
        x, low = self.backbone(image)
        x = self.decoder(self.aspp(x), low)
        return F.interpolate(x, size=image.size()[2:], mode="bilinear", align_corners=True)


class MobileBlock(nn.Module):
    def __init__(self, a: int = 4, downsample: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        if downsample:
            self.pool, self.proj = nn.MaxPool2d(3, 2, 1), nn.Conv2d(a, 4, 1)
        self.conv = nn.Sequential(nn.Conv2d(a, 4, 3, 2 if downsample else 1, 1), nn.BatchNorm2d(4), nn.GELU())

    def forward(self, x: Any) -> Any:
        return (self.proj(self.pool(x)) if self.downsample else x) + self.conv(x)


class AttendBlock(nn.Module):
    def __init__(self, downsample: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        if downsample:
            self.pool1, self.proj = nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 1)
        self.attn = nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 1), nn.Unflatten(2, (2, 2)))
        self.ff = nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 1), nn.Unflatten(2, (2, 2)))

    def forward(self, x: Any) -> Any:
        x = self.proj(self.pool1(x)) + self.attn(self.pool1(x)) if self.downsample else x + self.attn(x)
        return x + self.ff(x)


@right(
    "s1.0-1 s2.0-2 s3.0-1 fc",
    rising=("s0.0 s0.1", "s0.1 s1.0"),
    name="CoAtNet: convolutions, then attention, stages s0 to s3",
)
class CoAtNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s0 = self._make_layer(lambda down: Conv(3 if down else 4), 2)
        self.s1 = self._make_layer(lambda down: MobileBlock(4, down), 2)
        self.s2 = self._make_layer(lambda down: MobileBlock(4, down), 3)
        self.s3 = self._make_layer(AttendBlock, 2)
        self.pool, self.fc = nn.AvgPool2d(2, 1), nn.Linear(4, 10, bias=False)

    def _make_layer(self, block: Callable[[bool], nn.Module], depth: int) -> nn.Module:
        layers = nn.ModuleList([])
        for i in range(depth):
            layers.append(block(i == 0))
        return nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        x = self.s3(self.s2(self.s1(self.s0(x))))
        return self.fc(self.pool(x).view(-1, x.shape[1]))


class GatedMasked(nn.Module):
    def __init__(self, residual: bool = True) -> None:
        super().__init__()
        self.class_cond_embedding = nn.Embedding(10, 8)
        self.residual = residual
        self.vert_stack = nn.Conv2d(4, 8, (2, 3), 1, (1, 1))
        self.vert_to_horiz = nn.Conv2d(8, 8, 1)
        self.horiz_stack, self.horiz_resid = nn.Conv2d(4, 8, (1, 2), 1, (0, 1)), nn.Conv2d(4, 4, 1)

    def gate(self, x: Any) -> Any:
        x, y = x.chunk(2, dim=1)
        return torch.tanh(x) * torch.sigmoid(y)

    def forward(self, x_v: Any, x_h: Any, h: Any) -> Any:
        h = self.class_cond_embedding(h)
        h_vert = self.vert_stack(x_v)[:, :, : x_v.size(-1), :]
        out_v = self.gate(h_vert + h[:, :, None, None])
        h_horiz = self.horiz_stack(x_h)[:, :, :, : x_h.size(-2)]
        out = self.gate(self.vert_to_horiz(h_vert) + h_horiz + h[:, :, None, None])
        return out_v, self.horiz_resid(out) + x_h if self.residual else self.horiz_resid(out)


@right("embedding layers.0-3 output_conv", name="PixelCNN with two stacks, conditioned on a class")
class PixelCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)
        self.layers = nn.ModuleList()
        for i in range(4):
            self.layers.append(GatedMasked(residual=i > 0))
        self.output_conv = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(True), nn.Conv2d(6, 16, 1))

    def forward(self, x: Any, label: Any) -> Any:
        shape = (*x.size(), -1)
        x = self.embedding(x.view(-1)).view(shape).permute(0, 3, 1, 2)
        x_v, x_h = x, x
        for layer in self.layers:
            x_v, x_h = layer(x_v, x_h, label)
        return self.output_conv(x_h)

    def generate(self, label: Any, shape: Any = (4, 4)) -> Any:
        x = torch.zeros((1, *shape), dtype=torch.int64)
        for i in range(shape[0]):
            for j in range(shape[1]):
                probs = F.softmax(self.forward(x, label)[:, :, i, j], -1)
                x.data[:, i, j].copy_(probs.multinomial(1).squeeze().data)
        return x


class GrowingGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_rgb = nn.ModuleList([nn.Conv2d(4, 3, 1) for _ in range(4)])
        self.progression = nn.ModuleList([nn.ConvTranspose2d(4, 4, 4), Conv(), Conv(), Conv()])

    def forward(self, code: Any, step: int = 0, alpha: float = -1) -> Any:
        out = code[:, :, None, None]
        previous = None
        for i, (conv, to_rgb) in enumerate(zip(self.progression, self.to_rgb, strict=True)):
            if i > 0:
                out = F.interpolate(out, scale_factor=2)
            previous, out = out, conv(out)
            if i == step:
                rgb = to_rgb(out)
                if i > 0 and 0 <= alpha < 1:
                    rgb = (1 - alpha) * self.to_rgb[i - 1](previous) + alpha * rgb
                return rgb
        return out


class GrowingDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_layer = 4
        self.from_rgb = nn.ModuleList([nn.Conv2d(3, 4, 1) for _ in range(4)])
        self.progression = nn.ModuleList([Conv(), Conv(), Conv(), Conv(5)])
        self.linear = nn.Linear(4, 1)

    def forward(self, image: Any, step: int = 0, alpha: float = -1) -> Any:
        out = image
        for i in range(step, -1, -1):
            index = self.n_layer - i - 1
            if i == step:
                out = self.from_rgb[index](image)
            if i == 0:
                mean_std = torch.sqrt(out.var(0) + 1e-8).mean().expand(out.size(0), 1, *out.shape[2:])
                out = torch.cat([out, mean_std], 1)
            out = self.progression[index](out)
            if i > 0:
                out = F.avg_pool2d(out, 2)
                if i == step and 0 <= alpha < 1:
                    skip = self.from_rgb[index + 1](F.avg_pool2d(image, 2))
                    out = (1 - alpha) * skip + alpha * out
        return self.linear(out.mean([2, 3]))


@right(
    rising=(
        "generator.progression.0 generator.progression.1", "generator.progression.1 generator.progression.2",
        "generator.progression.2 generator.progression.3", "generator.progression.0 generator.to_rgb.3",
        "discriminator.progression.0 discriminator.progression.1",
        "discriminator.progression.1 discriminator.progression.2",
        "discriminator.progression.2 discriminator.progression.3", "discriminator.progression.3 discriminator.linear",
        "discriminator.from_rgb.0 discriminator.progression.1",
    ),
    name="networks that grow: the number of blocks is an argument",
)  # fmt: skip
class ProgressiveGan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = GrowingGenerator(), GrowingDiscriminator()
        self.step, self.alpha = 0, 0.0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        g_opt, d_opt = self.optimizers()
        real, _ = batch
        z = torch.randn(real.size(0), 4, device=self.device)
        fake = self.generator(z, step=self.step, alpha=self.alpha)
        real_predict = self.discriminator(real, step=self.step, alpha=self.alpha)
        fake_predict = self.discriminator(fake.detach(), step=self.step, alpha=self.alpha)
        d_opt.zero_grad()
        self.manual_backward(fake_predict.mean() - real_predict.mean() + 0.001 * (real_predict**2).mean())
        d_opt.step()
        if (batch_idx + 1) % 5 == 0:
            g_opt.zero_grad()
            predict = self.discriminator(self.generator(z, self.step, self.alpha), self.step, self.alpha)
            self.manual_backward(-predict.mean())
            g_opt.step()


@right(
    rising=("net_g.0 net_g.3", "net_g.3 net_g.6", "front.0 front.2", "front.2 net_d",
            "front.2 net_q.conv net_q.conv_mu", "front.2 net_q.conv_disc"),
    name="InfoGAN: a trunk that discriminator and code share",
)  # fmt: skip
class InfoGan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net_g = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4),
            nn.ReLU(), nn.ConvTranspose2d(4, 1, 3), nn.Tanh(),
        )  # fmt: skip
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.net_d = nn.Sequential(nn.Conv2d(4, 1, 3), nn.Sigmoid())
        self.net_q = nn.Module()
        self.net_q.conv, self.net_q.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.net_q.conv_disc, self.net_q.conv_mu = nn.Conv2d(4, 10, 1), nn.Conv2d(4, 2, 1)
        self.automatic_optimization = False

    def code(self, h: Any) -> Any:
        y = F.leaky_relu(self.net_q.bn(self.net_q.conv(h)), 0.1)
        return self.net_q.conv_disc(y).squeeze(), self.net_q.conv_mu(y).squeeze()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        data, _ = batch
        opt_d, opt_g = self.optimizers()
        z = torch.randn(data.size(0), 8, 1, 1)
        fake = self.net_g(z)
        opt_d.zero_grad()
        loss = F.binary_cross_entropy(self.net_d(self.front(data)).view(-1), torch.ones(data.size(0)))
        loss = loss + F.binary_cross_entropy(self.net_d(self.front(fake.detach())).view(-1), torch.zeros(data.size(0)))
        self.manual_backward(loss)
        opt_d.step()
        opt_g.zero_grad()
        h = self.front(fake)
        logits, mu = self.code(h)
        loss = F.binary_cross_entropy(self.net_d(h).view(-1), torch.ones(data.size(0)))
        loss = loss + F.cross_entropy(logits, z[:, 0].argmax(1)) + (mu - z[:, :2].squeeze()).pow(2).mean()
        self.manual_backward(loss)
        opt_g.step()


class SwitchableNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.ModuleList([nn.BatchNorm2d(width) for width in (2, 4)])
        self.width_mult = 1.0

    def forward(self, x: Any) -> Any:
        return self.bn[[0.5, 1.0].index(self.width_mult)](x)


class SlimBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), SwitchableNorm(), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Any) -> Any:
        return x + self.body(x)


@right("features.0-4 classifier", name="a network of several widths, norms for each")
class Slimmable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), SwitchableNorm(), nn.ReLU6())]
        for _ in range(4):
            features.append(SlimBlock())
        features.append(nn.AdaptiveAvgPool2d(1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Linear(4, 10))

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        return self.classifier(x.view(-1, x.size()[1]))


@right(
    "first_conv blocks.0-5 final_expand_layer|feature_mix_layer|classifier", name="a network of which a depth is taken"
)
class OnceForAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_conv = Conv(3)
        self.block_group_info, blocks, index = [], [Basic()], 1
        for _ in range(2):
            self.block_group_info.append([index, index + 1] if index < 3 else [index, index + 1, index + 2])
            blocks += [Basic() for _ in self.block_group_info[-1]]
            index += len(self.block_group_info[-1])
        self.blocks = nn.ModuleList(blocks)
        self.final_expand_layer, self.feature_mix_layer = Conv(), nn.Conv2d(4, 4, 1, bias=False)
        self.classifier = nn.Linear(4, 10)
        self.runtime_depth = [len(group) for group in self.block_group_info]

    def set_active_subnet(self, d: Any) -> None:
        for stage, depth in enumerate(d):
            self.runtime_depth[stage] = min(len(self.block_group_info[stage]), depth)

    def forward(self, x: Any) -> Any:
        x = self.first_conv(x)
        x = self.blocks[0](x)
        for stage_id, block_idx in enumerate(self.block_group_info):
            depth = self.runtime_depth[stage_id]
            for idx in block_idx[:depth]:
                x = self.blocks[idx](x)
        x = self.final_expand_layer(x).mean(3, keepdim=True).mean(2, keepdim=True)
        return self.classifier(self.feature_mix_layer(x).squeeze())


class DagNode(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.single = count == 1
        if not self.single:
            self.agg_weight = nn.Parameter(torch.zeros(count))
        self.conv = Conv()

    def forward(self, *inputs: Any) -> Any:
        if self.single:
            return self.conv(inputs[0])
        out = torch.sigmoid(self.agg_weight[0]) * inputs[0]
        for index in range(1, len(inputs)):
            out = out + torch.sigmoid(self.agg_weight[index]) * inputs[index]
        return self.conv(out)


class RandomGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = {0: [], 1: [0], 2: [0, 1], 3: [1], 4: [2, 3], 5: [4, 1]}
        self.nodeop = nn.ModuleList([DagNode(max(1, len(self.inputs[i]))) for i in range(6)])

    def forward(self, x: Any) -> Any:
        results = {}
        for node, before in self.inputs.items():
            results[node] = self.nodeop[node](x) if not before else self.nodeop[node](*[results[i] for i in before])
        return results[5]


@right(
    rising=(
        "conv1 conv2.nodeop.0", "conv2.nodeop.0 conv2.nodeop.1", "conv2.nodeop.1 conv2.nodeop.2",
        "conv2.nodeop.1 conv2.nodeop.3", "conv2.nodeop.3 conv2.nodeop.4", "conv2.nodeop.4 conv2.nodeop.5",
        "conv2.nodeop.5 conv3.nodeop.0", "conv3.nodeop.4 conv3.nodeop.5", "conv3.nodeop.5 fc",
    ),
    name="wired at random",
)  # fmt: skip
class RandWire(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(3), RandomGraph(), RandomGraph()
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 10)

    def forward(self, x: Any) -> Any:
        x = self.conv3(self.conv2(self.conv1(x)))
        return self.fc(self.relu(x).mean([2, 3]))


class FlatUp(nn.Module):
    """The pyramid of a detector, its path down and up again in flat names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = Conv(3)
        for i in (2, 3, 4, 5):
            setattr(self.backbone, f"dark{i}", nn.Sequential(Conv(), Basic()))
        self.lateral_conv0, self.C3_p4 = Conv(), Basic(8)
        self.reduce_conv1, self.C3_p3 = Conv(), Basic(8)
        self.bu_conv2, self.C3_n3 = Conv(), Basic(8)
        self.bu_conv1, self.C3_n4 = Conv(), Basic(8)

    def forward(self, x: Any) -> Any:
        x = self.backbone.dark2(self.backbone.stem(x))
        x2 = self.backbone.dark3(x)
        x1 = self.backbone.dark4(x2)
        x0 = self.backbone.dark5(x1)
        fpn_out0 = self.lateral_conv0(x0)
        f_out0 = self.C3_p4(torch.cat([fpn_out0, x1], 1))
        fpn_out1 = self.reduce_conv1(f_out0)
        pan_out2 = self.C3_p3(torch.cat([fpn_out1, x2], 1))
        pan_out1 = self.C3_n3(torch.cat([self.bu_conv2(pan_out2), fpn_out1], 1))
        return pan_out2, pan_out1, self.C3_n4(torch.cat([self.bu_conv1(pan_out1), fpn_out0], 1))


class Decoupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_convs, self.reg_convs, self.cls_preds = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.reg_preds, self.obj_preds, self.stems = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            self.stems.append(Conv())
            self.cls_convs.append(nn.Sequential(Conv(), Conv()))
            self.reg_convs.append(nn.Sequential(Conv(), Conv()))
            self.cls_preds.append(nn.Conv2d(4, 9, 1))
            self.reg_preds.append(nn.Conv2d(4, 4, 1))
            self.obj_preds.append(nn.Conv2d(4, 1, 1))

    def forward(self, xin: Any, labels: Any = None) -> Any:
        outputs = []
        for k, (cls_conv, reg_conv, x) in enumerate(zip(self.cls_convs, self.reg_convs, xin, strict=True)):
            x = self.stems[k](x)
            cls_output = self.cls_preds[k](cls_conv(x))
            reg_feat = reg_conv(x)
            outputs.append(torch.cat([self.reg_preds[k](reg_feat), self.obj_preds[k](reg_feat), cls_output], 1))
        return outputs


@right(
    rising=(
        "backbone.backbone.stem backbone.backbone.dark2", "backbone.backbone.dark2 backbone.backbone.dark3",
        "backbone.backbone.dark3 backbone.backbone.dark4", "backbone.backbone.dark4 backbone.backbone.dark5",
        "backbone.backbone.dark5 backbone.C3_p4", "backbone.C3_p4 backbone.C3_p3", "backbone.C3_p3 backbone.C3_n3",
        "backbone.C3_n3 backbone.C3_n4", "backbone.C3_n4 head.cls_convs.0.0 head.cls_preds.0",
        "backbone.C3_n4 head.reg_convs.2.1 head.obj_preds.2",
        "backbone.C3_p4 head.stems.0 head.cls_convs.0 head.cls_preds.0",
    ),
    name="YOLOX: a path down and up, decoupled heads per level",
)  # fmt: skip
class Yolox(nn.Module):
    def __init__(self, backbone: Any = None, head: Any = None) -> None:
        super().__init__()
        if backbone is None:
            backbone = FlatUp()
        if head is None:
            head = Decoupled()
        self.backbone, self.head = backbone, head

    def forward(self, x: Any, targets: Any = None) -> Any:
        fpn_outs = self.backbone(x)
        if self.training:
            assert targets is not None
            return {"total_loss": sum(o.mean() for o in self.head(fpn_outs, targets))}
        return self.head(fpn_outs)


class Induced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inducing = nn.Parameter(torch.Tensor(1, 3, 4))
        nn.init.xavier_uniform_(self.inducing)
        self.mab0, self.mab1 = CrossLayer(), CrossLayer()

    def forward(self, x: Any) -> Any:
        h = self.mab0(self.inducing.repeat(x.size(0), 1, 1), x)
        return self.mab1(x, h)


class CrossLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = lin(), lin(), lin(), lin()

    def forward(self, q: Any, k: Any) -> Any:
        q, k, v = self.fc_q(q), self.fc_k(k), self.fc_v(k)
        o = q + torch.softmax(q.bmm(k.transpose(1, 2)) / math.sqrt(4), 2).bmm(v)
        return o + F.relu(self.fc_o(o))


class SelfLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mab = CrossLayer()

    def forward(self, x: Any) -> Any:
        return self.mab(x, x)


class Seeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s, self.mab = nn.Parameter(torch.randn(1, 2, 4)), CrossLayer()

    def forward(self, x: Any) -> Any:
        return self.mab(self.s.repeat(x.size(0), 1, 1), x)


@right(
    rising=("enc.0 enc.1", "enc.1 dec.0", "dec.0 dec.1", "dec.1 dec.2", "dec.2 dec.3"),
    name="Set Transformer: encoder and decoder of one set",
)
class SetTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(Induced(), Induced())
        self.dec = nn.Sequential(Seeds(), SelfLayer(), SelfLayer(), nn.Linear(4, 2))

    def forward(self, x: Any) -> Any:
        return self.dec(self.enc(x))


class HashEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(64, 2))
        self.register_buffer("offsets", torch.tensor([0, 16, 32, 48]))

    def forward(self, inputs: Any, bound: float = 1.0) -> Any:
        inputs = (inputs + bound) / (2 * bound)
        index = (inputs[..., :1] * 15).long() + self.offsets
        return self.embeddings[index].flatten(-2)


@right(
    rising=("encoder sigma_net.0", "sigma_net.0 sigma_net.1", "sigma_net.1 color_net.0", "color_net.0 color_net.1",
            "color_net.1 color_net.2"),
    name="a radiance field from a hash grid",
)  # fmt: skip
class HashField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_layers, self.num_layers_color = 2, 3
        self.encoder = HashEncoder()
        sigma_net = []
        for layer in range(self.num_layers):
            sigma_net.append(nn.Linear(8 if layer == 0 else 4, 5 if layer == self.num_layers - 1 else 4, bias=False))
        self.sigma_net = nn.ModuleList(sigma_net)
        color_net = []
        for layer in range(self.num_layers_color):
            color_net.append(nn.Linear(7 if layer == 0 else 4, 3 if layer == 2 else 4, bias=False))
        self.color_net = nn.ModuleList(color_net)

    def density(self, x: Any) -> Any:
        h = self.encoder(x)
        for layer in range(self.num_layers):
            h = self.sigma_net[layer](h)
            if layer != self.num_layers - 1:
                h = F.relu(h, inplace=True)
        return torch.exp(h[..., 0]), h[..., 1:]

    def forward(self, x: Any, d: Any) -> Any:
        sigma, geo_feat = self.density(x)
        h = torch.cat([d, geo_feat], dim=-1)
        for layer in range(self.num_layers_color):
            h = self.color_net[layer](h)
            if layer != self.num_layers_color - 1:
                h = F.relu(h, inplace=True)
        return sigma, torch.sigmoid(h)


class RnnCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, inputs: Any = None, hidden: Any = None, seq_len: int = 3) -> Any:
        ht = torch.zeros(1, 4, 4, 4) if hidden is None else hidden
        outputs = []
        for index in range(seq_len):
            x = torch.zeros_like(ht) if inputs is None else inputs[index]
            z, h = torch.split(self.conv(torch.cat([x, ht], 1)), 4, dim=1)
            ht = torch.sigmoid(z) * ht + (1 - torch.sigmoid(z)) * torch.tanh(h)
            outputs.append(ht)
        return torch.stack(outputs), ht


class Stepwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = 3
        for index in range(1, 4):
            setattr(
                self, f"stage{index}", nn.Sequential(nn.Conv2d(1 if index == 1 else 4, 4, 3, padding=1), nn.LeakyReLU())
            )
            setattr(self, f"rnn{index}", RnnCell())

    def forward(self, inputs: Any) -> Any:
        states = []
        for i in range(1, self.blocks + 1):
            seq, batch, channels, height, width = inputs.size()
            x = getattr(self, "stage" + str(i))(inputs.reshape(-1, channels, height, width))
            inputs, state = getattr(self, "rnn" + str(i))(x.reshape(seq, batch, 4, height, width), None)
            states.append(state)
        return tuple(states)


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = 3
        for index in range(3):
            setattr(self, f"rnn{3 - index}", RnnCell())
            setattr(
                self, f"stage{3 - index}", nn.Sequential(nn.ConvTranspose2d(4, 1 if index == 2 else 4, 3, padding=1))
            )

    def by_stage(self, inputs: Any, state: Any, subnet: nn.Module, rnn: nn.Module) -> Any:
        inputs, _ = rnn(inputs, state, seq_len=3)
        seq, batch, channels, height, width = inputs.size()
        x = subnet(inputs.reshape(-1, channels, height, width))
        return x.reshape(seq, batch, x.size(1), x.size(2), x.size(3))

    def forward(self, hidden: Any) -> Any:
        inputs = self.by_stage(None, hidden[-1], self.stage3, self.rnn3)
        for i in list(range(1, self.blocks))[::-1]:
            inputs = self.by_stage(
                inputs, hidden[i - 1], getattr(self, "stage" + str(i)), getattr(self, "rnn" + str(i))
            )
        return inputs


@right(
    rising=(
        "encoder.stage1 encoder.rnn1 encoder.stage2 encoder.rnn2 encoder.stage3 encoder.rnn3",
        "encoder.rnn1 encoder.rnn2", "encoder.rnn2 encoder.rnn3", "encoder.rnn3 forecaster.stage1",
        "forecaster.rnn3 forecaster.stage3 forecaster.rnn2 forecaster.stage2 forecaster.rnn1 forecaster.stage1",
        "forecaster.rnn3 forecaster.rnn2", "forecaster.rnn2 forecaster.rnn1",
    ),
    name="rain: an encoder upwards, a forecaster downwards",
)  # fmt: skip
class Rain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.forecaster = Stepwise(), Forecaster()

    def forward(self, x: Any) -> Any:
        return self.forecaster(self.encoder(x))


@right("features.0 features.3 features.6 features.9 classifier", name="VGG through checkpoint_sequential")
class CheckpointedVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = []
        for i in range(4):
            features += [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 10))

    def forward(self, x: Any) -> Any:
        x = checkpoint_sequential(self.features, 2, x, use_reentrant=False)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return checkpoint(self.classifier, x, use_reentrant=False)


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


@right(
    rising=("stem encoder.fc1", "encoder.fc1 encoder.fc2 head", "encoder.fc2 head", "stem head"),
    name="a scripted part",
)
class WithScript(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.head = lin(), torch.jit.script(TwoLinears()), nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self.head(self.encoder(self.stem(x.flatten(1)))), y)


@right(
    name="a backbone in DataParallel, a part that starts later",
    rising=(  # after the last block of the backbone: head or a layer of its own
        "backbone.embed backbone.layers.0", "backbone.layers.0 backbone.layers.1",
        "backbone.layers.1 backbone.layers.2", "backbone.layers.2 refine fc",
    ),
)  # fmt: skip
class Late(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.DataParallel(Tower(3))
        self.fc, self.refine = nn.Linear(4, 2), Layer()

    def forward(self, x: Any) -> Any:
        feats = self.backbone(x)
        if self.current_epoch >= 5:
            feats = self.refine(feats)
        return self.fc(feats.mean(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)
