"""Eighth sample, images, video and points: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import Conv, Layer, layers, right


def strictly(names: str) -> tuple[str, ...]:
    """Each of the names is nearer to the top than the one before."""
    return tuple(f"{lower} {upper}" for lower, upper in pairwise(names.split()))


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Any) -> Any:
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


@right(
    "conv1|bn1 layer1.0-1 layer2.0-1 deconv_layers.0|deconv_layers.1 deconv_layers.3|deconv_layers.4 hm|wh|reg",
    name="objects as points: deconvolutions and heads set by name",
)
class PoseResNet(nn.Module):
    """CenterNet's simple baseline without head_conv."""

    def __init__(self, heads: dict[str, int] | None = None) -> None:
        super().__init__()
        self.inplanes = 4
        self.heads = heads or {"hm": 3, "wh": 2, "reg": 2}
        self.conv1 = nn.Conv2d(3, 4, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(4, momentum=0.1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(4, 2)
        self.layer2 = self._make_layer(8, 2, stride=2)
        self.deconv_layers = self._make_deconv_layer(2, [8, 4])
        for head in sorted(self.heads):
            self.__setattr__(head, nn.Conv2d(4, self.heads[head], kernel_size=1, bias=True))

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.inplanes != planes:
            downsample = nn.Sequential(nn.Conv2d(self.inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        made = [BasicBlock(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes
        made += [BasicBlock(self.inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*made)

    def _make_deconv_layer(self, num_layers: int, num_filters: list[int]) -> nn.Sequential:
        made: list[nn.Module] = []
        for i in range(num_layers):
            made.append(nn.ConvTranspose2d(self.inplanes, num_filters[i], 4, 2, 1, bias=False))
            made.append(nn.BatchNorm2d(num_filters[i]))
            made.append(nn.ReLU(inplace=True))
            self.inplanes = num_filters[i]
        return nn.Sequential(*made)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.deconv_layers(self.layer2(self.layer1(x)))
        ret = {}
        for head in self.heads:
            ret[head] = self.__getattr__(head)(x)
        return [ret]


class NAFBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.norm1 = nn.GroupNorm(1, c)
        self.beta = nn.Parameter(torch.zeros((1, c, 1, 1)), requires_grad=True)

    def forward(self, inp: Any) -> Any:
        x = self.conv2(self.conv1(self.norm1(inp)))
        x1, x2 = x.chunk(2, dim=1)
        x = x1 * x2
        x = x * self.sca(x)
        return inp + self.conv3(x) * self.beta


@right(
    "decoders.1.0-1 ending",
    rising=(
        *strictly("intro encoders.0.0 encoders.0.1 encoders.1.0 encoders.1.1 middle_blks.0 middle_blks.1"),
        *strictly("middle_blks.1 decoders.0.0 decoders.0.1 decoders.1.0 decoders.1.1 ending"),
        *strictly("encoders.0.1 downs.0 encoders.1.1 downs.1 middle_blks.1"),
    ),
    name="restoration without activations: zipped lists of stages",
)
class NAFNet(nn.Module):
    def __init__(self, img_channel: int = 3, width: int = 4, enc: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        chan = width
        for num in enc:
            self.encoders.append(nn.Sequential(*[NAFBlock(chan) for _ in range(num)]))
            self.downs.append(nn.Conv2d(chan, 2 * chan, 2, 2))
            chan = chan * 2
        self.middle_blks = nn.Sequential(*[NAFBlock(chan) for _ in range(2)])
        for num in reversed(enc):
            self.ups.append(nn.Sequential(nn.Conv2d(chan, chan * 2, 1, bias=False), nn.PixelShuffle(2)))
            chan = chan // 2
            self.decoders.append(nn.Sequential(*[NAFBlock(chan) for _ in range(num)]))
        self.padder_size = 2 ** len(self.encoders)

    def check_image_size(self, x: Any) -> Any:
        _, _, h, w = x.size()
        mod_pad_h = (self.padder_size - h % self.padder_size) % self.padder_size
        mod_pad_w = (self.padder_size - w % self.padder_size) % self.padder_size
        return F.pad(x, (0, mod_pad_w, 0, mod_pad_h))

    def forward(self, inp: Any) -> Any:
        _, _, h, w = inp.shape
        inp = self.check_image_size(inp)
        x = self.intro(inp)
        encs = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            encs.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, enc_skip in zip(self.decoders, self.ups, encs[::-1], strict=True):
            x = up(x)
            x = x + enc_skip
            x = decoder(x)
        x = self.ending(x)
        x = x + inp
        return x[:, :, :h, :w]


class CSPLayer(nn.Module):
    def __init__(self, cin: int, cout: int, n: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(cin, cout), Conv(cin, cout), Conv(2 * cout, cout)
        self.m = nn.Sequential(*[Conv(cout, cout) for _ in range(n)])

    def forward(self, x: Any) -> Any:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))


class CSPDarknet(nn.Module):
    def __init__(self, out_features: tuple[str, ...] = ("dark2", "dark3", "dark4")) -> None:
        super().__init__()
        self.out_features = out_features
        self.stem = Conv(12, 4)
        for i in range(2, 5):
            setattr(self, f"dark{i}", nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), CSPLayer(4, 4)))

    def forward(self, x: Any) -> Any:
        outputs = {}
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), dim=1)
        x = self.stem(x)
        x = self.dark2(x)
        outputs["dark2"] = x
        x = self.dark3(x)
        outputs["dark3"] = x
        x = self.dark4(x)
        outputs["dark4"] = x
        return {k: v for k, v in outputs.items() if k in self.out_features}


@right(
    rising=(
        *strictly("backbone.stem backbone.dark2 backbone.dark3 backbone.dark4 cls_preds"),
        "backbone.dark3 backbone.dark4 lateral_conv0 c3_p3 reduce_conv1 c3_p2 bu_conv2 c3_n3 cls_preds",
        "backbone.dark4 c3_p2 stems.0 reg_convs reg_preds",
    ),
    name="an anchor-free detector with a path aggregation neck",
)
class YOLOXLike(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.backbone = CSPDarknet()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0, self.reduce_conv1 = Conv(), Conv()
        self.c3_p3, self.c3_p2, self.c3_n3 = CSPLayer(8, 4), CSPLayer(8, 4), CSPLayer(8, 4)
        self.bu_conv2 = nn.Conv2d(4, 4, 3, 2, 1)
        self.cls_convs, self.reg_convs, self.cls_preds, self.reg_preds, self.stems = (nn.ModuleList() for _ in range(5))
        for _ in range(2):
            self.stems.append(Conv())
            self.cls_convs.append(Conv())
            self.reg_convs.append(Conv())
            self.cls_preds.append(nn.Conv2d(4, num_classes, 1))
            self.reg_preds.append(nn.Conv2d(4, 4, 1))

    def forward(self, x: Any, targets: Any = None) -> Any:
        feats = self.backbone(x)
        x2, x1, x0 = [feats[f] for f in ("dark2", "dark3", "dark4")]
        fpn_out0 = self.lateral_conv0(x0)
        f_out0 = self.c3_p3(torch.cat([self.upsample(fpn_out0), x1], 1))
        fpn_out1 = self.reduce_conv1(f_out0)
        pan_out2 = self.c3_p2(torch.cat([self.upsample(fpn_out1), x2], 1))
        pan_out1 = self.c3_n3(torch.cat([self.bu_conv2(pan_out2), fpn_out1], 1))
        outputs = []
        for k, (cls_conv, reg_conv, f) in enumerate(
            zip(self.cls_convs, self.reg_convs, [pan_out2, pan_out1], strict=True)
        ):
            f = self.stems[k](f)
            cls_output = self.cls_preds[k](cls_conv(f))
            reg_output = self.reg_preds[k](reg_conv(f))
            outputs.append(torch.cat([reg_output, cls_output], 1).flatten(2))
        out = torch.cat(outputs, dim=2).permute(0, 2, 1)
        if targets is not None:
            return {"total_loss": F.l1_loss(out[..., :4], targets)}
        return out


def index_points(points: Any, idx: Any) -> Any:
    batch = torch.arange(points.shape[0], device=points.device).view(-1, *[1] * (idx.dim() - 1))
    return points[batch, idx]


class SetAbstraction(nn.Module):
    def __init__(self, every: int, nsample: int, in_channel: int, mlp: list[int]) -> None:
        super().__init__()
        self.every, self.nsample = every, nsample
        self.mlp_convs, self.mlp_bns = nn.ModuleList(), nn.ModuleList()
        last_channel = in_channel + 3
        for out_channel in mlp:
            self.mlp_convs.append(nn.Conv2d(last_channel, out_channel, 1))
            self.mlp_bns.append(nn.BatchNorm2d(out_channel))
            last_channel = out_channel

    def forward(self, xyz: Any, points: Any) -> Any:
        new_xyz = xyz[:, :: self.every].contiguous()
        idx = torch.cdist(new_xyz, xyz).topk(self.nsample, largest=False)[1]
        grouped = torch.cat([index_points(xyz, idx) - new_xyz.unsqueeze(2), index_points(points, idx)], dim=-1)
        grouped = grouped.permute(0, 3, 2, 1)
        for i, conv in enumerate(self.mlp_convs):
            bn = self.mlp_bns[i]
            grouped = F.relu(bn(conv(grouped)))
        return new_xyz, torch.max(grouped, 2)[0].permute(0, 2, 1)


class FeaturePropagation(nn.Module):
    def __init__(self, in_channel: int, mlp: list[int]) -> None:
        super().__init__()
        self.mlp_convs, self.mlp_bns = nn.ModuleList(), nn.ModuleList()
        for out_channel in mlp:
            self.mlp_convs.append(nn.Conv1d(in_channel, out_channel, 1))
            self.mlp_bns.append(nn.BatchNorm1d(out_channel))
            in_channel = out_channel

    def forward(self, xyz1: Any, xyz2: Any, points1: Any, points2: Any) -> Any:
        dists, idx = torch.cdist(xyz1, xyz2).sort(dim=-1)
        dists, idx = dists[:, :, :3], idx[:, :, :3]
        weight = 1.0 / (dists + 1e-8)
        weight = weight / weight.sum(dim=2, keepdim=True)
        new = torch.sum(index_points(points2, idx) * weight.unsqueeze(-1), dim=2)
        new = (torch.cat([points1, new], dim=-1) if points1 is not None else new).permute(0, 2, 1)
        for i, conv in enumerate(self.mlp_convs):
            new = F.relu(self.mlp_bns[i](conv(new)))
        return new.permute(0, 2, 1)


@right(
    "sa1.mlp_convs.0|sa1.mlp_bns.0 sa1.mlp_convs.1|sa1.mlp_bns.1 sa2.mlp_convs.0|sa2.mlp_bns.0"
    " sa2.mlp_convs.1|sa2.mlp_bns.1 fp2.mlp_convs.0|fp2.mlp_bns.0 fp1.mlp_convs.0|fp1.mlp_bns.0"
    " fp1.mlp_convs.1|fp1.mlp_bns.1 conv_cls",
    name="points: set abstraction and feature propagation",
)
class PointNet2Seg(nn.Module):
    def __init__(self, num_class: int = 5) -> None:
        super().__init__()
        self.fp2 = FeaturePropagation(16, [8])
        self.fp1 = FeaturePropagation(11, [8, 8])
        self.sa1 = SetAbstraction(2, 4, 3, [4, 8])
        self.sa2 = SetAbstraction(2, 4, 8, [8, 8])
        self.drop = nn.Dropout(0.5)
        self.conv_cls = nn.Conv1d(8, num_class, 1)

    def forward(self, xyz: Any) -> Any:
        l0_points = xyz.permute(0, 2, 1)
        l0_xyz = l0_points[:, :, :3]
        l1_xyz, l1_points = self.sa1(l0_xyz, l0_points)
        l2_xyz, l2_points = self.sa2(l1_xyz, l1_points)
        l1_points = self.fp2(l1_xyz, l2_xyz, l1_points, l2_points)
        l0_points = self.fp1(l0_xyz, l1_xyz, l0_points, l1_points)
        x = self.conv_cls(self.drop(l0_points.permute(0, 2, 1)))
        return F.log_softmax(x, dim=1).permute(0, 2, 1), l2_points


class FlowDecoder(nn.Module):
    def __init__(self, has_flow: bool) -> None:
        super().__init__()
        self.up_flow = nn.ConvTranspose2d(2, 2, 4, 2, 1) if has_flow else None
        self.body, self.net_flow = Conv(10 if has_flow else 8, 4), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, one: Any, two: Any, flow: Any = None) -> Any:
        if flow is None:
            return self.net_flow(self.body(torch.cat([one, two], 1)))
        flow = self.up_flow(flow)
        grid = torch.stack(
            torch.meshgrid(
                torch.linspace(-1, 1, one.shape[3], device=one.device),
                torch.linspace(-1, 1, one.shape[2], device=one.device),
                indexing="xy",
            ),
            -1,
        )
        two = F.grid_sample(two, grid[None] + flow.permute(0, 2, 3, 1) * 0.1, align_corners=True)
        return flow + self.net_flow(self.body(torch.cat([one, two, flow], 1)))


@right(
    "extractor.0-2 decoders.2-0 refiner",
    name="optical flow from coarse to fine: one decoder per pyramid level",
)
class PWCLike(nn.Module):
    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels
        self.refiner = nn.Conv2d(6, 2, 3, padding=1)
        self.decoders = nn.ModuleList([FlowDecoder(has_flow=i < levels - 1) for i in range(levels)])
        self.extractor = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1), nn.LeakyReLU(0.1)) for i in range(levels)
        )

    def pyramid(self, image: Any) -> list[Any]:
        feats = []
        for stage in self.extractor:
            image = stage(image)
            feats.append(image)
        return feats

    def forward(self, first: Any, second: Any) -> Any:
        ones, twos = self.pyramid(first), self.pyramid(second)
        flow = None
        for lv in range(self.levels - 1, -1, -1):
            flow = self.decoders[lv](ones[lv], twos[lv], flow)
        flow = flow + self.refiner(torch.cat([ones[0], flow], 1))
        return F.interpolate(flow, size=first.shape[-2:], mode="bilinear", align_corners=False) * 2.0


