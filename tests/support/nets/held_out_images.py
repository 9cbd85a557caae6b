"""Networks of images, scenes and graphs, whose right order was written down before any code looked at them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from tests.support.nets.collection import Conv, Layer, Tower, Twice, layers, lin, right


def conv(a: int = 4, b: int = 4, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, stride, padding=size // 2)


def up(a: int = 4) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(a, 4, 3, 2)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = lin()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)[..., None, None]  # type: ignore[no-any-return]


@right(
    rising=(
        "conv1 conv2 conv3 tconv3 tconv2 tconv1",
        "embed dense1 conv2 dense2 conv3 dense3 tconv3 dense4 tconv2 dense5 tconv1",
        "conv1 gnorm1 conv2 gnorm2",
    ),
    name="a flat U-Net with the noise level after every convolution",
)
class ScoreNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, 4), lin())
        self.conv1, self.dense1, self.gnorm1 = conv(1), Dense(), nn.GroupNorm(2, 4)
        self.conv2, self.dense2, self.gnorm2 = conv(stride=2), Dense(), nn.GroupNorm(2, 4)
        self.conv3, self.dense3, self.gnorm3 = conv(stride=2), Dense(), nn.GroupNorm(2, 4)
        self.tconv3, self.dense4, self.tgnorm3 = up(), Dense(), nn.GroupNorm(2, 4)
        self.tconv2, self.dense5, self.tgnorm2 = up(8), Dense(), nn.GroupNorm(2, 4)
        self.tconv1 = conv(8, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embed = self.act(self.embed(t))
        h1 = self.conv1(x)
        h1 = self.act(self.gnorm1(h1 + self.dense1(embed)))
        h2 = self.conv2(h1)
        h2 = self.act(self.gnorm2(h2 + self.dense2(embed)))
        h3 = self.conv3(h2)
        h3 = self.act(self.gnorm3(h3 + self.dense3(embed)))
        h = self.tconv3(h3)
        h = self.act(self.tgnorm3(h + self.dense4(embed)))
        h = self.tconv2(torch.cat([h, h2], 1))
        h = self.act(self.tgnorm2(h + self.dense5(embed)))
        h = self.tconv1(torch.cat([h, h1], 1))
        return h / (1 + t)[:, None, None, None]  # type: ignore[no-any-return]


class PreNormResidual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x)) + x  # type: ignore[no-any-return]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@right("1 2-4 7", rising=("4 5 7",), name="MLP-Mixer in one Sequential")
def mixer() -> nn.Module:
    def block() -> nn.Sequential:
        return nn.Sequential(
            PreNormResidual(nn.Sequential(nn.Conv1d(9, 9, 1), nn.GELU(), nn.Conv1d(9, 9, 1))),
            PreNormResidual(nn.Sequential(lin(), nn.GELU(), lin())),
        )

    return nn.Sequential(nn.Flatten(2), lin(), *[block() for _ in range(3)], nn.LayerNorm(4), Mean(), nn.Linear(4, 2))


@right(
    rising=(
        "pts_linears.0 pts_linears.1 pts_linears.2 pts_linears.3 feature_linear views_linears rgb_linear",
        "pts_linears.3 alpha_linear",
    ),
    name="NeRF",
)
class Nerf(nn.Module):
    def __init__(self, use_viewdirs: bool = True) -> None:
        super().__init__()
        self.skips, self.use_viewdirs = [2], use_viewdirs
        self.views_linears = nn.ModuleList([nn.Linear(7, 4)])
        self.pts_linears = nn.ModuleList([nn.Linear(3, 4)] + [nn.Linear(7 if i in [2] else 4, 4) for i in range(3)])
        self.feature_linear, self.alpha_linear, self.rgb_linear = lin(), nn.Linear(4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        input_pts, input_views = torch.split(x, [3, 3], dim=-1)
        h = input_pts
        for i, _ in enumerate(self.pts_linears):
            h = self.pts_linears[i](h).relu()
            if i in self.skips:
                h = torch.cat([input_pts, h], -1)
        alpha = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), input_views], -1)
        for linear in self.views_linears:
            h = linear(h).relu()
        return torch.cat([self.rgb_linear(h), alpha], -1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.skip = conv(), conv(), conv(size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


@right("convs.0-3 final_conv|final_linear", name="StyleGAN 2's discriminator")
class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(Conv(3), Residual(), Residual(), Residual())
        self.final_conv = Conv(5)
        self.final_linear = nn.Sequential(lin(), nn.LeakyReLU(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.convs(x)
        batch, channel, height, width = out.shape
        group = min(batch, 4)
        stddev = out.view(group, -1, 1, channel, height, width)
        stddev = torch.sqrt(stddev.var(0, unbiased=False) + 1e-8).mean([2, 3, 4], keepdims=True).squeeze(2)
        out = torch.cat([out, stddev.repeat(group, 1, height, width)], 1)
        out = self.final_conv(out).view(batch, -1)
        return self.final_linear(out)  # type: ignore[no-any-return]


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Linear(4, 2)
        self.conv1, self.bn1 = conv(3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), Residual())

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        y: Tensor = self.fc(x.mean([2, 3]))
        return y


@right(
    "encoder.conv1|encoder.bn1 encoder.layer1.0-1 encoder.layer2.0-1 projector",
    name="SimCLR: the backbone's head is gone, a projector follows",
)
class SimClr(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(lin(), nn.ReLU(), lin())
        self.encoder = SmallResNet()
        self.encoder.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (img0, img1, _), _ = batch
        z = normalize(self.projector(self.encoder(torch.cat([img0, img1]))), dim=1)
        logits = z @ z.T / 0.1
        return cross_entropy(logits, torch.arange(len(z), device=self.device))


class Wrapper(nn.Module):
    """A backbone on several crops, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.backbone = nn.Sequential(lin(), nn.GELU(), lin()), Tower(2)

    def forward(self, x: Any) -> Tensor:
        if not isinstance(x, list):
            x = [x]
        output: Any = torch.empty(0)
        for crops in x:
            output = torch.cat((output, self.backbone(crops)))
        y: Tensor = self.head(output)
        return y


