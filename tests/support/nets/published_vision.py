"""Networks as their authors' repositories write them: pictures in, and labels, boxes, masks or pictures out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from tests.support.nets.collection import Conv, Twice, layers, lin, right


def conv(a: int = 4, b: int = 4, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2)


@right(rising=("downs.0 downs.1 bottleneck ups.0 ups.1 ups.2 ups.3 final_conv",), name="U-Net of a course")
class CourseUNet(nn.Module):
    """Upward list first, transposed convolutions and blocks in one list, a check of shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.ups, self.downs, self.pool = nn.ModuleList(), nn.ModuleList(), nn.MaxPool2d(2)
        for _ in range(2):
            self.downs.append(Twice())
        for _ in range(2):
            self.ups.append(nn.ConvTranspose2d(4, 4, 2, 2))
            self.ups.append(Twice())
        self.bottleneck = Twice()
        self.final_conv = conv(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        skips = skips[::-1]
        for i in range(0, len(self.ups), 2):
            x = self.ups[i](x)
            skip = skips[i // 2]
            if x.shape != skip.shape:
                x = interpolate(x, size=skip.shape[2:])
            x = self.ups[i + 1](torch.cat((skip, x), dim=1))
        y: Tensor = self.final_conv(x)
        return y


class UpConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), conv(), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x)
        return y


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_g, self.W_x, self.psi = conv(4, 4, 1), conv(4, 4, 1), conv(4, 1, 1)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        y: Tensor = x * self.psi((self.W_g(g) + self.W_x(x)).relu()).sigmoid()
        return y