def conv_prelu(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=True), nn.PReLU(cout))


class IFBlock(nn.Module):
    def __init__(self, in_planes: int, c: int = 4) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(conv_prelu(in_planes, c, 2), conv_prelu(c, c))
        self.convblock = nn.Sequential(conv_prelu(c, c), conv_prelu(c, c))
        self.lastconv = nn.ConvTranspose2d(c, 5, 4, 2, 1)

    def forward(self, x: Any, flow: Any, scale: int) -> tuple[Any, Any]:
        if scale != 1:
            x = F.interpolate(x, scale_factor=1.0 / scale, mode="bilinear", align_corners=False)
        if flow is not None:
            flow = F.interpolate(flow, scale_factor=1.0 / scale, mode="bilinear", align_corners=False) * 1.0 / scale
            x = torch.cat((x, flow), 1)
        x = self.conv0(x)
        x = self.convblock(x) + x
        tmp = F.interpolate(self.lastconv(x), scale_factor=scale, mode="bilinear", align_corners=False)
        return tmp[:, :4] * scale, tmp[:, 4:5]


def warp(img: Any, flow: Any) -> Any:
    _b, _, h, w = img.shape
    ys, xs = torch.linspace(-1, 1, h, device=img.device), torch.linspace(-1, 1, w, device=img.device)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), 0)[None]
    flow = torch.cat([flow[:, 0:1] / ((w - 1.0) / 2.0), flow[:, 1:2] / ((h - 1.0) / 2.0)], 1)
    return F.grid_sample(img, (grid + flow).permute(0, 2, 3, 1), padding_mode="border", align_corners=True)