@right(
    "student.backbone.embed|teacher.backbone.embed student.backbone.layers.0|teacher.backbone.layers.0 "
    "student.backbone.layers.1|teacher.backbone.layers.1 student.head|teacher.head",
    name="DINO",
)
class Dino(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.student = Wrapper()
        self.teacher = copy.deepcopy(self.student)
        for p in self.teacher.parameters():
            p.requires_grad = False
        self.register_buffer("center", torch.zeros(1, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, _ = batch
        teacher = ((self.teacher(images[:2]) - self.center) / 0.04).softmax(-1).detach()
        student = self.student(images) / 0.1
        return (-teacher * student.log_softmax(-1)).sum(-1).mean()  # type: ignore[no-any-return]


class Fpn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.P5_1, self.P5_2 = conv(size=1), conv()
        self.P4_1, self.P4_2 = conv(size=1), conv()
        self.P6 = conv(stride=2)

    def forward(self, inputs: Any) -> list[Tensor]:
        c4, c5 = inputs
        p5 = self.P5_1(c5)
        p4 = self.P4_1(c4) + interpolate(p5, scale_factor=2)
        return [self.P4_2(p4), self.P5_2(p5), self.P6(c5)]


class PredictionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.output = conv(), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.conv2(self.conv1(x).relu()).relu())
        return out.permute(0, 2, 3, 1).contiguous().view(out.shape[0], -1, 4)


@right(
    rising=(
        "conv1 layer1.0 layer1.1 layer2.0 layer2.1 fpn regressionModel",
        "layer2.1 fpn classificationModel",
    ),
    name="RetinaNet",
)  # fmt: skip
class RetinaNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), Residual())
        self.fpn, self.regressionModel, self.classificationModel = Fpn(), PredictionModel(), PredictionModel()
        self.loss = cross_entropy

    def forward(self, inputs: Any) -> Any:
        if self.training:
            img_batch, annotations = inputs
        else:
            img_batch = inputs
        x1 = self.layer1(self.bn1(self.conv1(img_batch)).relu())
        x2 = self.layer2(x1)
        features = self.fpn([x1, x2])
        regression = torch.cat([self.regressionModel(feature) for feature in features], dim=1)
        classification = torch.cat([self.classificationModel(feature) for feature in features], dim=1)
        if self.training:
            return self.loss(classification, annotations), regression
        return classification, regression