@right(
    rising=("Conv1 Conv2 Conv3 Up3 Up_conv3 Up2 Up_conv2 Conv_1x1", "Conv2 Att3 Up_conv3", "Conv1 Att2 Up_conv2"),
    name="attention U-Net",
)
class AttentionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Maxpool = nn.MaxPool2d(2)
        self.Conv1, self.Conv2, self.Conv3 = Twice(), Twice(), Twice()
        self.Up3, self.Att3, self.Up_conv3 = UpConv(), Gate(), Twice()
        self.Up2, self.Att2, self.Up_conv2 = UpConv(), Gate(), Twice()
        self.Conv_1x1 = conv(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.Conv1(x)
        x2 = self.Conv2(self.Maxpool(x1))
        x3 = self.Conv3(self.Maxpool(x2))
        d3 = self.Up3(x3)
        d3 = self.Up_conv3(torch.cat((self.Att3(g=d3, x=x2), d3), dim=1))
        d2 = self.Up2(d3)
        d2 = self.Up_conv2(torch.cat((self.Att2(g=d2, x=x1), d2), dim=1))
        y: Tensor = self.Conv_1x1(d2)
        return y


@right(
    rising=(
        "stage1 stage2 stage3 stage4 stage3d stage2d stage1d outconv",
        "stage1d side1 outconv",
        "stage4 side4 outconv",
    ),
    name="nested U-Net with side outputs",
)
class SideOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3, self.stage4 = Twice(), Twice(), Twice(), Twice()
        self.stage3d, self.stage2d, self.stage1d = Twice(), Twice(), Twice()
        self.side1, self.side2, self.side3, self.side4 = conv(4, 1), conv(4, 1), conv(4, 1), conv(4, 1)
        self.outconv = conv(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = self.stage1(x)
        b = self.stage2(a)
        c = self.stage3(b)
        d = self.stage4(c)
        c = self.stage3d(torch.cat((d, c), 1))
        b = self.stage2d(torch.cat((c, b), 1))
        a = self.stage1d(torch.cat((b, a), 1))
        s1, s2, s3, s4 = self.side1(a), self.side2(b), self.side3(c), self.side4(d)
        s0 = self.outconv(torch.cat((s1, s2, s3, s4), 1))
        return s0.sigmoid(), s1.sigmoid(), s2.sigmoid(), s3.sigmoid(), s4.sigmoid()


@right("head body.0-2 tail", rising=("head body.0 body.2 tail",), name="super-resolution: head, body, tail")
class HeadBodyTail(nn.Module):
    """EDSR calls its first convolution the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(conv(3))
        self.body = nn.Sequential(Twice(), Twice(), Twice())
        self.tail = nn.Sequential(conv(4, 16), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y: Tensor = self.tail(self.body(x) + x)
        return y


@right(rising=("conv_first body.0 body.1 conv_body conv_up1 conv_up2 conv_hr conv_last",), name="ESRGAN")
class Upscaler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_first, self.body, self.conv_body = conv(3), nn.Sequential(Twice(), Twice()), conv()
        self.conv_up1, self.conv_up2, self.conv_hr, self.conv_last = conv(), conv(), conv(), conv(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = self.conv_up1(interpolate(feat, scale_factor=2)).relu()
        feat = self.conv_up2(interpolate(feat, scale_factor=2)).relu()
        y: Tensor = self.conv_last(self.conv_hr(feat).relu())
        return y


class Normalized(nn.Module):
    """A block that reads the layout too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_0, self.norm_0 = conv(), conv(3)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        y: Tensor = x + self.conv_0(x * self.norm_0(interpolate(seg, size=x.shape[2:])))
        return y


@right(rising=("fc head_0 G_middle_0 G_middle_1 up_0 up_1 up_2 conv_img",), name="SPADE's generator")
class LayoutToImage(nn.Module):
    """Its first block is called a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head_0 = conv(3), Normalized()
        self.G_middle_0, self.G_middle_1 = Normalized(), Normalized()
        self.up_0, self.up_1, self.up_2 = Normalized(), Normalized(), Normalized()
        self.conv_img, self.up = conv(4, 3), nn.Upsample(scale_factor=2)

    def forward(self, seg: Tensor, z: Tensor | None = None) -> Tensor:
        x = self.fc(interpolate(seg, size=(4, 4)))
        x = self.head_0(x, seg)
        x = self.up(x)
        x = self.G_middle_0(x, seg)
        x = self.G_middle_1(x, seg)
        x = self.up_0(self.up(x), seg)
        x = self.up_1(self.up(x), seg)
        x = self.up_2(self.up(x), seg)
        y: Tensor = self.conv_img(x.relu()).tanh()
        return y


class Styled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.modulation = nn.Parameter(torch.zeros(4, 4, 1, 1)), lin()

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        y: Tensor = torch.conv2d(x * self.modulation(style)[:, :, None, None], self.weight)
        return y if skip is None else y + skip


@right(
    rising=("style.0 conv1 convs.0 convs.1 convs.2 convs.3", "input convs.0", "convs.1 to_rgbs.0", "convs.3 to_rgbs.1"),
    name="StyleGAN 2",
)
class StyleGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Sequential(lin(), nn.LeakyReLU(), lin())
        self.input = nn.Parameter(torch.zeros(1, 4, 4, 4))
        self.conv1, self.to_rgb1 = Styled(), Styled()
        self.convs, self.to_rgbs = layers(4, Styled), layers(2, Styled)
        self.n_latent = 6

    def forward(self, styles: list[Tensor], inject_index: int | None = None) -> Tensor:
        styles = [self.style(s) for s in styles]
        latent = styles[0].unsqueeze(1).repeat(1, self.n_latent, 1)
        out = self.input.repeat(latent.shape[0], 1, 1, 1)
        out = self.conv1(out, latent[:, 0])
        skip = self.to_rgb1(out, latent[:, 1])
        i = 1
        for conv1, conv2, to_rgb in zip(self.convs[::2], self.convs[1::2], self.to_rgbs, strict=True):
            out = conv1(out, latent[:, i])
            out = conv2(out, latent[:, i + 1])
            skip = to_rgb(out, latent[:, i + 2], skip)
            i += 2
        return skip


@right(rising=("vgg.0 vgg.2 vgg.4 extras.0 extras.1", "vgg.4 loc.0", "extras.1 loc.1", "extras.1 conf.1"), name="SSD")
class SingleShot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vgg = nn.ModuleList([conv(3), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.ReLU()])
        self.extras = nn.ModuleList([conv(4, 4, 1), conv()])
        self.loc, self.conf = layers(2, conv), layers(2, conv)
        self.phase = "train"

    def forward(self, x: Tensor) -> Any:
        sources, loc, conf = [], [], []
        for k in range(4):
            x = self.vgg[k](x)
        sources.append(x)
        for k in range(4, len(self.vgg)):
            x = self.vgg[k](x)
        for k, v in enumerate(self.extras):
            x = v(x).relu()
            if k % 2 == 1:
                sources.append(x)
        for x, one, other in zip(sources, self.loc, self.conf, strict=True):
            loc.append(one(x).permute(0, 2, 3, 1).contiguous())
            conf.append(other(x).permute(0, 2, 3, 1).contiguous())
        boxes = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        kinds = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return boxes.view(boxes.size(0), -1, 4), kinds.view(kinds.size(0), -1, 21)


class Route(nn.Module):
    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start


class Detection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., None] * self.anchors[0]


@right(rising=("module_list.0 module_list.1 module_list.3 module_list.4",), name="a network of a configuration file")
class Darknet(nn.Module):
    """The class of each entry says what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.module_list = nn.ModuleList([Conv(3), Conv(), Route(-2), Conv(), Conv(), Detection()])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        found = []
        for module in self.module_list:
            if isinstance(module, Route):
                x = x + outputs[module.start]
            elif isinstance(module, Detection):
                x = module(x)
                found.append(x)
            else:
                x = module(x)
            outputs.append(x)
        return found


@right(
    rising=(
        "model0 model1_1 model2_1 model3_1",
        "model0 model1_2 model2_2 model3_2",
        "model1_1 model2_2",
        "model1_2 model2_1 model3_2",
    ),
    name="stages of two branches",
)
class Pose(nn.Module):
    """OpenPose: what both branches of a stage found is read by both of the next; defined branch by branch."""

    def __init__(self) -> None:
        super().__init__()
        self.model0 = nn.Sequential(conv(3), nn.ReLU(), conv())
        self.model1_1, self.model2_1, self.model3_1 = (nn.Sequential(conv(), nn.ReLU(), conv()) for _ in range(3))
        self.model1_2, self.model2_2, self.model3_2 = (nn.Sequential(conv(), nn.ReLU(), conv()) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out1 = self.model0(x)
        a, b = self.model1_1(out1), self.model1_2(out1)
        out2 = torch.cat([a, b, out1], 1)
        a, b = self.model2_1(out2), self.model2_2(out2)
        out3 = torch.cat([a, b, out1], 1)
        return self.model3_1(out3), self.model3_2(out3)


class Transform(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc1 = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, 9)

    def forward(self, x: Tensor) -> Tensor:
        batchsize = x.size()[0]
        x = self.conv2(self.conv1(x).relu()).relu()
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 4)
        return self.fc1(x).view(-1, 3, 3) + torch.eye(3).repeat(batchsize, 1, 1)


class Points(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stn = Transform()
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(2, 1), self.stn(x)).transpose(2, 1)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x))
        return torch.max(x, 2, keepdim=True)[0].view(-1, 4)