@right(
    rising=(*strictly("block0 block1 block2"), *strictly("block1 refine")),
    name="frames between frames: a flow that three blocks refine, a teacher that sees the answer",
)
class IFNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = IFBlock(6), IFBlock(13 + 4), IFBlock(13 + 4)
        self.block_tea = IFBlock(16 + 4)
        self.refine = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, x: Any, scale: tuple[int, ...] = (4, 2, 1)) -> Any:
        img0, img1, gt = x[:, :3], x[:, 3:6], x[:, 6:]  # In inference time, gt is empty
        warped_img0, warped_img1 = img0, img1
        flow = mask = None
        loss_distill: Any = 0
        stu = [self.block0, self.block1, self.block2]
        for i in range(3):
            if flow is not None:
                flow_d, mask_d = stu[i](
                    torch.cat((img0, img1, warped_img0, warped_img1, mask), 1), flow, scale=scale[i]
                )
                flow = flow + flow_d
                mask = mask + mask_d
            else:
                flow, mask = stu[i](torch.cat((img0, img1), 1), None, scale=scale[i])
            warped_img0, warped_img1 = warp(img0, flow[:, :2]), warp(img1, flow[:, 2:4])
        if gt.shape[1] == 3:
            seen = torch.cat((img0, img1, warped_img0, warped_img1, mask, gt), 1)
            flow_d, _ = self.block_tea(seen, flow, scale=1)
            loss_distill = (((flow + flow_d).detach() - flow) ** 2).mean() + flow_d.abs().mean()
        alpha = torch.sigmoid(mask)
        merged = warped_img0 * alpha + warped_img1 * (1 - alpha)
        res = torch.sigmoid(self.refine(torch.cat((merged, img0, img1), 1))) * 2 - 1
        return flow, torch.clamp(merged + res, 0, 1), loss_distill