@right(
    rising=("pre_layers a3 b3 a4 b4 a5 b5 linear",),
    name="blocks by letter and number",
)
class GoogLeNet(nn.Module):
    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b1, self.b2 = nn.Sequential(conv(4, 2), nn.ReLU()), nn.Sequential(conv(4, 2), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.b1(x), self.b2(x)], 1)

    def __init__(self) -> None:
        super().__init__()
        self.pre_layers = nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(True))
        self.a3, self.b3 = self.Inception(), self.Inception()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.a4, self.b4, self.a5, self.b5 = (self.Inception() for _ in range(4))
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.maxpool(self.b3(self.a3(self.pre_layers(x))))
        out = self.b5(self.a5(self.maxpool(self.b4(self.a4(out)))))
        y: Tensor = self.linear(out.mean((2, 3)))
        return y


@right(
    rising=(
        "model0 model1_1 model2_1 model3_1", "model0 model1_2 model2_2 model3_2", "model1_1 model2_2 model3_1",
    ),
    name="two branches per stage, which read those of the stage before",
)  # fmt: skip
class OpenPose(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def stage(a: int) -> nn.Sequential:
            return nn.Sequential(conv(a), nn.ReLU(), conv())

        self.model0 = nn.Sequential(conv(3), nn.ReLU(), conv())
        self.model1_1, self.model2_1, self.model3_1 = stage(4), stage(12), stage(12)
        self.model1_2, self.model2_2, self.model3_2 = stage(4), stage(12), stage(12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out1 = self.model0(x)
        out2 = torch.cat([self.model1_1(out1), self.model1_2(out1), out1], 1)
        out3 = torch.cat([self.model2_1(out2), self.model2_2(out2), out1], 1)
        return self.model3_1(out3), self.model3_2(out3)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = conv(3)
        self.down = nn.ModuleList()
        for _ in range(2):
            down = nn.Module()
            down.block, down.attn = layers(2, Residual), layers(2, Twice)
            down.downsample = conv(stride=2)
            self.down.append(down)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = Residual(), Twice(), Residual()
        self.norm_out, self.conv_out = nn.GroupNorm(2, 4), conv()

    def forward(self, x: Tensor) -> Tensor:
        hs = [self.conv_in(x)]
        for level in range(2):
            for block in range(2):
                h = self.down[level].block[block](hs[-1])  # type: ignore[index,operator]
                if len(self.down[level].attn) > 0:  # type: ignore[arg-type]
                    h = self.down[level].attn[block](h)  # type: ignore[index,operator]
                hs.append(h)
            hs.append(self.down[level].downsample(hs[-1]))  # type: ignore[operator]
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hs[-1])))  # type: ignore[operator]
        y: Tensor = self.conv_out(self.norm_out(h))
        return y


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.mid = conv(), nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = Residual(), Twice(), Residual()
        self.up = nn.ModuleList()
        for _ in range(2):
            stage = nn.Module()
            stage.block = layers(2, Residual)
            self.up.insert(0, stage)
        self.norm_out, self.conv_out = nn.GroupNorm(2, 4), conv(4, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))  # type: ignore[operator]
        for level in reversed(range(2)):
            for block in range(2):
                h = self.up[level].block[block](h)  # type: ignore[index,operator]
        y: Tensor = self.conv_out(self.norm_out(h))
        return y