@right(rising=("feat.stn feat.conv1 feat.conv2 feat.conv3 fc1 fc2 fc3",), name="PointNet")
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feat = Points()
        self.fc1, self.fc2, self.fc3, self.dropout = lin(), lin(), lin(), nn.Dropout(0.3)
        self.bn1, self.bn2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.feat(x)
        x = self.bn1(self.fc1(x)).relu()
        x = self.bn2(self.dropout(self.fc2(x))).relu()
        y: Tensor = self.fc3(x)
        return torch.log_softmax(y, dim=1)


class Abstraction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = layers(2, conv), layers(2, lambda: nn.BatchNorm2d(4))

    def forward(self, xyz: Tensor, points: Tensor | None) -> tuple[Tensor, Tensor]:
        x = xyz if points is None else torch.cat([xyz, points], -1)
        for one, bn in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = bn(one(x)).relu()
        return xyz, x


class Propagation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp_convs = layers(2, conv)

    def forward(self, xyz1: Tensor, xyz2: Tensor, points1: Tensor, points2: Tensor) -> Tensor:
        x = points1 + points2
        for one in self.mlp_convs:
            x = one(x).relu()
        return x


@right(rising=("sa1 sa2 sa3 fp3 fp2 fp1 conv1 conv2",), name="PointNet++")
class PointNet2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sa1, self.sa2, self.sa3 = Abstraction(), Abstraction(), Abstraction()
        self.fp3, self.fp2, self.fp1 = Propagation(), Propagation(), Propagation()
        self.conv1, self.bn1, self.drop1 = conv(), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.conv2 = conv(4, 2)

    def forward(self, xyz: Tensor) -> Tensor:
        l0_points, l0_xyz = xyz, xyz[:, :3, :]
        l1_xyz, l1_points = self.sa1(l0_xyz, l0_points)
        l2_xyz, l2_points = self.sa2(l1_xyz, l1_points)
        l3_xyz, l3_points = self.sa3(l2_xyz, l2_points)
        l2_points = self.fp3(l2_xyz, l3_xyz, l2_points, l3_points)
        l1_points = self.fp2(l1_xyz, l2_xyz, l1_points, l2_points)
        l0_points = self.fp1(l0_xyz, l1_xyz, l0_points, l1_points)
        y: Tensor = self.conv2(self.drop1(self.bn1(self.conv1(l0_points)).relu()))
        return y


