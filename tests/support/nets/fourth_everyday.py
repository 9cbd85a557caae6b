"""Fourth sample, everyday networks: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import torch.utils.checkpoint as cp
from lightning.pytorch import LightningModule
from torch import nn

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


@right("conv1 conv2 fc1 fc2 fc3", name="LeNet as in the tutorial")
class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 12), nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)

    def num_flat_features(self, x: Any) -> int:
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


@right("model.embed model.layers.0-3 lstm|layer_norm|fc", name="last hidden states into an LSTM, many dropouts")
class MultiDropout(nn.Module):
    """After the last block of the pretrained body: the head."""

    class Body(Tower):
        def forward(self, x: Any, *more: Any) -> Any:
            hidden = [self.embed(x)]
            for layer in self.layers:
                hidden.append(layer(hidden[-1]))
            return SimpleNamespace(last_hidden_state=self.norm(hidden[-1]), hidden_states=tuple(hidden))

    def __init__(self) -> None:
        super().__init__()
        self.model = MultiDropout.Body(4)
        self.lstm, self.layer_norm = nn.LSTM(16, 4, batch_first=True, bidirectional=True), nn.LayerNorm(8)
        self.dropouts = nn.ModuleList([nn.Dropout(0.1 * i) for i in range(1, 6)])
        self.fc = nn.Linear(8, 1)
        self._init_weights(self.fc)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.02)

    def forward(self, ids: Any, mask: Any, targets: Any = None) -> Any:
        outputs = self.model(ids)
        feature = torch.cat([outputs.hidden_states[-i] for i in range(1, 5)], -1)
        feature, _ = self.lstm(feature)
        mask = mask.unsqueeze(-1).expand(feature.size()).float()
        feature = self.layer_norm((feature * mask).sum(1) / mask.sum(1).clamp(min=1e-9))
        logits = sum(self.fc(dropout(feature)) for dropout in self.dropouts) / len(self.dropouts)
        return logits if targets is None else (logits, F.mse_loss(logits, targets))


class Gem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.ones(1) * 3), 1e-6

    def forward(self, x: Any) -> Any:
        return F.avg_pool2d(x.clamp(min=self.eps).pow(self.p), (x.size(-2), x.size(-1))).pow(1.0 / self.p)


class Margin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.FloatTensor(5, 4))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Any, label: Any) -> Any:
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
        phi = cosine * math.cos(0.5) - sine * math.sin(0.5)
        phi = torch.where(cosine > 0, phi, cosine)
        one_hot = torch.zeros(cosine.size())
        one_hot.scatter_(1, label.view(-1, 1).long(), 1)
        return ((one_hot * phi) + ((1.0 - one_hot) * cosine)) * 30


@right(
    "backbone.conv backbone.blocks.0-2 pooling|embedding|bn|fc",
    name="landmarks: generalized mean, embedding, margin",
)
class Landmarks(LightningModule):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.blocks = Conv(3), nn.Sequential(Conv(), Conv(), Conv())

        def forward(self, x: Any) -> Any:
            return self.blocks(self.conv(x))

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.pooling = Landmarks.Backbone(), Gem()
        self.embedding, self.bn, self.fc = nn.Linear(4, 4), nn.BatchNorm1d(4), Margin()

    def extract(self, x: Any) -> Any:
        return self.bn(self.embedding(self.pooling(self.backbone(x)).flatten(1)))

    def forward(self, images: Any, labels: Any = None) -> Any:
        features = self.extract(images)
        if labels is not None:
            return self.fc(features, labels)
        return F.normalize(features)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        return F.cross_entropy(self(images, labels), labels)


@right(
    "image.conv image.blocks.0-1 fusion",
    "text.embed text.layers.0-1 fusion",
    rising=("tabular.0 fusion",),
    name="image, text and table, fused late",
)
class LateFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Landmarks.Backbone(), Tower()
        del self.image.blocks[2]
        self.tabular = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.fusion = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Any]) -> Any:
        i, t = self.image(batch["image"]).mean((2, 3)), self.text(batch["ids"])[:, 0]
        return self.fusion(torch.cat([i, t, self.tabular(batch["table"].float())], dim=-1))


class TimeDistributed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        if len(x.size()) <= 2:
            return self.module(x)
        y = self.module(x.contiguous().view(-1, *x.size()[2:]))
        return y.view(x.size(0), -1, y.size(-1))


class FrameNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Conv(3), Conv(), Conv())

    def forward(self, x: Any) -> Any:
        return self.features(x).mean([2, 3])


@right(
    "cnn.module.features.0-2 lstm.weight_ih_l0 lstm.weight_ih_l1 fc",
    name="a network for each frame, then an LSTM",
)
class FramesThenLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.lstm = TimeDistributed(FrameNet()), nn.LSTM(4, 4, 2, batch_first=True)
        self.fc = nn.Linear(4, 7)

    def forward(self, clips: Any) -> Any:
        x, _ = self.lstm(self.cnn(clips))
        return self.fc(x[:, -1])


class LinearResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.batch_norm1, self.w2, self.batch_norm2 = lin(), nn.BatchNorm1d(4), lin(), nn.BatchNorm1d(4)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.batch_norm1(self.w1(x)))
        return x + F.relu(self.batch_norm2(self.w2(y)))


@right("w1|batch_norm1 linear_stages.0-2 w2", name="poses lifted by linear blocks")
class Lifting(nn.Module):
    def __init__(self, num_stage: int = 3) -> None:
        super().__init__()
        self.num_stage = num_stage
        self.w1, self.batch_norm1 = nn.Linear(6, 4), nn.BatchNorm1d(4)
        self.linear_stages: Any = []
        for _ in range(num_stage):
            self.linear_stages.append(LinearResidual())
        self.linear_stages = nn.ModuleList(self.linear_stages)
        self.w2, self.relu, self.dropout = nn.Linear(4, 9), nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        y = self.dropout(self.relu(self.batch_norm1(self.w1(x))))
        for i in range(self.num_stage):
            y = self.linear_stages[i](y)
        return self.w2(y)


class SkeletonBlock(nn.Module):
    def __init__(self, a: int = 4) -> None:
        super().__init__()
        self.gcn = nn.Conv2d(a, 8, 1)
        self.tcn = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, (3, 1), 1, (1, 0)), nn.BatchNorm2d(4))

    def forward(self, x: Any, adjacency: Any) -> Any:
        y = self.gcn(x)
        n, kc, t, v = y.size()
        y = torch.einsum("nkctv,kvw->nctw", (y.view(n, 2, kc // 2, t, v), adjacency))
        return F.relu(self.tcn(y)), adjacency


@right(
    "data_bn st_gcn_networks.0|edge_importance.0 st_gcn_networks.1|edge_importance.1 "
    "st_gcn_networks.2|edge_importance.2 fcn",
    name="skeletons: an importance of the edges for each block",
)
class Skeletons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", torch.ones(2, 5, 5))
        self.data_bn = nn.BatchNorm1d(15)
        self.st_gcn_networks = nn.ModuleList((SkeletonBlock(3), SkeletonBlock(), SkeletonBlock()))
        self.edge_importance = nn.ParameterList([nn.Parameter(torch.ones(2, 5, 5)) for _ in self.st_gcn_networks])
        self.fcn = nn.Conv2d(4, 6, kernel_size=1)

    def forward(self, x: Any) -> Any:
        n, c, t, v, m = x.size()
        x = x.permute(0, 4, 3, 1, 2).contiguous().view(n * m, v * c, t)
        x = self.data_bn(x).view(n, m, v, c, t).permute(0, 1, 3, 4, 2).contiguous().view(n * m, c, t, v)
        for gcn, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x, _ = gcn(x, self.A * importance)
        x = F.avg_pool2d(x, x.size()[2:]).view(n, m, -1, 1, 1).mean(dim=1)
        return self.fcn(x).view(x.size(0), -1)


_WAVE = " ".join(
    "|".join(f"{part}.{i}" for part in ("filter_convs", "gate_convs", "skip_convs", "gconv", "bn")) for i in range(3)
)


@right(
    f"start_conv {_WAVE} end_conv_1|end_conv_2",
    rising=("nodevec1 gconv.1", "nodevec2 gconv.1"),
    name="Graph WaveNet: six lists, a learned adjacency",
)
class GraphWaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter_convs, self.gate_convs, self.skip_convs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.bn, self.gconv = nn.ModuleList(), nn.ModuleList()
        self.start_conv, self.supports_len = nn.Conv2d(2, 4, 1), 1
        self.nodevec1, self.nodevec2 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3, 5))
        for _ in range(3):
            self.filter_convs.append(nn.Conv2d(4, 4, (1, 2)))
            self.gate_convs.append(nn.Conv2d(4, 4, (1, 2)))
            self.skip_convs.append(nn.Conv2d(4, 8, 1))
            self.bn.append(nn.BatchNorm2d(4))
            self.gconv.append(nn.Conv2d(8, 4, 1))
        self.end_conv_1, self.end_conv_2 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, inputs: Any) -> Any:
        in_len = inputs.size(3)
        x = F.pad(inputs, (8 - in_len, 0, 0, 0)) if in_len < 8 else inputs
        x, skip = self.start_conv(x), 0
        adp = F.softmax(F.relu(torch.mm(self.nodevec1, self.nodevec2)), dim=1)
        for i in range(3):
            residual = x
            x = torch.tanh(self.filter_convs[i](residual)) * torch.sigmoid(self.gate_convs[i](residual))
            s = self.skip_convs[i](x)
            try:
                skip = skip[:, :, :, -s.size(3) :]
            except Exception:
                skip = 0
            skip = s + skip
            x = self.gconv[i](torch.cat([x, torch.einsum("ncvl,vw->ncwl", (x, adp))], 1))
            x = self.bn[i](x + residual[:, :, :, -x.size(3) :])
        return self.end_conv_2(F.relu(self.end_conv_1(F.relu(skip))))


class DiffusionCell(nn.Module):
    def __init__(self, a: int) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Linear(a + 4, 8), nn.Linear(a + 4, 4)

    def forward(self, x: Any, h: Any, adj: Any) -> Any:
        r, u = torch.sigmoid(self.gates(adj @ torch.cat([x, h], -1))).chunk(2, -1)
        c = torch.tanh(self.candidate(adj @ torch.cat([x, r * h], -1)))
        return u * h + (1 - u) * c


@right(
    rising=(
        "encoder.0 encoder.1", "encoder.1 projection", "decoder.0 decoder.1", "decoder.1 projection",
    ),
    name="traffic: cells over graphs, encoder and decoder over time",
)  # fmt: skip
class Traffic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([DiffusionCell(2), DiffusionCell(4)])
        self.decoder = nn.ModuleList([DiffusionCell(1), DiffusionCell(4)])
        self.projection, self.horizon = nn.Linear(4, 1), 3
        self.register_buffer("adj", torch.eye(5))

    def run(self, cells: Any, x: Any, states: list[Any]) -> Any:
        for i, cell in enumerate(cells):
            states[i] = x = cell(x, states[i], self.adj)
        return x

    def forward(self, inputs: Any, labels: Any = None, batches_seen: Any = None) -> Any:
        states = [torch.zeros(inputs.size(1), 5, 4) for _ in self.encoder]
        for t in range(inputs.size(0)):
            self.run(self.encoder, inputs[t], states)
        go, outputs = torch.zeros(inputs.size(1), 5, 1), []
        for t in range(self.horizon):
            go = self.projection(self.run(self.decoder, go, states))
            outputs.append(go)
            if self.training and labels is not None and random.random() < 0.5:
                go = labels[t]
        return torch.stack(outputs)


@right("embedding_user.weight|embedding_item.weight", name="LightGCN: nothing but two tables")
class LightGcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_user, self.embedding_item = nn.Embedding(6, 4), nn.Embedding(5, 4)
        self.register_buffer("graph", torch.rand(11, 11))

    def computer(self) -> Any:
        all_emb = torch.cat([self.embedding_user.weight, self.embedding_item.weight])
        embs = [all_emb]
        for _ in range(3):
            all_emb = self.graph @ all_emb
            embs.append(all_emb)
        return torch.split(torch.mean(torch.stack(embs, dim=1), dim=1), [6, 5])

    def forward(self, users: Any, items: Any) -> Any:
        all_users, all_items = self.computer()
        return torch.sum(all_users[users] * all_items[items], dim=1)


@right(
    rising=(
        "embedding cin.conv_layers.0", "cin.conv_layers.0 cin.conv_layers.1", "cin.conv_layers.1 cin.fc",
        "embedding mlp.0", "mlp.0 mlp.3", "mlp.3 mlp.6",
    ),
    name="xDeepFM: a compressed interaction beside a deep part",
)  # fmt: skip
class ExtremeDeepFm(nn.Module):
    class Interaction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_layers, self.split_half = 2, True
            self.conv_layers = nn.ModuleList([nn.Conv1d(9, 4, 1), nn.Conv1d(6, 4, 1)])
            self.fc = nn.Linear(6, 1)

        def forward(self, x: Any) -> Any:
            xs, x0, h = [], x.unsqueeze(2), x
            for i in range(self.num_layers):
                x = x0 * h.unsqueeze(1)
                batch_size, f0, fin, embed = x.shape
                x = F.relu(self.conv_layers[i](x.view(batch_size, f0 * fin, embed)))
                if self.split_half and i != self.num_layers - 1:
                    x, h = torch.split(x, x.shape[1] // 2, dim=1)
                else:
                    h = x
                xs.append(x)
            return self.fc(torch.sum(torch.cat(xs, dim=1), 2))

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(30, 4), nn.Embedding(30, 1)
        self.cin = ExtremeDeepFm.Interaction()
        self.mlp = nn.Sequential(
            nn.Linear(12, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 1),
        )

    def forward(self, x: Any) -> Any:
        e = self.embedding(x)
        return torch.sigmoid(self.linear(x).sum(1) + self.cin(e) + self.mlp(e.view(-1, 12))).squeeze(1)


class PositionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4))

    def forward(self, x: Any, h: Any, w: Any) -> Any:
        feat = x.transpose(1, 2).reshape(x.shape[0], 4, h, w)
        return (self.proj(feat) + feat).flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    def __init__(self, a: int = 4) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(a, 4, 2, 2), nn.LayerNorm(4)

    def forward(self, x: Any) -> Any:
        _b, _c, h, w = x.shape
        return self.norm(self.proj(x).flatten(2).transpose(1, 2)), (h // 2, w // 2)


@right(
    "patch_embeds.0 blocks.0.0 blocks.0.1 patch_embeds.1|blocks.1.0 blocks.1.1 blocks.1.2 norm|head",
    rising=("blocks.0.0 pos_block.0 blocks.0.1", "blocks.1.0 pos_block.1 blocks.1.1"),
    name="Twins: a position after the first block of each stage",
)
class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depths = [2, 3]
        self.patch_embeds, self.pos_drops = nn.ModuleList(), nn.ModuleList()
        self.blocks = nn.ModuleList()
        for i in range(2):
            self.patch_embeds.append(PatchEmbed(3 if i == 0 else 4))
            self.pos_drops.append(nn.Dropout(p=0.1))
        for k in range(2):
            self.blocks.append(nn.ModuleList([Layer() for _ in range(self.depths[k])]))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 10)
        self.pos_block = nn.ModuleList([PositionBlock() for _ in range(2)])

    def forward_features(self, x: Any) -> Any:
        b = x.shape[0]
        for i in range(len(self.depths)):
            x, (h, w) = self.patch_embeds[i](x)
            x = self.pos_drops[i](x)
            for j, blk in enumerate(self.blocks[i]):
                x = blk(x)
                if j == 0:
                    x = self.pos_block[i](x, h, w)
            if i < len(self.depths) - 1:
                x = x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
        return self.norm(x).mean(dim=1)

    def forward(self, x: Any) -> Any:
        return self.head(self.forward_features(x))


class Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1))

    def forward(self, x: Any) -> Any:
        return x + self.conv(x)


class MobileVitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv4 = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 3, 1, 1)
        self.transformer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Any) -> Any:
        y = x.clone()
        x = self.conv2(self.conv1(x))
        b, c, h, w = x.shape
        x = self.transformer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w)
        return self.conv4(torch.cat((x, y), 1))


@right(
    rising=(
        "conv1 mv2.0", "mv2.0 mv2.1", "mv2.1 mv2.2", "mv2.2 mvit.0", "mvit.0 mv2.3", "mv2.3 mvit.1", "mvit.1 fc",
        "mvit.1 conv2 fc",
    ),
    name="MobileViT: two lists, called by index in between one another",
)  # fmt: skip
class MobileVit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv(3)
        self.mv2, self.mvit = nn.ModuleList([]), nn.ModuleList([])
        for _ in range(4):
            self.mv2.append(Inverted())
        for _ in range(2):
            self.mvit.append(MobileVitBlock())
        self.conv2, self.pool, self.fc = Conv(), nn.AvgPool2d(2, 1), nn.Linear(4, 10, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.conv1(x)
        x = self.mv2[0](x)
        x = self.mv2[1](x)
        x = self.mv2[2](x)
        x = self.mvit[0](x)
        x = self.mv2[3](x)
        x = self.mvit[1](x)
        x = self.pool(self.conv2(x)).view(-1, x.shape[1])
        return self.fc(x)


class RepBlock(nn.Module):
    def __init__(self, a: int = 4) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(4) if a == 4 else None
        self.rbr_dense, self.rbr_1x1 = nn.Conv2d(a, 4, 3, 1, 1), nn.Conv2d(a, 4, 1)

    def forward(self, x: Any) -> Any:
        if hasattr(self, "rbr_reparam"):
            return F.relu(self.rbr_reparam(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return F.relu(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


@right("stage0 stage1.0-1 stage2.0-2 stage3.0 linear", name="RepVGG: stages in a tuple, checkpoints on demand")
class RepVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.use_checkpoint, self.cur_layer_idx = False, 1
        self.stage0 = RepBlock(3)
        self.stage1, self.stage2, self.stage3 = self._make_stage(2), self._make_stage(3), self._make_stage(1)
        self.gap, self.linear = nn.AdaptiveAvgPool2d(output_size=1), nn.Linear(4, 10)

    def _make_stage(self, num_blocks: int) -> nn.Module:
        blocks = []
        for _ in range(num_blocks):
            blocks.append(RepBlock())
            self.cur_layer_idx += 1
        return nn.ModuleList(blocks)

    def forward(self, x: Any) -> Any:
        out = self.stage0(x)
        for stage in (self.stage1, self.stage2, self.stage3):
            for block in stage:
                out = cp.checkpoint(block, out) if self.use_checkpoint else block(out)
        out = self.gap(out)
        return self.linear(out.view(out.size(0), -1))


class Harmonic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.links = [[0], [1, 0], [2]]
        self.layers = nn.ModuleList([Conv(4), Conv(8), Conv(4)])

    def forward(self, x: Any) -> Any:
        layers_ = [x]
        for layer in range(len(self.layers)):
            link, tin = self.links[layer], []
            for i in link:
                tin.append(layers_[i])
            x = torch.cat(tin, 1) if len(tin) > 1 else tin[0]
            layers_.append(self.layers[layer](x))
        t = len(layers_)
        out_ = [layers_[i] for i in range(t) if i == t - 1 or i % 2 == 1]
        return torch.cat(out_, 1)


@right(
    rising=("base.0 base.1", "base.1 base.2", "base.2 base.3", "base.3 base.4", "base.4 base.6"),
    name="HarDNet: everything in one list",
)
class HarmonicDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ModuleList([])
        self.base.append(Conv(3))
        self.base.append(Conv())
        for _ in range(2):
            self.base.append(Harmonic())
            self.base.append(Conv(8))
        self.base.append(nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 10)))

    def forward(self, x: Any) -> Any:
        for layer in self.base:
            x = layer(x)
        return x


@right("_conv_stem|_bn0 _blocks.0-3 _conv_head|_bn1|_fc", name="EfficientNet with names that begin with an underscore")
class Efficient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4)
        self._blocks = nn.ModuleList([])
        for _ in range(4):
            self._blocks.append(Inverted())
        self._conv_head, self._bn1 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self._avg_pooling, self._dropout = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)
        self._fc, self._swish, self._drop = nn.Linear(8, 10), nn.SiLU(), 0.2

    def extract_features(self, inputs: Any) -> Any:
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        for idx, block in enumerate(self._blocks):
            rate = self._drop
            if rate:
                rate *= float(idx) / len(self._blocks)
            x = block(x)
        return self._swish(self._bn1(self._conv_head(x)))

    def forward(self, inputs: Any) -> Any:
        x = self._avg_pooling(self.extract_features(inputs)).flatten(start_dim=1)
        return self._fc(self._dropout(x))


@right("emb transformer.layers.0-2 out_norm|linears", name="codebooks: a table and a head for each")
class Codebooks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_q = 3
        self.emb = nn.ModuleList([nn.Embedding(9, 4) for _ in range(self.n_q)])
        self.linears = nn.ModuleList([nn.Linear(4, 8, bias=False) for _ in range(self.n_q)])
        self.transformer = nn.Module()
        self.transformer.layers = layers(3)
        self.out_norm: Any = nn.LayerNorm(4)

    def forward(self, sequence: Any, conditions: Any = None) -> Any:
        _b, k, _s = sequence.shape
        assert k == self.n_q, "Sequence shape must match the specified number of codebooks"
        x = sum(self.emb[k](sequence[:, k]) for k in range(k))
        for layer in self.transformer.layers:
            x = layer(x)
        if self.out_norm:
            x = self.out_norm(x)
        return torch.stack([self.linears[k](x) for k in range(k)], dim=1)


class Block(nn.Module):
    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.attn, self.mlp = Layer(), Layer()
        self.cross_attn = nn.MultiheadAttention(4, 2, batch_first=True) if cross else None

    def forward(self, x: Any, xa: Any = None, mask: Any = None, kv_cache: Any = None) -> Any:
        x = x + self.attn(x)
        if self.cross_attn:
            x = x + self.cross_attn(x, xa, xa)[0]
        return x + self.mlp(x)


class AudioEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(5, 4, 3, padding=1), nn.Conv1d(4, 4, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.rand(8, 4))
        self.blocks, self.ln_post = nn.ModuleList([Block(False) for _ in range(2)]), nn.LayerNorm(4)

    def forward(self, x: Any) -> Any:
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).permute(0, 2, 1)
        assert x.shape[1:] == self.positional_embedding.shape, "incorrect audio shape"
        x = (x + self.positional_embedding).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


class TextDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = nn.Embedding(30, 4), nn.Parameter(torch.empty(8, 4))
        self.blocks, self.ln = nn.ModuleList([Block(True) for _ in range(2)]), nn.LayerNorm(4)
        self.register_buffer("mask", torch.rand(8, 8), persistent=False)

    def forward(self, x: Any, xa: Any, kv_cache: Any = None) -> Any:
        offset = next(iter(kv_cache.values())).shape[1] if kv_cache else 0
        x = self.token_embedding(x) + self.positional_embedding[offset : offset + x.shape[-1]]
        x = x.to(xa.dtype)
        for block in self.blocks:
            x = block(x, xa, mask=self.mask, kv_cache=kv_cache)
        x = self.ln(x)
        return (x @ torch.transpose(self.token_embedding.weight.to(x.dtype), 0, 1)).float()


@right(
    "encoder.conv1|encoder.conv2 encoder.blocks.0-1 decoder.ln",
    "decoder.token_embedding|decoder.positional_embedding decoder.blocks.0-1 decoder.ln",
    name="Whisper as its authors wrote it",
)
class SpeechToText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = AudioEncoder(), TextDecoder()

    def embed_audio(self, mel: Any) -> Any:
        return self.encoder(mel)

    def forward(self, mel: Any, tokens: Any) -> Any:
        return self.decoder(tokens, self.encoder(mel))

    @property
    def device(self) -> Any:
        return next(self.parameters()).device


@right("tok_embeddings layers.0-3 norm|output", name="Llama as its authors wrote it")
class LlamaNet(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wq, self.wk, self.wv, self.wo = lin(), lin(), lin(), lin()
            self.w1, self.w2, self.w3 = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 8)
            self.attention_norm, self.ffn_norm = nn.RMSNorm(4), nn.RMSNorm(4)
            self.cache_k = torch.zeros(1, 8, 4)

        def forward(self, x: Any, start_pos: int, freqs: Any, mask: Any) -> Any:
            h = self.attention_norm(x)
            q, k, v = self.wq(h), self.wk(h), self.wv(h)
            q, k = torch.view_as_real(torch.view_as_complex(q.float().unflatten(-1, (-1, 2))) * freqs).flatten(-2), k
            scores = q @ k.transpose(1, 2)
            if mask is not None:
                scores = scores + mask
            h = x + self.wo(F.softmax(scores.float(), dim=-1).type_as(q) @ v)
            y = self.ffn_norm(h)
            return h + self.w2(F.silu(self.w1(y)) * self.w3(y))

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings, self.layers = nn.Embedding(30, 4), nn.ModuleList()
        for _ in range(4):
            self.layers.append(LlamaNet.Block())
        self.norm, self.output = nn.RMSNorm(4), nn.Linear(4, 30, bias=False)
        self.freqs_cis = torch.polar(torch.ones(16, 2), torch.rand(16, 2))

    def forward(self, tokens: Any, start_pos: int) -> Any:
        _bsz, seqlen = tokens.shape
        h = self.tok_embeddings(tokens)
        self.freqs_cis = self.freqs_cis.to(h.device)
        freqs_cis = self.freqs_cis[start_pos : start_pos + seqlen]
        mask = None
        if seqlen > 1:
            mask = torch.full((seqlen, seqlen), float("-inf"), device=tokens.device)
            mask = torch.triu(mask, diagonal=1)
            mask = torch.hstack([torch.zeros((seqlen, start_pos), device=tokens.device), mask]).type_as(h)
        for layer in self.layers:
            h = layer(h, start_pos, freqs_cis, mask)
        return self.output(self.norm(h)).float()


class ResBlock(nn.Module):
    def __init__(self, a: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4, 8))
        self.block1, self.block2 = Conv(a), Conv()
        self.res_conv = nn.Conv2d(a, 4, 1) if a != 4 else nn.Identity()

    def forward(self, x: Any, time_emb: Any = None) -> Any:
        scale_shift = None
        if self.mlp is not None and time_emb is not None:
            scale_shift = self.mlp(time_emb)[:, :, None, None].chunk(2, dim=1)
        h = self.block1(x)
        if scale_shift is not None:
            h = h * (scale_shift[0] + 1) + scale_shift[1]
        return self.block2(h) + self.res_conv(x)


class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.to_out = nn.GroupNorm(1, 4), nn.Conv2d(4, 12, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        b, c, h, w = x.shape
        q, k, v = (t.reshape(b, c, h * w) for t in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        out = torch.einsum("bij,bdj->bdi", torch.einsum("bdi,bdj->bij", q, k).softmax(-1), v)
        return self.to_out(out.reshape(b, c, h, w)) + x


@right(
    rising=(
        "init_conv downs.0.0", "time_mlp.1 downs.0.1", "downs.0.0 downs.1.0", "downs.0.3 downs.1.1",
        "downs.1.3 mid_block1 mid_block2",
        "downs.1.1 mid_block1", "mid_block1 mid_attn mid_block2", "mid_block1 mid_block2", "mid_block2 ups.0.0",
        "ups.0.0 ups.1.0", "ups.0.1 ups.1.1", "ups.1.1 final_res_block final_conv", "ups.1.3 final_conv",
    ),
    name="diffusion U-Net: lists of four parts",
)  # fmt: skip
class DenoisingUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.init_conv, self.self_condition = nn.Conv2d(3, 4, 7, padding=3), False
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
        self.downs, self.ups = nn.ModuleList([]), nn.ModuleList([])
        for _ in range(2):
            down = nn.Conv2d(4, 4, 4, 2, 1)
            self.downs.append(nn.ModuleList([ResBlock(), ResBlock(), SpatialAttention(), down]))
        self.mid_block1, self.mid_attn, self.mid_block2 = ResBlock(), SpatialAttention(), ResBlock()
        for _ in range(2):
            up = nn.ConvTranspose2d(4, 4, 4, 2, 1)
            self.ups.append(nn.ModuleList([ResBlock(8), ResBlock(8), SpatialAttention(), up]))
        self.final_res_block, self.final_conv = ResBlock(8), nn.Conv2d(4, 3, 1)

    def forward(self, x: Any, time: Any, x_self_cond: Any = None) -> Any:
        if self.self_condition:
            x_self_cond = x_self_cond if x_self_cond is not None else torch.zeros_like(x)
            x = torch.cat((x_self_cond, x), dim=1)
        x = self.init_conv(x)
        r = x.clone()
        t = self.time_mlp(time)
        h = []
        for block1, block2, attn, downsample in self.downs:
            x = block1(x, t)
            h.append(x)
            x = attn(block2(x, t)) + x
            h.append(x)
            x = downsample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, t)) + x, t)
        for block1, block2, attn, upsample in self.ups:
            x = upsample(x)
            x = block1(torch.cat((x, h.pop()), dim=1), t)
            x = attn(block2(torch.cat((x, h.pop()), dim=1), t)) + x
        return self.final_conv(self.final_res_block(torch.cat((x, r), dim=1), t))


@right(
    "net.layers.layer_0 net.layers.layer_1 net.layers.layer_2 net.layers.layer_3",
    name="a physics-informed network: derivatives in the step",
)
class Physics(LightningModule):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes, parts = [2, 4, 4, 4, 1], []
            for i in range(3):
                parts.append((f"layer_{i}", nn.Linear(sizes[i], sizes[i + 1])))
                parts.append((f"activation_{i}", nn.Tanh()))
            parts.append(("layer_3", nn.Linear(4, 1)))
            self.layers = nn.Sequential(OrderedDict(parts))

        def forward(self, x: Any) -> Any:
            return self.layers(x)

    def __init__(self) -> None:
        super().__init__()
        self.net = Physics.Net()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, t, u0 = batch
        x, t = x.requires_grad_(True), t.requires_grad_(True)
        u = self.net(torch.cat([x, t], dim=1))
        u_t = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)[0]
        u_x = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]
        u_xx = torch.autograd.grad(u_x, x, torch.ones_like(u_x), create_graph=True)[0]
        f = u_t + u * u_x - 0.01 * u_xx
        return F.mse_loss(u, u0) + (f**2).mean()


class BayesLinear(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.weight_mu, self.weight_rho = nn.Parameter(torch.zeros(b, a)), nn.Parameter(torch.zeros(b, a))
        self.bias_mu, self.bias_rho = nn.Parameter(torch.zeros(b)), nn.Parameter(torch.zeros(b))
        self.kl: Any = 0.0

    def forward(self, x: Any) -> Any:
        sigma = torch.log1p(torch.exp(self.weight_rho))
        weight = self.weight_mu + sigma * torch.randn_like(sigma)
        bias = self.bias_mu + torch.log1p(torch.exp(self.bias_rho)) * torch.randn_like(self.bias_rho)
        self.kl = (sigma**2 + self.weight_mu**2 - 2 * torch.log(sigma) - 1).sum() / 2
        return F.linear(x, weight, bias)


@right("fc1 fc2 fc3", name="Bayesian layers, several samples in a step")
class Bayesian(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = BayesLinear(6, 8), BayesLinear(8, 8), BayesLinear(8, 3)
        self.samples = 3

    def forward(self, x: Any) -> Any:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = torch.stack([self(x) for _ in range(self.samples)])
        kl = sum(m.kl for m in self.modules() if isinstance(m, BayesLinear))
        return F.cross_entropy(logits.mean(0), y) + kl / 1000


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta, self.threshold = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.tensor(1.0))

    def init_leaky(self) -> Any:
        return torch.zeros(1)

    def forward(self, x: Any, mem: Any) -> Any:
        mem = self.beta.clamp(0, 1) * mem + x
        spk = torch.sigmoid(10 * (mem - self.threshold))
        return spk, mem - spk * self.threshold


@right("conv1|lif1 conv2|lif2 fc1|lif3", name="spikes over time steps")
class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), Leaky()
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3), Leaky()
        self.fc1, self.lif3 = nn.Linear(4, 10), Leaky()
        self.num_steps = 3

    def forward(self, x: Any) -> Any:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spk3_rec, mem3_rec = [], []
        for _step in range(self.num_steps):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.flatten(1)), mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


class SplineLinear(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 6).expand(a, -1))
        self.base_weight, self.spline_weight = nn.Parameter(torch.Tensor(b, a)), nn.Parameter(torch.Tensor(b, a, 5))
        self.base_activation = nn.SiLU()

    def bases(self, x: Any) -> Any:
        x = x.unsqueeze(-1)
        return ((x >= self.grid[:, :-1]) & (x < self.grid[:, 1:])).to(x.dtype)

    def forward(self, x: Any) -> Any:
        assert x.size(-1) == self.base_weight.size(1)
        base = F.linear(self.base_activation(x), self.base_weight)
        spline = F.linear(self.bases(x).view(x.size(0), -1), self.spline_weight.view(self.base_weight.size(0), -1))
        return base + spline

    def regularization_loss(self) -> Any:
        return self.spline_weight.abs().mean()


@right("layers.0 layers.1 layers.2", name="KAN: splines in a list")
class Kan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for a, b in ((6, 8), (8, 8), (8, 1)):
            self.layers.append(SplineLinear(a, b))

    def forward(self, x: Any, update_grid: bool = False) -> Any:
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x)
            x = layer(x)
        return x


@right(
    rising=(
        "enc_p.emb enc_p.layers.0", "enc_p.layers.0 enc_p.layers.1",
        "enc_q.pre enc_q.layers.0", "enc_q.layers.0 enc_q.layers.1", "enc_q.layers.1 dec.0", "dec.0 dec.1",
        "dec.1 dec.2",
        "flow.0 flow.1", "enc_q.layers.1 flow.0",
    ),
    name="VITS: a prior and a posterior, a flow between, a vocoder",
)  # fmt: skip
class Vits(nn.Module):
    """The flow is called on what the posterior makes; the prior of the text meets it in the loss alone."""

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.layers, self.proj = nn.Embedding(30, 4), layers(2), nn.Linear(4, 8)

        def forward(self, x: Any, lengths: Any) -> Any:
            x = self.emb(x)
            for layer in self.layers:
                x = layer(x)
            return x, *self.proj(x).chunk(2, -1)

    class Posterior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre, self.layers, self.proj = nn.Linear(5, 4), layers(2), nn.Linear(4, 8)

        def forward(self, y: Any, lengths: Any) -> Any:
            x = self.pre(y)
            for layer in self.layers:
                x = layer(x)
            m, logs = self.proj(x).chunk(2, -1)
            return m + torch.randn_like(m) * torch.exp(logs), m, logs

    def __init__(self) -> None:
        super().__init__()
        self.enc_p, self.enc_q = Vits.Prior(), Vits.Posterior()
        self.dec, self.flow = nn.Sequential(Layer(), Layer(), Layer()), nn.Sequential(Layer(), Layer())

    def forward(self, x: Any, x_lengths: Any, y: Any, y_lengths: Any) -> Any:
        x, m_p, logs_p = self.enc_p(x, x_lengths)
        z, m_q, logs_q = self.enc_q(y, y_lengths)
        z_p = self.flow(z)
        with torch.no_grad():
            neg_cent = -0.5 * (z_p.unsqueeze(2) - m_p.unsqueeze(1)).pow(2).sum(-1)
            attn = F.one_hot(neg_cent.argmax(-1), m_p.shape[1]).float()
        m_p, logs_p = attn @ m_p, attn @ logs_p
        return self.dec(z), attn, (z_p, m_p, logs_p, m_q, logs_q)