@right(
    rising=(
        "encoder.conv_in encoder.down.0 encoder.down.1 encoder.mid.block_1 encoder.mid.block_2 encoder.conv_out "
        "quant_conv quantize post_quant_conv decoder.mid.block_1 decoder.mid.block_2 decoder.up.1 decoder.up.0 "
        "decoder.conv_out",
    ),
    name="VQGAN",
)
class VqGan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quantize = nn.Embedding(9, 4)
        self.quant_conv, self.post_quant_conv = conv(size=1), conv(size=1)

    def encode(self, x: Tensor) -> Tensor:
        h = self.quant_conv(self.encoder(x))
        distance = (h.permute(0, 2, 3, 1)[..., None, :] - self.quantize.weight).pow(2).sum(-1)
        q = self.quantize(distance.argmin(-1)).permute(0, 3, 1, 2)
        return h + (q - h).detach()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.encode(x)))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["image"].permute(0, 3, 1, 2)
        return (self(x) - x).abs().mean()


@right(
    rising=(
        "vit.embed vit.layers.0 vit.layers.1 vit.layers.2 decoder2 out", "encoder1 decoder1 out",
        "vit.layers.0 encoder2", "vit.layers.1 decoder2", "encoder2 decoder1 out",
    ),
    name="UNETR",
)  # fmt: skip
class Unetr(nn.Module):
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers, self.norm = conv(3, 4, 1), layers(3), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            x, hidden = self.embed(x).flatten(2).transpose(1, 2), []
            for layer in self.layers:
                x = layer(x)
                hidden.append(x)
            return self.norm(x), hidden

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transp_conv, self.conv_block = up(), Residual()

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.conv_block(self.transp_conv(x) + skip)  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.vit = self.Vit()
        self.encoder1, self.encoder2 = Residual(), nn.Sequential(up(), Residual())
        self.decoder2, self.decoder1 = self.Up(), self.Up()
        self.encoder1.conv1, self.encoder1.skip = conv(3), conv(3, 4, 1)
        self.out = conv(4, 2, 1)

    def forward(self, x_in: Tensor) -> Tensor:
        x, hidden = self.vit(x_in)
        enc1, enc2 = self.encoder1(x_in), self.encoder2(hidden[1])
        dec2 = self.decoder2(x, enc2)
        return self.out(self.decoder1(dec2, enc1))  # type: ignore[no-any-return]


@right(
    rising=("backbone.conv1 backbone.layer1.0 backbone.layer2.1 arm32 ffm conv_out", "spatial_path ffm"),
    name="BiSeNet: a spatial path beside a context path",
)
class BiSeNet(nn.Module):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.layer1 = Conv(3), nn.Sequential(Residual(), Residual())
            self.layer2 = nn.Sequential(Residual(), Residual())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.layer1(self.conv1(x))
            return x, self.layer2(x)

    def __init__(self) -> None:
        super().__init__()
        self.spatial_path = nn.Sequential(Conv(3), Conv(), Conv())
        self.backbone = self.Backbone()
        self.arm16, self.arm32, self.ffm, self.conv_out, self.conv_out16 = Conv(), Conv(), Conv(8), conv(), conv()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        f16, f32 = self.backbone(x)
        cp = interpolate(self.arm32(f32), f16.shape[2:]) + self.arm16(f16)
        fuse = self.ffm(torch.cat([self.spatial_path(x), cp], 1))
        if self.training:
            return self.conv_out(fuse), self.conv_out16(cp)
        return (self.conv_out(fuse),)


# ---------------------------------------------------------------------- points and graphs
def edge(a: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, 4, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))