@right(rising=("localization.0 localization.2 fc_loc.0 conv1 conv2 fc1 fc2",), name="a spatial transformer")
class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc1, self.fc2 = conv(1), conv(), lin(), lin()
        self.localization = nn.Sequential(conv(1), nn.ReLU(), conv(), nn.ReLU())
        self.fc_loc = nn.Sequential(lin(), nn.ReLU(), nn.Linear(4, 6))

    def stn(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(x).view(-1, 4)).view(-1, 2, 3)
        return grid_sample(x, nn.functional.affine_grid(theta, list(x.size())))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stn(x)
        x = self.conv2(self.conv1(x).relu()).relu()
        y: Tensor = self.fc2(self.fc1(x.view(-1, 4)).relu())
        return torch.log_softmax(y, dim=1)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1, self._ops = conv(), conv(), layers(2, conv)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        s0, s1 = self.preprocess0(s0), self.preprocess1(s1)
        return torch.cat([self._ops[0](s0), self._ops[1](s1)], dim=1)


@right("stem0 stem1 cells.0-3 classifier", "auxiliary_head", name="cells of a search")
class Searched(nn.Module):
    """DARTS: every cell reads the two before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem0, self.stem1 = Conv(3), Conv()
        self.cells, self.auxiliary_head, self.classifier = layers(4, Cell), Twice(), lin()
        self._auxiliary, self.drop_path_prob = True, 0.2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_aux = None
        s0 = self.stem0(x)
        s1 = self.stem1(s0)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == 2 and self._auxiliary and self.training:
                logits_aux = self.auxiliary_head(s1)
        return self.classifier(s1.mean((2, 3))), logits_aux


class Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3, self.layer4 = Twice(), Twice(), Twice(), Twice()


class Refine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resConfUnit1, self.resConfUnit2, self.out_conv = Twice(), Twice(), conv()

    def forward(self, *xs: Tensor) -> Tensor:
        out = xs[0]
        if len(xs) == 2:
            out = out + self.resConfUnit1(xs[1])
        y: Tensor = self.out_conv(interpolate(self.resConfUnit2(out), scale_factor=2))
        return y


class Scratch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = conv(), conv(), conv(), conv()
        self.refinenet4, self.refinenet3, self.refinenet2, self.refinenet1 = Refine(), Refine(), Refine(), Refine()
        self.output_conv = nn.Sequential(conv(), conv(4, 1))


@right(
    rising=(
        "pretrained.layer1 pretrained.layer2 pretrained.layer3 pretrained.layer4 scratch.layer4_rn scratch.refinenet4 "
        "scratch.refinenet3 scratch.refinenet2 scratch.refinenet1 scratch.output_conv",
    ),
    name="MiDaS",
)
class DepthFromOneImage(nn.Module):
    """All parts of its two halves are called from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained, self.scratch, self.channels_last = Pretrained(), Scratch(), False

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x.contiguous(memory_format=torch.channels_last)
        l1 = self.pretrained.layer1(x)
        l2 = self.pretrained.layer2(l1)
        l3 = self.pretrained.layer3(l2)
        l4 = self.pretrained.layer4(l3)
        r1, r2 = self.scratch.layer1_rn(l1), self.scratch.layer2_rn(l2)
        r3, r4 = self.scratch.layer3_rn(l3), self.scratch.layer4_rn(l4)
        path = self.scratch.refinenet4(r4)
        path = self.scratch.refinenet3(path, r3)
        path = self.scratch.refinenet2(path, r2)
        path = self.scratch.refinenet1(path, r1)
        return torch.squeeze(self.scratch.output_conv(path), dim=1)


@right(
    rising=(
        "slow_stem slow_res2 slow_res3 head",
        "fast_stem fast_res2 fast_res3 head",
        "fast_stem lateral_1 slow_res2",
        "fast_res2 lateral_2 slow_res3",
    ),
    name="two rates of frames",
)
class SlowFast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fast_stem, self.fast_res2, self.fast_res3 = Conv(), Twice(), Twice()
        self.lateral_1, self.lateral_2 = conv(), conv()
        self.slow_stem, self.slow_res2, self.slow_res3 = Conv(), Twice(), Twice()
        self.head = lin()

    def forward(self, x: list[Tensor]) -> Tensor:
        slow, fast = x
        fast = self.fast_stem(fast)
        slow = torch.cat([self.slow_stem(slow), self.lateral_1(fast)], 1)
        fast = self.fast_res2(fast)
        slow = torch.cat([self.slow_res2(slow), self.lateral_2(fast)], 1)
        fast, slow = self.fast_res3(fast), self.slow_res3(slow)
        y: Tensor = self.head(torch.cat([slow.mean((2, 3)), fast.mean((2, 3))], 1))
        return y