class Hourglass(nn.Module):
    def __init__(self, n: int, f: int) -> None:
        super().__init__()
        self.up1 = Conv(f, f)
        self.pool1 = nn.MaxPool2d(2, 2)
        self.low1 = Conv(f, f)
        self.n = n
        self.low2: nn.Module = Hourglass(n - 1, f) if self.n > 1 else Conv(f, f)
        self.low3 = Conv(f, f)
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Any) -> Any:
        up1 = self.up1(x)
        low = self.low3(self.low2(self.low1(self.pool1(x))))
        return up1 + self.up2(low)


@right(
    rising=(*strictly("pre hgs.0 hgs.1 hgs.2"), "hgs.0 features.0 merge_features.0 hgs.1", "hgs.0 merge_preds.0 hgs.1"),
    name="stacked hourglasses with supervision in between",
)
class PoseNet(nn.Module):
    def __init__(self, nstack: int = 3, inp_dim: int = 4, oup_dim: int = 5) -> None:
        super().__init__()
        self.nstack = nstack
        self.pre = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), Conv(), nn.MaxPool2d(2, 2), Conv(4, inp_dim))
        self.hgs = nn.ModuleList([nn.Sequential(Hourglass(2, inp_dim)) for i in range(nstack)])
        self.features = nn.ModuleList(
            [nn.Sequential(Conv(inp_dim, inp_dim), nn.Conv2d(inp_dim, inp_dim, 1)) for i in range(nstack)]
        )
        self.outs = nn.ModuleList([nn.Conv2d(inp_dim, oup_dim, 1) for i in range(nstack)])
        self.merge_features = nn.ModuleList([nn.Conv2d(inp_dim, inp_dim, 1) for i in range(nstack - 1)])
        self.merge_preds = nn.ModuleList([nn.Conv2d(oup_dim, inp_dim, 1) for i in range(nstack - 1)])

    def forward(self, imgs: Any) -> Any:
        x = imgs.permute(0, 3, 1, 2)
        x = self.pre(x)
        combined_hm_preds = []
        for i in range(self.nstack):
            hg = self.hgs[i](x)
            feature = self.features[i](hg)
            preds = self.outs[i](feature)
            combined_hm_preds.append(preds)
            if i < self.nstack - 1:
                x = x + self.merge_preds[i](preds) + self.merge_features[i](feature)
        return torch.stack(combined_hm_preds, 1)