@right(rising=("conv1 conv2 conv3 conv4 linear1 linear2",), name="edge convolutions over neighbours")
class Dgcnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn5 = nn.BatchNorm1d(4)
        self.conv1, self.conv2, self.conv3 = edge(6), edge(8), edge(8)
        self.conv4 = nn.Sequential(nn.Conv1d(12, 4, 1), self.bn5, nn.ReLU())
        self.linear1, self.bn6, self.dp1, self.linear2 = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), lin()

    @staticmethod
    def neighbours(x: Tensor, k: int = 2) -> Tensor:
        index = torch.cdist(x.transpose(2, 1), x.transpose(2, 1)).topk(k=k)[1]
        batch_size, channels, points = x.shape
        feature = x.transpose(2, 1).reshape(batch_size * points, -1)[index.view(-1), :]
        feature = feature.view(batch_size, points, k, channels)
        x = x.transpose(2, 1).view(batch_size, points, 1, channels).repeat(1, 1, k, 1)
        return torch.cat((feature - x, x), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1(self.neighbours(x)).max(dim=-1)[0]
        x2 = self.conv2(self.neighbours(x1)).max(dim=-1)[0]
        x3 = self.conv3(self.neighbours(x2)).max(dim=-1)[0]
        x = self.conv4(torch.cat((x1, x2, x3), dim=1))
        x = torch.cat((x.max(-1)[0], x.mean(-1)), 1)
        return self.linear2(self.dp1(self.bn6(self.linear1(x)).relu()))  # type: ignore[no-any-return]


class MessageLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edge_mlp, self.node_mlp = nn.Sequential(nn.Linear(9, 4), nn.SiLU()), nn.Linear(8, 4)
        self.coord_mlp = nn.Linear(4, 1)

    def forward(self, h: Tensor, index: Any, coord: Tensor) -> tuple[Tensor, Tensor]:
        row, col = index
        difference = coord[row] - coord[col]
        message = self.edge_mlp(torch.cat([h[row], h[col], difference.pow(2).sum(1, keepdim=True)], 1))
        coord = coord + torch.zeros_like(coord).index_add(0, row, difference * self.coord_mlp(message))
        sums = torch.zeros_like(h).index_add(0, row, message)
        return h + self.node_mlp(torch.cat([h, sums], 1)), coord


@right("embedding_in gcl_0 gcl_1 gcl_2 embedding_out", name="equivariant graph layers by add_module")
class Egnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_out, self.embedding_in = lin(), lin()
        for i in range(3):
            self.add_module(f"gcl_{i}", MessageLayer())

    def forward(self, h: Tensor, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embedding_in(h)
        for i in range(3):
            h, x = self._modules[f"gcl_{i}"](h, edges, x)  # type: ignore[misc]
        return self.embedding_out(h), x


@right(
    rising=("emb interaction_blocks.0 interaction_blocks.1 output_blocks.2", "emb output_blocks.0"),
    name="directional messages: an output after the embedding and after every block",
)
class DimeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rbf = nn.Linear(1, 4)
        self.output_blocks = layers(3, Layer)
        self.emb = nn.Embedding(9, 4)
        self.interaction_blocks = layers(2, Layer)

    def forward(self, z: Tensor, pos: Tensor, index: Tensor) -> Tensor:
        i, j = index
        dist = (pos[i] - pos[j]).pow(2).sum(dim=-1, keepdim=True).sqrt()
        rbf = self.rbf(dist)
        x = self.emb(z)[i] + self.emb(z)[j] + rbf
        P = self.output_blocks[0](x, rbf)  # noqa: N806
        for interaction_block, output_block in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            x = interaction_block(x, rbf)
            P = P + output_block(x, rbf)  # noqa: N806
        return P.sum(0)  # type: ignore[no-any-return]


@right("convs.0|skips.0 convs.1|skips.1 convs.2|skips.2 lin", name="graph attention with jumping knowledge")
class Jumping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(12, 2)
        self.convs, self.skips = layers(3, lambda: nn.MultiheadAttention(4, 2)), layers(3, lin)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        xs: list[Tensor] = []
        for conv_, skip in zip(self.convs, self.skips, strict=True):
            x = (conv_(x, x, x, attn_mask=adj)[0] + skip(x)).relu()
            xs += [x]
        return self.lin(torch.cat(xs, dim=-1)).log_softmax(-1)  # type: ignore[no-any-return]


@right(rising=("lin0 nn conv gru lin1 lin2", "gru set2set lin1"), name="messages by one layer, used thrice")
class MessagePassing(nn.Module):
    class Conv(nn.Module):
        def __init__(self, nn_: nn.Module) -> None:
            super().__init__()
            self.nn, self.root = nn_, nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: Tensor, index: Any, attr: Tensor) -> Tensor:
            weight = self.nn(attr).view(-1, 4, 4)
            src, dst = index
            message = (x[src].unsqueeze(1) @ weight).squeeze(1)
            return torch.zeros_like(x).index_add(0, dst, message) + x @ self.root

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = lin()
        self.nn = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 16))
        self.conv, self.gru, self.set2set = self.Conv(self.nn), nn.GRU(4, 4), nn.LSTM(8, 4)
        self.lin1, self.lin2 = lin(), nn.Linear(4, 1)

    def forward(self, data: Any) -> Tensor:
        out = self.lin0(data.x).relu()
        h = out.unsqueeze(0)
        for _ in range(3):
            m = self.conv(out, data.edge_index, data.edge_attr).relu()
            out, h = self.gru(m.unsqueeze(0), h)
            out = out.squeeze(0)
        out = self.set2set(torch.cat([out, out], -1))[0]
        return self.lin2(self.lin1(out).relu()).view(-1)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- agents