@right(rising=("fnet.one update_block delta", "cnet.one update_block delta"), name="optical flow, refined in a loop")
class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.update_block, self.delta = nn.GRUCell(4, 4), lin()
        self.cnet, self.fnet = Twice(), Twice()

    def forward(self, image1: Tensor, image2: Tensor, iters: int = 3) -> list[Tensor]:
        fmap1, fmap2 = self.fnet(image1), self.fnet(image2)
        corr = torch.matmul(fmap1.flatten(2).transpose(1, 2), fmap2.flatten(2))
        net = self.cnet(image1).tanh().mean((2, 3))
        coords, found = torch.zeros(1), []
        for _ in range(iters):
            coords = coords.detach()
            net = self.update_block(corr.mean((1,)), net)
            coords = coords + self.delta(net)
            found.append(coords)
        return found


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_box, self.conv_cls = Twice(), Twice()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.conv_cls(x) for x in xs] + [self.conv_box(x) for x in xs]


@right("base.0-2 hm|wh|reg", name="a head for each name of a dict")
class CenterNet(nn.Module):
    """Heads are set and taken by the names of a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {"hm": 2, "wh": 2, "reg": 2}
        for head in self.heads:
            setattr(self, head, nn.Sequential(conv(), nn.ReLU(), conv()))
        self.base = nn.Sequential(Twice(), Twice(), Twice())

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.base(x)
        return [{head: getattr(self, head)(x) for head in self.heads}]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(Twice(), Twice()), nn.Sequential(Twice(), Twice())])
        self.fuse_layers = nn.ModuleList([layers(2, conv), layers(2, conv)])
        self.num_branches = 2

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(self.num_branches):
            x[i] = self.branches[i](x[i])
        fused = []
        for i in range(len(self.fuse_layers)):
            y = self.fuse_layers[i][0](x[0])
            for j in range(1, self.num_branches):
                y = y + self.fuse_layers[i][j](x[j])
            fused.append(y.relu())
        return fused


@right(rising=("conv1 layer1.0 layer1.1 stage2.0 stage3.0 stage3.1 incre classifier",), name="many resolutions")
class HighResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.layer1 = Conv(3), nn.Sequential(Twice(), Twice())
        self.transition1 = layers(2, Conv)
        self.stage2, self.stage3 = nn.Sequential(Branches()), nn.Sequential(Branches(), Branches())
        self.incre, self.classifier = Conv(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.conv1(x))
        xs = [transition(x) for transition in self.transition1]
        ys = self.stage3(self.stage2(xs))
        y: Tensor = self.classifier(self.incre(ys[0] + ys[1]).mean((2, 3)))
        return y


@right(rising=("conv1.0 conv2.0 conv3a conv3b fc6 fc7 fc8",), name="flat 3D convolutions")
class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc8, self.fc7, self.fc6 = lin(), lin(), lin()
        self.conv1, self.conv2 = nn.Sequential(conv(3), nn.ReLU()), nn.Sequential(conv(), nn.ReLU())
        self.conv3a, self.conv3b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3b(self.conv3a(self.conv2(self.conv1(x))).relu()).relu().view(-1, 4)
        y: Tensor = self.fc8(self.fc7(self.fc6(x).relu()).relu())
        return y


@right(
    "patch_embed|pos blocks.0-1 blocks_token_only.0|cls_token blocks_token_only.1 norm|head",
    name="class attention above the blocks",
)
class ClassAttention(nn.Module):
    """CaiT: the class token comes in above the first list."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 4, 4))
        self.patch_embed, self.blocks_token_only, self.blocks = conv(3, 4, 1), layers(), layers()
        self.norm, self.head = nn.LayerNorm(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]  # noqa: N806
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos
        cls_tokens = self.cls_token.expand(B, -1, -1)
        for block in self.blocks:
            x = block(x)
        for block in self.blocks_token_only:
            cls_tokens = block(cls_tokens, x)
        y: Tensor = self.head(self.norm(torch.cat((cls_tokens, x), 1))[:, 0])
        return y


