"""Eighth sample, graphs, tables, agents: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import right
from tests.support.nets.eighth_images import strictly


class GraphConvolution(nn.Module):
    def __init__(self, c_in: int, c_out: int, support_len: int, order: int = 2) -> None:
        super().__init__()
        self.mlp = nn.Conv2d((order * support_len + 1) * c_in, c_out, kernel_size=(1, 1))
        self.order = order

    def forward(self, x: Any, support: list[Any]) -> Any:
        out = [x]
        for a in support:
            x1 = torch.einsum("ncvl,vw->ncwl", (x, a)).contiguous()
            out.append(x1)
            for _k in range(2, self.order + 1):
                x2 = torch.einsum("ncvl,vw->ncwl", (x1, a)).contiguous()
                out.append(x2)
                x1 = x2
        return F.dropout(self.mlp(torch.cat(out, dim=1)), 0.3, training=self.training)


@right(
    "start_conv|nodevec1|nodevec2 filter_convs.0|gate_convs.0|gconv.0|bn.0 filter_convs.1|gate_convs.1|gconv.1|bn.1"
    " filter_convs.2|gate_convs.2 end_conv",
    name="traffic on a learnt graph with dilated convolutions and skips",
)
class GraphWaveNet(nn.Module):
    def __init__(
        self, num_nodes: int = 5, supports: list[Any] | None = None, channels: int = 4, layers: int = 3
    ) -> None:
        super().__init__()
        self.layers = layers
        self.filter_convs, self.gate_convs = nn.ModuleList(), nn.ModuleList()
        self.skip_convs, self.bn, self.gconv = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.start_conv = nn.Conv2d(2, channels, kernel_size=(1, 1))
        self.supports = supports or []
        self.nodevec1 = nn.Parameter(torch.randn(num_nodes, 3), requires_grad=True)
        self.nodevec2 = nn.Parameter(torch.randn(3, num_nodes), requires_grad=True)
        receptive_field, new_dilation = 1, 1
        for _i in range(layers):
            self.filter_convs.append(nn.Conv2d(channels, channels, kernel_size=(1, 2), dilation=new_dilation))
            self.gate_convs.append(nn.Conv2d(channels, channels, kernel_size=(1, 2), dilation=new_dilation))
            self.skip_convs.append(nn.Conv2d(channels, 6, kernel_size=(1, 1)))
            self.bn.append(nn.BatchNorm2d(channels))
            self.gconv.append(GraphConvolution(channels, channels, len(self.supports) + 1))
            receptive_field += new_dilation
            new_dilation *= 2
        self.end_conv = nn.Conv2d(6, 12, kernel_size=(1, 1), bias=True)
        self.receptive_field = receptive_field

    def forward(self, input: Any) -> Any:
        in_len = input.size(3)
        x = F.pad(input, (self.receptive_field - in_len, 0, 0, 0)) if in_len < self.receptive_field else input
        x = self.start_conv(x)
        skip: Any = 0
        adp = F.softmax(F.relu(torch.mm(self.nodevec1, self.nodevec2)), dim=1)
        new_supports = [*self.supports, adp]
        for i in range(self.layers):
            residual = x
            filter = torch.tanh(self.filter_convs[i](residual))
            gate = torch.sigmoid(self.gate_convs[i](residual))
            x = filter * gate
            s = self.skip_convs[i](x)
            skip = s + skip[:, :, :, -s.size(3) :] if i > 0 else s
            x = self.gconv[i](x, new_supports)
            x = x + residual[:, :, :, -x.size(3) :]
            x = self.bn[i](x)
        return self.end_conv(F.relu(skip))


@dataclass
class Features:
    msa: Any
    target: Any
    residue_index: Any
    msa_mask: Any = None


class EvoformerBlock(nn.Module):
    def __init__(self, c_m: int, c_z: int) -> None:
        super().__init__()
        self.msa_norm, self.pair_norm = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.pair_bias = nn.Linear(c_z, 1, bias=False)
        self.value, self.msa_transition = nn.Linear(c_m, c_m), nn.Linear(c_m, c_m)
        self.left, self.right, self.outer = nn.Linear(c_m, 2), nn.Linear(c_m, 2), nn.Linear(4, c_z)
        self.triangle_a, self.triangle_b, self.triangle_out = (nn.Linear(c_z, c_z) for _ in range(3))

    def forward(self, m: Any, z: Any, mask: Any) -> tuple[Any, Any]:
        normed = self.msa_norm(m)
        attn = torch.softmax(self.pair_bias(z).squeeze(-1), dim=-1)
        m = m + torch.einsum("bij,bsjc->bsic", attn, self.value(normed))
        m = m + self.msa_transition(F.relu(m))
        a, b = self.left(m) * mask[..., None], self.right(m) * mask[..., None]
        outer = torch.einsum("bsic,bsjd->bijcd", a, b).flatten(-2) / m.shape[1]
        z = z + self.outer(outer)
        x = self.pair_norm(z)
        tri = torch.einsum("bikc,bjkc->bijc", torch.sigmoid(self.triangle_a(x)), self.triangle_b(x))
        return m, z + self.triangle_out(tri)


@right(
    "msa_embed|tf_m|left_single|right_single|relpos blocks.0-2 distogram|masked_msa",
    name="protein structure: alignment and pairs, recycled",
)
class MiniFold(nn.Module):
    def __init__(self, c_m: int = 6, c_z: int = 4, num_blocks: int = 3, max_rel: int = 3) -> None:
        super().__init__()
        self.max_rel = max_rel
        self.tf_m, self.msa_embed = nn.Linear(5, c_m), nn.Linear(7, c_m)
        self.left_single, self.right_single = nn.Linear(5, c_z), nn.Linear(5, c_z)
        self.relpos = nn.Linear(2 * max_rel + 1, c_z)
        self.recycle_norm = nn.LayerNorm(c_z)
        self.distogram, self.masked_msa = nn.Linear(c_z, 8), nn.Linear(c_m, 7)
        self.blocks = nn.ModuleList(EvoformerBlock(c_m, c_z) for _ in range(num_blocks))
        self.blocks_per_ckpt = 1

    def iteration(self, feats: Features, prev: Any = None) -> tuple[Any, Any]:
        z = self.left_single(feats.target)[:, :, None, :] + self.right_single(feats.target)[:, None, :, :]
        offset = feats.residue_index[:, :, None] - feats.residue_index[:, None, :]
        offset = offset.clamp(-self.max_rel, self.max_rel) + self.max_rel
        z = z + self.relpos(F.one_hot(offset, 2 * self.max_rel + 1).to(z.dtype))
        m = self.msa_embed(feats.msa) + self.tf_m(feats.target).unsqueeze(1)
        if prev is not None:
            z = z + self.recycle_norm(prev)
        mask = feats.msa_mask if feats.msa_mask is not None else m.new_ones(m.shape[:-1])
        for block in self.blocks:
            if self.training and torch.is_grad_enabled() and self.blocks_per_ckpt:
                m, z = checkpoint(block, m, z, mask, use_reentrant=False)
            else:
                m, z = block(m, z, mask)
        return m, z

    def forward(self, feats: Features, num_recycles: int = 1) -> dict[str, Any]:
        z = None
        for cycle in range(num_recycles + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == num_recycles):
                m, z = self.iteration(feats, z)
        logits = self.distogram(z)
        return {"distogram_logits": logits + logits.transpose(1, 2), "masked_msa_logits": self.masked_msa(m), "pair": z}


@right(
    rising=(*strictly("bot_l.0 bot_l.2 top_l.0 top_l.2 top_l.4"), *strictly("emb_l top_l.2")),
    name="click rates: a bottom, tables, products, a top",
)
class DLRM(nn.Module):
    def __init__(
        self, m_spa: int = 4, ln_emb: tuple[int, ...] = (10, 7, 5), arch_interaction_itself: bool = False
    ) -> None:
        super().__init__()
        self.arch_interaction_itself = arch_interaction_itself
        n = len(ln_emb) + 1
        num_int = n * (n - 1) // 2 + m_spa
        self.emb_l = self.create_emb(m_spa, ln_emb)
        self.bot_l = self.create_mlp([3, 6, m_spa], sigmoid_layer=-1)
        self.top_l = self.create_mlp([num_int, 6, 4, 1], sigmoid_layer=2)

    def create_mlp(self, ln: list[int], sigmoid_layer: int) -> nn.Sequential:
        made = nn.ModuleList()
        for i in range(len(ln) - 1):
            ll = nn.Linear(ln[i], ln[i + 1], bias=True)
            nn.init.normal_(ll.weight, 0.0, math.sqrt(2 / (ln[i] + ln[i + 1])))
            made.append(ll)
            made.append(nn.Sigmoid() if i == sigmoid_layer else nn.ReLU())
        return nn.Sequential(*made)

    def create_emb(self, m: int, ln: tuple[int, ...]) -> nn.ModuleList:
        emb_l = nn.ModuleList()
        for n in ln:
            emb_l.append(nn.EmbeddingBag(n, m, mode="sum"))
        return emb_l

    def apply_emb(self, ls_o: Any, ls_i: Any) -> list[Any]:
        ly = []
        for k, sparse_index_group_batch in enumerate(ls_i):
            ly.append(self.emb_l[k](sparse_index_group_batch, ls_o[k]))
        return ly

    def interact_features(self, x: Any, ly: list[Any]) -> Any:
        batch_size, d = x.shape
        t = torch.cat([x, *ly], dim=1).view((batch_size, -1, d))
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        _, ni, nj = z.shape
        offset = 1 if self.arch_interaction_itself else 0
        li = torch.tensor([i for i in range(ni) for j in range(i + offset)])
        lj = torch.tensor([j for i in range(nj) for j in range(i + offset)])
        return torch.cat([x, z[:, li, lj]], dim=1)

    def forward(self, dense_x: Any, ls_o: Any, ls_i: Any) -> Any:
        x = self.bot_l(dense_x)
        z = self.interact_features(x, self.apply_emb(ls_o, ls_i))
        p = self.top_l(z)
        return torch.clamp(p, min=1e-5, max=1 - 1e-5)


@right(
    rising=(
        *strictly("encoder.0 encoder.2 decoder.0 decoder.2 decoder.4"),
        "encoder.2 posterior decoder.0",
        *strictly("encoder.2 reward"),
    ),
    name="a world model of pixels, trained over time by training_step alone",
)
class WorldModel(LightningModule):
    def __init__(self, actions: int = 2, deter: int = 6, stoch: int = 3, kl_free: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cell, self.pre_cell = nn.GRUCell(deter, deter), nn.Linear(stoch + actions, deter)
        self.prior, self.posterior = nn.Linear(deter, 2 * stoch), nn.Linear(deter + 16, 2 * stoch)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 4, 2), nn.ELU(), nn.Conv2d(4, 4, 3, 2), nn.ELU(), nn.Flatten())
        self.decoder = nn.Sequential(
            nn.Linear(deter + stoch, 16),
            nn.Unflatten(1, (4, 2, 2)),
            nn.ConvTranspose2d(4, 4, 3, 2),
            nn.ELU(),
            nn.ConvTranspose2d(4, 3, 4, 2),
        )
        self.reward = nn.Linear(deter + stoch, 1)

    def _dist(self, stats: Any) -> Any:
        mean, std = stats.chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, F.softplus(std) + 0.1), 1)

    def observe(self, embed: Any, action: Any, is_first: Any) -> tuple[Any, list[Any], list[Any]]:
        b, t = action.shape[:2]
        h = embed.new_zeros(b, self.hparams["deter"])
        s = embed.new_zeros(b, self.hparams["stoch"])
        feats, priors, posts = [], [], []
        for i in range(t):
            keep = 1.0 - is_first[:, i].float()[:, None]
            h = self.cell(F.elu(self.pre_cell(torch.cat([s * keep, action[:, i] * keep], -1))), h * keep)
            priors.append(self._dist(self.prior(h)))
            posts.append(self._dist(self.posterior(torch.cat([h, embed[:, i]], -1))))
            s = posts[-1].rsample()
            feats.append(torch.cat([h, s], -1))
        return torch.stack(feats, 1), priors, posts

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        obs = batch["image"].float() / 255.0 - 0.5
        b, t = obs.shape[:2]
        embed = self.encoder(obs.flatten(0, 1)).view(b, t, -1)
        feat, priors, posts = self.observe(embed, batch["action"], batch["is_first"])
        recon = self.decoder(feat.flatten(0, 1)).view_as(obs)
        losses = {
            "image": (recon - obs).pow(2).sum((2, 3, 4)).mean(),
            "reward": F.mse_loss(self.reward(feat).squeeze(-1), batch["reward"]),
            "kl": torch.stack([torch.distributions.kl_divergence(q, p) for q, p in zip(posts, priors, strict=True)])
            .mean()
            .clamp(min=self.hparams["kl_free"]),
        }
        self.log_dict({f"loss/{k}": v.detach() for k, v in losses.items()})
        return sum(losses.values())


class DuelingNet(nn.Module):
    def __init__(self, in_channels: int, n_actions: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 4, 4, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(100, 8), nn.ReLU(),
        )  # fmt: skip
        self.advantage, self.value = nn.Linear(8, n_actions), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        h = self.features(x.float() / 255)
        adv, val = self.advantage(h), self.value(h)
        return val + (adv - adv.mean(dim=1, keepdim=True))


@right(
    "net.features.0|target_net.features.0 net.features.2|target_net.features.2 net.features.5|target_net.features.5"
    " net.advantage|net.value|target_net.advantage|target_net.value",
    name="Q-learning with a target network copied every few steps",
)
class DoubleDQN(LightningModule):
    def __init__(self, n_actions: int = 3, gamma: float = 0.99, sync_rate: int = 10) -> None:
        super().__init__()
        self.gamma, self.sync_rate = gamma, sync_rate
        self.net: nn.Module = DuelingNet(4, n_actions)
        self.target_net = copy.deepcopy(self.net)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Any:
        states, actions, rewards, dones, next_states = batch
        values = self.net(states).gather(1, actions.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_acts = self.net(next_states).max(1)[1].unsqueeze(-1)
            next_values = self.target_net(next_states).gather(1, next_acts).squeeze(-1)
            next_values[dones] = 0.0
        return F.smooth_l1_loss(values, next_values.detach() * self.gamma + rewards)

    def training_step(self, batch: Any, _: int) -> Any:
        loss = self.loss(batch)
        if self.global_step % self.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        self.log("train_loss", loss)
        return loss


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    bn = nn.BatchNorm2d(out_channels)
    nn.init.uniform_(bn.weight)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), bn, nn.ReLU(), nn.MaxPool2d(2))


@right("encoder.0 encoder.1 encoder.2 encoder.3 log_scale", name="prototypes of few examples with a learnt temperature")
class ProtoNet(LightningModule):
    def __init__(self, in_channels: int = 3, hidden: int = 4, n_way: int = 3) -> None:
        super().__init__()
        self.n_way = n_way
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Sequential(conv_block(in_channels, hidden), *[conv_block(hidden, hidden) for _ in range(3)])

    def prototypes(self, feats: Any, targets: Any) -> tuple[Any, Any]:
        classes, _ = torch.unique(targets).sort()
        protos = [feats[torch.where(targets == c)[0]].mean(dim=0) for c in classes]
        return torch.stack(protos, dim=0), classes

    def calculate_loss(self, batch: Any, mode: str) -> Any:
        imgs, targets = batch
        feats = self.encoder(imgs).flatten(1)
        support_feats, query_feats = feats.chunk(2, dim=0)
        support_targets, query_targets = targets.chunk(2, dim=0)
        protos, classes = self.prototypes(support_feats, support_targets)
        dist = torch.pow(protos[None, :] - query_feats[:, None], 2).sum(dim=2)
        preds = F.log_softmax(-dist * self.log_scale.exp(), dim=1)
        labels = (classes[None, :] == query_targets[:, None]).long().argmax(dim=-1)
        self.log(f"{mode}_acc", (preds.argmax(dim=1) == labels).float().mean())
        return F.nll_loss(preds, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.calculate_loss(batch, mode="train")


class ActNorm(nn.Module):
    def __init__(self, in_channel: int) -> None:
        super().__init__()
        self.loc, self.scale = (
            nn.Parameter(torch.zeros(1, in_channel, 1, 1)),
            nn.Parameter(torch.ones(1, in_channel, 1, 1)),
        )
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def initialize(self, input: Any) -> None:
        with torch.no_grad():
            mean, std = input.mean((0, 2, 3), keepdim=True), input.std((0, 2, 3), keepdim=True)
            self.loc.data.copy_(-mean)
            self.scale.data.copy_(1 / (std + 1e-6))

    def forward(self, input: Any) -> tuple[Any, Any]:
        if self.initialized.item() == 0:
            self.initialize(input)
            self.initialized.fill_(1)
        height, width = input.shape[2:]
        return self.scale * (input + self.loc), height * width * torch.sum(torch.log(torch.abs(self.scale)))


class FlowStep(nn.Module):
    def __init__(self, in_channel: int, filter_size: int = 4) -> None:
        super().__init__()
        self.actnorm = ActNorm(in_channel)
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(in_channel, in_channel))[0])
        self.net = nn.Sequential(
            nn.Conv2d(in_channel // 2, filter_size, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(filter_size, in_channel, 3, padding=1),
        )  # fmt: skip

    def forward(self, input: Any) -> tuple[Any, Any]:
        out, logdet = self.actnorm(input)
        out = F.conv2d(out, self.weight[:, :, None, None])
        logdet = logdet + out.shape[2] * out.shape[3] * torch.slogdet(self.weight.double())[1].float()
        in_a, in_b = out.chunk(2, 1)
        log_s, t = self.net(in_a).chunk(2, 1)
        s = torch.sigmoid(log_s + 2)
        out_b = (in_b + t) * s
        return torch.cat([in_a, out_b], 1), logdet + torch.sum(torch.log(s).view(input.shape[0], -1), 1)


class GlowBlock(nn.Module):
    def __init__(self, in_channel: int, n_flow: int, split: bool = True) -> None:
        super().__init__()
        squeeze_dim = in_channel * 4
        self.flows, self.split = nn.ModuleList(), split
        for _i in range(n_flow):
            self.flows.append(FlowStep(squeeze_dim))
        size = squeeze_dim // 2 if split else squeeze_dim
        self.prior = nn.Conv2d(size, size * 2, 3, padding=1)

    def forward(self, input: Any) -> tuple[Any, Any, Any, Any]:
        b, c, height, width = input.shape
        squeezed = input.view(b, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        out = squeezed.contiguous().view(b, c * 4, height // 2, width // 2)
        logdet: Any = 0
        for flow in self.flows:
            out, det = flow(out)
            logdet = logdet + det
        if self.split:
            out, z_new = out.chunk(2, 1)
            mean, log_sd = self.prior(out).chunk(2, 1)
        else:
            z_new = out
            mean, log_sd = self.prior(torch.zeros_like(out)).chunk(2, 1)
        log_p = -0.5 * math.log(2 * math.pi) - log_sd - 0.5 * (z_new - mean) ** 2 / torch.exp(2 * log_sd)
        return out, logdet, log_p.view(b, -1).sum(1), z_new


@right(
    rising=strictly("blocks.0.flows.0 blocks.0.flows.1 blocks.1.flows.0 blocks.1.flows.1"),
    name="a normalizing flow of several scales with data-dependent scales",
)
class Glow(nn.Module):
    def __init__(self, in_channel: int = 2, n_flow: int = 2, n_block: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        n_channel = in_channel
        for _i in range(n_block - 1):
            self.blocks.append(GlowBlock(n_channel, n_flow))
            n_channel *= 2
        self.blocks.append(GlowBlock(n_channel, n_flow, split=False))

    def forward(self, input: Any) -> tuple[Any, Any, list[Any]]:
        log_p_sum: Any = 0
        logdet: Any = 0
        out, z_outs = input, []
        for block in self.blocks:
            out, det, log_p, z_new = block(out)
            z_outs.append(z_new)
            logdet = logdet + det
            if log_p is not None:
                log_p_sum = log_p_sum + log_p
        return log_p_sum, logdet, z_outs


class Tokenizer(nn.Module):
    def __init__(self, n_num: int, cardinalities: list[int], d_token: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_num + 1, d_token))
        self.bias = nn.Parameter(torch.zeros(n_num + len(cardinalities), d_token))
        self.register_buffer("category_offsets", torch.tensor([0, *cardinalities[:-1]]).cumsum(0))
        self.category_embeddings = nn.Embedding(sum(cardinalities), d_token)

    def forward(self, x_num: Any, x_cat: Any = None) -> Any:
        x_num = torch.cat([torch.ones(len(x_num), 1, device=x_num.device), x_num], dim=1)
        x = self.weight[None] * x_num[:, :, None]
        bias = self.bias[: x_num.shape[1] - 1]
        if x_cat is not None:
            x = torch.cat([x, self.category_embeddings(x_cat + self.category_offsets[None])], dim=1)
            bias = self.bias
        return x + torch.cat([torch.zeros(1, self.bias.shape[1], device=x.device), bias])[None]


@right(
    "tokenizer layers.0-2 last_normalization|head",
    name="features of a table as tokens: dictionaries of parts, the first without its norm",
)
class FTTransformer(nn.Module):
    def __init__(self, n_layers: int = 3, d_token: int = 8, d_out: int = 2) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(4, [3, 5], d_token)
        self.layers = nn.ModuleList([])
        for layer_idx in range(n_layers):
            layer = nn.ModuleDict(
                {
                    "attention": nn.MultiheadAttention(d_token, 2, batch_first=True),
                    "linear0": nn.Linear(d_token, d_token * 2),
                    "linear1": nn.Linear(d_token, d_token),
                    "norm1": nn.LayerNorm(d_token),
                }
            )
            if layer_idx:
                layer["norm0"] = nn.LayerNorm(d_token)
            self.layers.append(layer)
        self.last_normalization = nn.LayerNorm(d_token)
        self.head = nn.Linear(d_token, d_out)

    def _start_residual(self, x: Any, layer: Any, norm_idx: int) -> Any:
        norm_key = f"norm{norm_idx}"
        return layer[norm_key](x) if norm_key in layer else x

    def forward(self, x_num: Any, x_cat: Any = None) -> Any:
        x = self.tokenizer(x_num, x_cat)
        for layer_idx, layer in enumerate(self.layers):
            is_last_layer = layer_idx + 1 == len(self.layers)
            x_residual = self._start_residual(x, layer, 0)
            query = x_residual[:, :1] if is_last_layer else x_residual
            x_residual = layer["attention"](query, x_residual, x_residual, need_weights=False)[0]
            if is_last_layer:
                x = x[:, : x_residual.shape[1]]
            x = x + x_residual
            a, b = layer["linear0"](self._start_residual(x, layer, 1)).chunk(2, dim=-1)
            x = x + layer["linear1"](a * F.relu(b))
        x = self.head(F.relu(self.last_normalization(x[:, 0])))
        return x.squeeze(-1)


class InteractionNet(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(3 * d, d), nn.SiLU(), nn.Linear(d, d), nn.LayerNorm(d))
        self.aggr_mlp = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d), nn.LayerNorm(d))

    def forward(self, send: Any, rec: Any, edge_rep: Any, edge_index: Any) -> tuple[Any, Any]:
        i, j = edge_index
        messages = self.edge_mlp(torch.cat([edge_rep, send[:, i], rec[:, j]], dim=-1))
        aggr = torch.zeros_like(rec).index_add(1, j, messages)
        return rec + self.aggr_mlp(torch.cat([rec, aggr], dim=-1)), edge_rep + messages


@right(
    rising=(
        *strictly("grid_embedder processor.0 processor.1 processor.2 output_map"),
        *strictly("mesh_embedder processor.0"),
        "grid_embedder g2m_gnn processor.0",
        "processor.2 m2g_gnn output_map",
    ),
    name="weather from grid to mesh and back: encode, process, decode",
)
class GraphWeather(nn.Module):
    def __init__(
        self, d: int = 6, n_grid: int = 10, n_mesh: int = 4, steps: int = 3, use_checkpoint: bool = True
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        grid, mesh = torch.arange(n_grid), torch.arange(n_grid) % n_mesh
        self.register_buffer("g2m", torch.stack([grid, mesh]), persistent=False)
        self.register_buffer("m2g", torch.stack([mesh, grid]), persistent=False)
        ring = torch.arange(n_mesh)
        self.register_buffer("m2m", torch.stack([ring, (ring + 1) % n_mesh]), persistent=False)
        self.register_buffer("mesh_static", torch.randn(n_mesh, 2))
        for name in ("g2m", "m2g", "m2m"):
            self.register_buffer(f"{name}_features", torch.randn(getattr(self, name).shape[1], d))
        self.output_map = nn.Linear(d, 3)
        self.grid_embedder, self.mesh_embedder = nn.Linear(3 + 2, d), nn.Linear(2, d)
        self.g2m_gnn, self.m2g_gnn = InteractionNet(d), InteractionNet(d)
        self.processor = nn.ModuleList([InteractionNet(d) for _ in range(steps)])

    def run_block(self, block: nn.Module, *args: Any) -> Any:
        if self.use_checkpoint and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def forward(self, batch: dict[str, Any]) -> Any:
        state = batch["state"]
        b = state.shape[0]
        grid = self.grid_embedder(torch.cat([state, batch["forcings"]], dim=-1))
        mesh = self.mesh_embedder(self.mesh_static).unsqueeze(0).expand(b, -1, -1)
        mesh, _ = self.g2m_gnn(grid, mesh, self.g2m_features.expand(b, -1, -1), self.g2m)
        edges = self.m2m_features.expand(b, -1, -1)
        for block in self.processor:
            mesh, edges = self.run_block(block, mesh, mesh, edges, self.m2m)
        grid, _ = self.m2g_gnn(mesh, grid, self.m2g_features.expand(b, -1, -1), self.m2g)
        return state + self.output_map(grid)


class Conv1dBlock(nn.Module):
    def __init__(self, inp: int, out: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inp, out, kernel_size, padding=kernel_size // 2), nn.GroupNorm(2, out), nn.Mish()
        )

    def forward(self, x: Any) -> Any:
        return self.block(x)


class CondResBlock1D(nn.Module):
    def __init__(self, inp: int, out: int, cond_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conv1dBlock(inp, out), Conv1dBlock(out, out)])
        self.out_channels = out
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, out * 2), nn.Unflatten(-1, (-1, 1)))
        self.residual_conv = nn.Conv1d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x: Any, cond: Any) -> Any:
        out = self.blocks[0](x)
        embed = self.cond_encoder(cond)
        embed = embed.reshape(embed.shape[0], 2, self.out_channels, 1)
        out = embed[:, 0, ...] * out + embed[:, 1, ...]
        out = self.blocks[1](out)
        return out + self.residual_conv(x)


@right(
    rising=(
        *strictly("down_modules.0 down_modules.1 mid_modules.0 mid_modules.1 up_modules.0 final_conv"),
        *strictly("step_proj down_modules.1"),
    ),
    name="actions by diffusion: a U-Net over time, lists of lists, the middle defined first",
)
class ConditionalUnet1D(nn.Module):
    def __init__(
        self, input_dim: int = 3, global_cond_dim: int = 4, dsed: int = 4, dims: tuple[int, ...] = (4, 8)
    ) -> None:
        super().__init__()
        all_dims = [input_dim, *dims]
        cond_dim = dsed + global_cond_dim
        self.dsed = dsed
        self.step_proj = nn.Linear(dsed, dsed)
        in_out = list(pairwise(all_dims))
        self.mid_modules = nn.ModuleList([CondResBlock1D(dims[-1], dims[-1], cond_dim) for _ in range(2)])
        down_modules = nn.ModuleList([])
        for ind, (dim_in, dim_out) in enumerate(in_out):
            is_last = ind >= len(in_out) - 1
            down_modules.append(
                nn.ModuleList(
                    [
                        CondResBlock1D(dim_in, dim_out, cond_dim),
                        CondResBlock1D(dim_out, dim_out, cond_dim),
                        nn.Conv1d(dim_out, dim_out, 3, 2, 1) if not is_last else nn.Identity(),
                    ]
                )
            )
        up_modules = nn.ModuleList([])
        for dim_in, dim_out in reversed(in_out[1:]):
            up_modules.append(
                nn.ModuleList(
                    [
                        CondResBlock1D(dim_out * 2, dim_in, cond_dim),
                        CondResBlock1D(dim_in, dim_in, cond_dim),
                        nn.ConvTranspose1d(dim_in, dim_in, 4, 2, 1),
                    ]
                )
            )
        self.up_modules, self.down_modules = up_modules, down_modules
        self.final_conv = nn.Conv1d(dims[0], input_dim, 1)

    def forward(self, sample: Any, timestep: Any, global_cond: Any = None) -> Any:
        sample = sample.moveaxis(-1, -2)
        timesteps = timestep
        if not torch.is_tensor(timesteps):
            timesteps = torch.tensor([timesteps], dtype=torch.long, device=sample.device)
        elif torch.is_tensor(timesteps) and len(timesteps.shape) == 0:
            timesteps = timesteps[None].to(sample.device)
        timesteps = timesteps.expand(sample.shape[0])
        freqs = torch.exp(torch.arange(self.dsed // 2, device=sample.device) * -math.log(100))
        emb = timesteps[:, None] * freqs[None, :]
        global_feature = F.mish(self.step_proj(torch.cat((emb.sin(), emb.cos()), dim=-1)))
        if global_cond is not None:
            global_feature = torch.cat([global_feature, global_cond], axis=-1)
        x = sample
        h = []
        for resnet, resnet2, downsample in self.down_modules:
            x = resnet(x, global_feature)
            x = resnet2(x, global_feature)
            h.append(x)
            x = downsample(x)
        for mid_module in self.mid_modules:
            x = mid_module(x, global_feature)
        for resnet, resnet2, upsample in self.up_modules:
            x = torch.cat((x, h.pop()), dim=1)
            x = resnet(x, global_feature)
            x = resnet2(x, global_feature)
            x = upsample(x)
        return self.final_conv(x).moveaxis(-1, -2)