@right(
    rising=(
        "representation.embed representation.layers.0 representation.layers.1 dynamics.embed dynamics.layers.1 "
        "prediction.policy",
        "dynamics.layers.0 prediction.value",
        "dynamics.layers.1 reward",
    ),
    name="MuZero: representation, dynamics, prediction",
)
class MuZero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prediction = nn.ModuleDict({"policy": lin(), "value": nn.Linear(4, 1)})
        self.dynamics, self.reward, self.representation = Tower(2), nn.Linear(4, 1), Tower(2)

    def loss(self, observation: Tensor, actions: Tensor, targets: Any) -> Tensor:
        state = self.representation(observation)
        total = cross_entropy(self.prediction["policy"](state), targets.policy[0])
        for step in range(3):
            state = self.dynamics(torch.cat([state, actions[step]], -1))
            total = total + cross_entropy(self.prediction["policy"](state), targets.policy[step])
            total = total + (self.prediction["value"](state) - targets.value[step]).pow(2).mean()
            total = total + (self.reward(state) - targets.reward[step]).pow(2).mean()
        return total


@right(
    rising=("block_seqs.0 block_seqs.1 block_seqs.2 hidden_fc logits_fc", "block_seqs.2 hidden_fc value_fc"),
    name="IMPALA's convolutions",
)
class Impala(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.res_block0, self.res_block1 = conv(), Residual(), Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.res_block1(self.res_block0(self.conv(x)))  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.block_seqs = nn.ModuleList(self.Block() for _ in range(3))
        self.hidden_fc, self.logits_fc, self.value_fc = lin(), lin(), nn.Linear(4, 1)

    def forward(self, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = obs["obs"].float().permute(0, 3, 1, 2) / 255.0
        for seq in self.block_seqs:
            x = seq(x)
        x = self.hidden_fc(torch.flatten(x, 1).relu()).relu()
        self._value = self.value_fc(x)
        return self.logits_fc(x), self._value.squeeze(1)


class Dropped(Layer):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_path: nn.Module = nn.Dropout(rate) if rate else nn.Identity()

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.drop_path(super().forward(x))  # type: ignore[no-any-return]


@right(
    "embeds.0 block.0.0 block.0.1|norm.0 embeds.1|block.1.0 block.1.1|norm.1 head",
    name="stages of blocks of which the first drops nothing",
)
class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeds, self.norm = layers(2, Conv), layers(2, lambda: nn.LayerNorm(4))
        self.block = nn.ModuleList(nn.ModuleList([Dropped(stage * 0.1), Dropped(0.1)]) for stage in range(2))
        self.head = lin()

    def forward(self, x: Tensor) -> Tensor:
        for embed, blocks, norm in zip(self.embeds, self.block, self.norm, strict=True):
            x = embed(x).flatten(2).transpose(1, 2)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            x = norm(x).transpose(1, 2).reshape(len(x), 4, 2, 2)
        y: Tensor = self.head(x.mean((2, 3)))
        return y