class Merge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduction(self.norm(x))
        return y


class SwinStage(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.blocks = layers(2)
        self.downsample = None if last else Merge()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


@right(
    "patch_embed layers.0.blocks.0-1 layers.1.blocks.0-1 norm|head",
    name="Swin as its authors wrote it",
    rising=("layers.0.blocks.0 layers.0.downsample layers.1.blocks.0",),
)
class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.layers = lin(), nn.ModuleList([SwinStage(False), SwinStage(True)])
        self.norm, self.head = nn.LayerNorm(4), lin()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.forward_features(x))
        return y


@right(
    "spatial_embed spatial.layers.0 spatial.layers.1 spatial.norm|temporal.layers.0 temporal.layers.1 out",
    name="space, then time",
)
class Factorised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from tests.support.nets.published_text import Encoder

        self.out, self.temporal, self.spatial, self.spatial_embed = lin(), Encoder(), Encoder(), lin()

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, _ = x.shape
        x = self.spatial_embed(x).reshape(b * t, n, 4)
        x = self.spatial(x).mean(1).reshape(b, t, 4)
        y: Tensor = self.out(self.temporal(x).mean(1))
        return y


@right(rising=("backbone.0 backbone.2 fpn.inner.2 fpn.layer.2 head.conv_cls",), name="one head over a pyramid")
class Retina(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.fpn, self.backbone = Heads(), nn.Module(), layers(3, Twice)
        self.fpn.inner, self.fpn.layer = layers(3, conv), layers(3, conv)

    def forward(self, x: Tensor) -> Any:
        maps = []
        for stage in self.backbone:
            x = stage(x)
            maps.append(x)
        last = self.fpn.inner[-1](maps[-1])
        found = [self.fpn.layer[-1](last)]
        for i in range(len(maps) - 2, -1, -1):
            last = self.fpn.inner[i](maps[i]) + interpolate(last, size=maps[i].shape[-2:])
            found.insert(0, self.fpn.layer[i](last))
        return self.head(found)


@right(
    rising=(
        "image_encoder.patch image_encoder.blocks.0 image_encoder.blocks.1 mask_decoder.layers.0 "
        "mask_decoder.layers.1 mask_decoder.hypers.0",
        "prompt_encoder.points mask_decoder.layers.1",
    ),
    name="segment anything",
)
class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask_decoder, self.prompt_encoder, self.image_encoder = Masks(), Prompts(), Images()

    def forward(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        seen = self.image_encoder(images)
        sparse, dense = self.prompt_encoder(points)
        y: Tensor = self.mask_decoder(seen, sparse, dense)
        return y


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks, self.neck = conv(3), layers(), nn.Sequential(conv(), conv())

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return y


class Prompts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.no_mask = layers(4, lambda: nn.Embedding(1, 4)), nn.Embedding(1, 4)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        found = points + self.points[0].weight + self.points[1].weight
        return found, self.no_mask.weight.reshape(1, -1, 1, 1)


class Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layers = nn.Embedding(3, 4), layers()
        self.hypers = layers(3, lambda: nn.Sequential(lin(), nn.ReLU(), lin()))

    def forward(self, seen: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        x = torch.cat([self.tokens.weight, sparse], 0)
        seen = (seen + dense).flatten(2)
        for layer in self.layers:
            x = layer(x, seen)
        return torch.stack([self.hypers[i](x[i]) for i in range(3)]) @ seen


@right(
    rising=(
        "feat.conv1 classif1",
        "feat.conv2 classif2",
        "feat.conv1 feat.conv2 dres0 dres1 dres2 classif2",
        "dres1 classif1",
    ),
    name="stereo with a loss after every hourglass",
)
class Stereo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feat = nn.Module()
        self.feat.conv1, self.feat.conv2 = Conv(3), Conv()
        self.classif1, self.classif2 = nn.Sequential(Conv(), conv()), nn.Sequential(Conv(), conv())
        self.dres0, self.dres1, self.dres2 = Twice(), Twice(), Twice()

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.feat.conv2(self.feat.conv1(x))
        return y

    def forward(self, left: Tensor, right: Tensor) -> Any:
        cost = torch.cat([self.features(left), self.features(right)], 1)
        cost = self.dres0(cost)
        out1 = self.dres1(cost)
        out2 = self.dres2(out1 + cost)
        c1 = self.classif1(out1)
        c2 = self.classif2(out2) + c1
        if self.training:
            return c1, c2
        return c2