class Block3d(nn.Module):
    def __init__(self, cin: int, cout: int, temp: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(cin, cout, (temp, 1, 1), padding=(temp // 2, 0, 0), bias=False)
        self.b = nn.Conv3d(cout, cout, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.a_bn, self.b_bn = nn.BatchNorm3d(cout), nn.BatchNorm3d(cout)

    def forward(self, x: Any) -> Any:
        return F.relu(self.b_bn(self.b(F.relu(self.a_bn(self.a(x))))))


@right(
    "slow_stem slow_res.0-2 projection", "fast_stem fast_res.0-2 projection",
    name="video at two rates with lateral connections",
)  # fmt: skip
class SlowFastLike(nn.Module):
    def __init__(self, alpha: int = 4, num_classes: int = 6) -> None:
        super().__init__()
        self.alpha = alpha
        self.projection = nn.Linear(8 + 4, num_classes)
        self.fuse = nn.ModuleList(nn.Conv3d(4, 2, (5, 1, 1), stride=(alpha, 1, 1), padding=(2, 0, 0)) for _ in range(3))
        self.fast_stem = nn.Conv3d(3, 4, (5, 3, 3), stride=(1, 2, 2), padding=(2, 1, 1))
        self.slow_stem = nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.slow_res = nn.ModuleList(Block3d(10, 8, 1 if i < 1 else 3) for i in range(3))
        self.fast_res = nn.ModuleList(Block3d(4, 4, 3) for _ in range(3))

    def forward(self, frames: Any) -> Any:
        slow, fast = self.slow_stem(frames[:, :, :: self.alpha]), self.fast_stem(frames)
        for i in range(len(self.slow_res)):
            slow = torch.cat([slow, self.fuse[i](fast)], 1)
            slow, fast = self.slow_res[i](slow), self.fast_res[i](fast)
        pooled = [F.adaptive_avg_pool3d(p, 1).flatten(1) for p in (slow, fast)]
        return self.projection(torch.cat(pooled, 1))


class SynthesisBlock(nn.Module):
    def __init__(self, resolution: int, w_dim: int, first: bool) -> None:
        super().__init__()
        self.first, self.resolution = first, resolution
        if first:
            self.const = nn.Parameter(torch.randn([4, resolution, resolution]))
        self.affine, self.conv = nn.Linear(w_dim, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.torgb = nn.Conv2d(4, 3, 1)

    def forward(self, x: Any, img: Any, w: Any, noise_mode: str = "random") -> Any:
        x = self.const.unsqueeze(0).repeat([w.shape[0], 1, 1, 1]) if self.first else F.interpolate(x, scale_factor=2)
        x = self.conv(x * (self.affine(w)[:, :, None, None] + 1))
        if noise_mode == "random":
            x = x + torch.randn([x.shape[0], 1, self.resolution, self.resolution], device=x.device) * (
                self.noise_strength
            )
        x = F.leaky_relu(x, 0.2)
        if img is not None:
            img = F.interpolate(img, scale_factor=2)
        y = self.torgb(x)
        img = img.add_(y) if img is not None else y
        return x, img


@right(
    rising=(
        "fc0 fc1 b4.conv",
        *strictly("fc1 b4.conv b8.conv b16.conv"),
        *strictly("fc1 b4.affine b8.affine b16.affine"),
    ),
    name="a style-based generator: blocks named by their resolution",
)
class StyleGenerator(nn.Module):
    def __init__(self, z_dim: int = 6, w_dim: int = 4, img_resolution: int = 16, num_layers: int = 2) -> None:
        super().__init__()
        self.num_layers, self.z_dim = num_layers, z_dim
        self.block_resolutions = [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]
        for res in self.block_resolutions:
            setattr(self, f"b{res}", SynthesisBlock(res, w_dim, first=res == 4))
        features = [z_dim] + [w_dim] * num_layers
        for idx in range(num_layers):
            setattr(self, f"fc{idx}", nn.Linear(features[idx], features[idx + 1]))
        self.register_buffer("w_avg", torch.zeros([w_dim]))

    def mapping(self, z: Any, truncation_psi: float = 1) -> Any:
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for idx in range(self.num_layers):
            x = F.leaky_relu(getattr(self, f"fc{idx}")(x), 0.2)
        if truncation_psi != 1:
            x = self.w_avg.lerp(x, truncation_psi)
        return x.unsqueeze(1).repeat([1, len(self.block_resolutions), 1])

    def forward(self, z: Any, truncation_psi: float = 1, **synthesis_kwargs: Any) -> Any:
        ws = self.mapping(z, truncation_psi=truncation_psi)
        x = img = None
        for res, w in zip(self.block_resolutions, ws.unbind(dim=1), strict=True):
            x, img = getattr(self, f"b{res}")(x, img, w, **synthesis_kwargs)
        return img


class ImageEncoder(nn.Module):
    def __init__(self, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 4, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 4, 4))
        self.blocks = layers(3)
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.GroupNorm(1, 4))
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Any) -> Any:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for blk in self.blocks:
            x = checkpoint(blk, x, use_reentrant=False) if self.use_checkpoint else blk(x)
        return self.neck(x.permute(0, 3, 1, 2))


class TwoWay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_to_image = nn.MultiheadAttention(4, 2, batch_first=True)
        self.image_to_token = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = Layer()

    def forward(self, queries: Any, keys: Any, query_pe: Any) -> Any:
        queries = queries + self.token_to_image(queries + query_pe, keys, keys)[0]
        queries = self.mlp(queries)
        keys = keys + self.image_to_token(keys, queries + query_pe, queries)[0]
        return queries, keys


class MaskDecoder(nn.Module):
    def __init__(self, num_masks: int = 3) -> None:
        super().__init__()
        self.num_masks = num_masks
        self.iou_token, self.mask_tokens = nn.Embedding(1, 4), nn.Embedding(num_masks, 4)
        self.output_upscaling = nn.ConvTranspose2d(4, 4, kernel_size=2, stride=2)
        self.hypernetworks = nn.ModuleList([nn.Linear(4, 4) for i in range(num_masks)])
        self.iou_prediction_head = nn.Linear(4, num_masks)
        self.blocks = layers(2, TwoWay)

    def forward(self, image_embeddings: Any, sparse: Any, multimask_output: bool) -> Any:
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)
        tokens = torch.cat((tokens.unsqueeze(0).expand(sparse.size(0), -1, -1), sparse), dim=1)
        b, c, h, w = image_embeddings.shape
        hs, src = tokens, image_embeddings.flatten(2).permute(0, 2, 1)
        for block in self.blocks:
            hs, src = block(hs, src, tokens)
        upscaled = self.output_upscaling(src.transpose(1, 2).view(b, c, h, w))
        hyper_in = torch.stack([self.hypernetworks[i](hs[:, 1 + i]) for i in range(self.num_masks)], dim=1)
        b, c, h, w = upscaled.shape
        masks = (hyper_in @ upscaled.view(b, c, h * w)).view(b, -1, h, w)
        keep = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, keep], self.iou_prediction_head(hs[:, 0])[:, keep]


@right(
    "decoder.blocks.0-1 decoder.hypernetworks|decoder.iou_prediction_head|decoder.output_upscaling",
    rising=(
        *strictly("encoder.patch_embed encoder.blocks.0 encoder.blocks.1 encoder.blocks.2"),
        *strictly("encoder.pos_embed encoder.blocks.0"),
        *strictly("decoder.mask_tokens decoder.blocks.1"),
        *strictly("decoder.iou_token decoder.blocks.1"),
    ),
    name="segment anything that is pointed at",
)
class SegmentAnything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(), MaskDecoder()
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, 4) for _ in range(2)])
        self.register_buffer("gaussian", torch.randn(2, 2))

    def embed_points(self, points: Any, labels: Any) -> Any:
        coords = 2 * math.pi * ((2 * points - 1) @ self.gaussian)
        embedding = torch.cat([torch.sin(coords), torch.cos(coords)], dim=-1)
        for i, table in enumerate(self.point_embeddings):
            embedding = torch.where((labels == i)[..., None], embedding + table.weight, embedding)
        return embedding

    def forward(self, image: Any, points: Any, labels: Any, multimask_output: bool = True) -> dict[str, Any]:
        sparse = self.embed_points(points, labels)
        masks, iou = self.decoder(self.encoder(image), sparse, multimask_output)
        masks = F.interpolate(masks, image.shape[-2:], mode="bilinear", align_corners=False)
        return {"masks": masks > 0 if not self.training else masks, "iou_predictions": iou}
