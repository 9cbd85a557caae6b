"""Fifth sample, mixed: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import fx, nn

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


@right(
    rising=("embed deep.0", "deep.0 deep.2", "deep.2 deep.4", "embed deep.4"),
    name="wide and deep, added up",
)
class WideAndDeep(nn.Module):
    """The wide part goes from the input straight to the output: it may count as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.embed = nn.Linear(20, 1), nn.EmbeddingBag(20, 4)
        self.deep = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, crossed: Any, ids: Any) -> Any:
        return torch.sigmoid(self.wide(crossed) + self.deep(self.embed(ids)))


@right(
    rising=(
        "scale0_layer0 scale0_layer1", "scale0_layer1 scale0_layer2", "scale1_layer0 scale1_layer1",
        "scale1_layer1 scale1_layer2",
    ),
    name="discriminators of two scales, layer by layer in attributes",
)  # fmt: skip
class MultiScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_d, self.n_layers = 2, 1
        for i in range(self.num_d):
            for j in range(self.n_layers + 2):
                setattr(
                    self, "scale" + str(i) + "_layer" + str(j), nn.Sequential(nn.Conv2d(3 if j == 0 else 4, 4, 4, 2, 2))
                )
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)

    def single(self, model: Any, x: Any) -> Any:
        result = [x]
        for i in range(len(model)):
            result.append(model[i](result[-1]))
        return result[1:]

    def forward(self, x: Any) -> Any:
        result, downsampled = [], x
        for i in range(self.num_d):
            model = [
                getattr(self, "scale" + str(self.num_d - 1 - i) + "_layer" + str(j)) for j in range(self.n_layers + 2)
            ]
            result.append(self.single(model, downsampled))
            if i != self.num_d - 1:
                downsampled = self.downsample(downsampled)
        return result


@right(
    "char_embed local.0 deep.0-2 final.0 head",
    rising=("local.0 down deep.1", "deep.2 up head"),
    name="characters: a deep stack between two shallow ones",
)
class Characters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.char_embed = nn.Linear(4, 9), nn.Embedding(99, 4)
        self.local, self.deep, self.final = layers(1), layers(3), layers(1)
        self.down, self.up = nn.Conv1d(4, 4, 4, 4), nn.Conv1d(8, 4, 4, padding="same")

    def forward(self, ids: Any) -> Any:
        chars = self.char_embed(ids)
        for layer in self.local:
            chars = layer(chars)
        x = self.down(chars.transpose(1, 2)).transpose(1, 2)
        for layer in self.deep:
            x = layer(x)
        x = torch.cat([chars, x.repeat_interleave(4, 1)], -1)
        x = self.up(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.final:
            x = layer(x)
        return self.head(x)


class RetroDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([])
        for i in range(4):
            cross = nn.MultiheadAttention(4, 2, batch_first=True) if i in (1, 3) else None
            self.layers.append(nn.ModuleList([nn.Linear(4, 4), cross, nn.Sequential(lin(), nn.GELU(), lin())]))

    def forward(self, x: Any, *, encoder: Any = None, retrieved: Any = None) -> Any:
        encoded = False
        for attn, cross, ff in self.layers:
            x = attn(x) + x
            if cross is not None and retrieved is not None:
                if not encoded:
                    retrieved, encoded = encoder(retrieved, context=x), True
                x = cross(x, retrieved, retrieved)[0] + x
            x = ff(x) + x
        return x


class RetroEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = layers(2)

    def forward(self, x: Any, context: Any) -> Any:
        for layer in self.layers:
            x = layer(x, context)
        return x


@right(
    "token_emb decoder.layers.0-3 to_logits",
    rising=("encoder.layers.0 encoder.layers.1 to_logits", "encoder.layers.0 encoder.layers.1"),
    name="RETRO: the encoder is an argument of the decoder",
)
class Retro(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_emb, self.encoder, self.decoder = nn.Embedding(30, 4), RetroEncoder(), RetroDecoder()
        self.to_logits = nn.Linear(4, 30)

    def forward(self, seq: Any, retrieved: Any = None) -> Any:
        embed = self.token_emb(seq)
        if retrieved is not None:
            retrieved = self.token_emb(retrieved)
        return self.to_logits(self.decoder(embed, encoder=self.encoder, retrieved=retrieved))


class Scale(nn.Module):
    def __init__(self, init_value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.FloatTensor([init_value]))

    def forward(self, x: Any) -> Any:
        return x * self.scale


class FcosHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("cls_tower", "bbox_tower"):
            tower: list[nn.Module] = []
            for _ in range(2):
                tower += [nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()]
            self.add_module(name, nn.Sequential(*tower))
        self.cls_logits, self.bbox_pred = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.centerness = nn.Conv2d(4, 1, 3, padding=1)
        self.scales = nn.ModuleList([Scale(init_value=1.0) for _ in range(3)])

    def forward(self, x: Any) -> Any:
        logits, bbox_reg, centerness = [], [], []
        for level, feature in enumerate(x):
            cls_tower = self.cls_tower(feature)
            box_tower = self.bbox_tower(feature)
            logits.append(self.cls_logits(cls_tower))
            centerness.append(self.centerness(box_tower))
            bbox_reg.append(torch.exp(self.scales[level](self.bbox_pred(box_tower))))
        return logits, bbox_reg, centerness


@right("backbone.stem backbone.stages.0-2 head", name="FCOS: towers for every level, a scale for each")
class Fcos(nn.Module):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stages = Conv(3), nn.ModuleList([Conv() for _ in range(3)])

        def forward(self, x: Any) -> list[Any]:
            x, outs = self.stem(x), []
            for stage in self.stages:
                x = F.max_pool2d(stage(x), 2)
                outs.append(x)
            return outs

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Fcos.Backbone(), FcosHead()

    def forward(self, images: Any) -> Any:
        return self.head(self.backbone(images))


class Propagate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        )

    def forward(self, x: Any, source: Any) -> Any:
        message, _ = self.attn(x, source, source)
        return self.mlp(torch.cat([x, message], dim=-1))


class GraphMatcher(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers, self.names = nn.ModuleList([Propagate() for _ in names]), names

    def forward(self, desc0: Any, desc1: Any) -> Any:
        for layer, name in zip(self.layers, self.names, strict=True):
            layer.attn.prob = []
            src0, src1 = (desc1, desc0) if name == "cross" else (desc0, desc1)
            delta0, delta1 = layer(desc0, src0), layer(desc1, src1)
            desc0, desc1 = (desc0 + delta0), (desc1 + delta1)
        return desc0, desc1


@right("kenc gnn.layers.0-3 final_proj|bin_score", name="SuperGlue: keypoints matched by a graph")
class SuperGlue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kenc = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.gnn = GraphMatcher(["self", "cross"] * 2)
        self.final_proj = lin()
        bin_score = nn.Parameter(torch.tensor(1.0))
        self.register_parameter("bin_score", bin_score)

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        desc0, desc1, kpts0, kpts1 = data["descriptors0"], data["descriptors1"], data["keypoints0"], data["keypoints1"]
        if kpts0.shape[1] == 0 or kpts1.shape[1] == 0:
            return {"matches0": kpts0.new_full(kpts0.shape[:-1], -1, dtype=torch.int)}
        desc0, desc1 = desc0 + self.kenc(kpts0), desc1 + self.kenc(kpts1)
        desc0, desc1 = self.gnn(desc0, desc1)
        mdesc0, mdesc1 = self.final_proj(desc0), self.final_proj(desc1)
        scores = torch.einsum("bnd,bmd->bnm", mdesc0, mdesc1) / 4**0.5
        bins = self.bin_score.expand(scores.shape[0], scores.shape[1], 1)
        return {"scores": torch.cat([scores, bins], -1).log_softmax(-1)}


class Local(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers, self.layer_names = nn.ModuleList([Propagate() for _ in range(count)]), ["self", "cross"] * count

    def forward(self, a: Any, b: Any) -> Any:
        for layer, name in zip(self.layers, self.layer_names, strict=False):
            if name == "self":
                a, b = layer(a, a), layer(b, b)
            elif name == "cross":
                a, b = layer(a, b), layer(b, a)
            else:
                raise KeyError
        return a, b


@right(
    "backbone.stem backbone.stages.0-2 loftr_coarse.layers.0-3 loftr_fine.layers.0-1",
    rising=("backbone.stages.2 fine_preprocess loftr_fine.layers.1",),
    name="LoFTR: coarse, then fine",
)
class Loftr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Fcos.Backbone()
        self.loftr_coarse, self.loftr_fine = Local(4), Local(2)
        self.fine_preprocess = nn.Linear(8, 4)

    def forward(self, data: dict[str, Any]) -> None:
        feats = self.backbone(torch.cat([data["image0"], data["image1"]], dim=0))
        c0, c1 = feats[2].flatten(2).transpose(1, 2).chunk(2)
        f0, f1 = feats[0].flatten(2).transpose(1, 2).chunk(2)
        c0, c1 = self.loftr_coarse(c0, c1)
        conf = torch.einsum("nlc,nsc->nls", c0, c1).softmax(1)
        index = conf.argmax(-1)
        data.update({"conf_matrix": conf})
        w0 = self.fine_preprocess(torch.cat([f0[:, : c0.shape[1]], c0], -1))
        w1 = self.fine_preprocess(torch.cat([f1.gather(1, index[..., None].expand(-1, -1, 4)), c1], -1))
        w0, w1 = self.loftr_fine(w0, w1)
        data.update({"expec_f": (w0 * w1).sum(-1)})


class AgentNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.rnn, self.fc2 = nn.Linear(6, 4), nn.GRUCell(4, 4), nn.Linear(4, 3)

    def init_hidden(self) -> Any:
        return self.fc1.weight.new(1, 4).zero_()

    def forward(self, inputs: Any, hidden: Any) -> Any:
        h = self.rnn(F.relu(self.fc1(inputs)), hidden.reshape(-1, 4))
        return self.fc2(h), h


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hyper_w_1, self.hyper_w_final, self.hyper_b_1 = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(5, 4)
        self.V = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, agent_qs: Any, states: Any) -> Any:
        bs = agent_qs.size(0)
        w1, b1 = torch.abs(self.hyper_w_1(states)).view(-1, 2, 4), self.hyper_b_1(states).view(-1, 1, 4)
        hidden = F.elu(torch.bmm(agent_qs.view(-1, 1, 2), w1) + b1)
        w_final = torch.abs(self.hyper_w_final(states)).view(-1, 4, 1)
        return (torch.bmm(hidden, w_final) + self.V(states).view(-1, 1, 1)).view(bs, -1, 1)


@right(
    "agent.fc1 agent.rnn agent.fc2 mixer", "target_agent.fc1 target_agent.rnn target_agent.fc2 target_mixer",
    name="QMIX: agents whose values a mixer joins, and targets",
)  # fmt: skip
class QMix(LightningModule):
    """Of two parts without blocks, each is read in turn; what follows the last is the mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.agent, self.mixer = AgentNet(), Mixer()
        self.target_agent, self.target_mixer = copy.deepcopy(self.agent), copy.deepcopy(self.mixer)

    def unroll(self, agent: Any, obs: Any) -> Any:
        hidden, outs = agent.init_hidden().expand(obs.shape[0], 2, -1), []
        for t in range(obs.shape[1]):
            q, hidden = agent(obs[:, t].reshape(-1, 6), hidden)
            outs.append(q.view(-1, 2, 3))
        return torch.stack(outs, dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        qs = torch.gather(self.unroll(self.agent, batch["obs"])[:, :-1], 3, batch["actions"]).squeeze(3)
        with torch.no_grad():
            targets = self.unroll(self.target_agent, batch["obs"])[:, 1:].max(3)[0]
            targets = self.target_mixer(targets, batch["state"][:, 1:])
        total = self.mixer(qs, batch["state"][:, :-1])
        return ((total - (batch["reward"] + 0.99 * targets)) ** 2).mean()


class Message(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.filter = nn.Sequential(lin(), nn.SiLU(), lin()), nn.Linear(1, 4)

    def forward(self, s: Any, v: Any, edge: Any, dist: Any) -> Any:
        w = self.filter(dist) * self.net(s)[edge[:, 1]]
        return s + torch.zeros_like(s).index_add_(0, edge[:, 0], w), v + torch.zeros_like(v).index_add_(
            0, edge[:, 0], w
        )


class Update(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.v, self.net = lin(), lin(), nn.Sequential(nn.Linear(8, 4), nn.SiLU(), nn.Linear(4, 4))

    def forward(self, s: Any, v: Any) -> Any:
        a = self.net(torch.cat([s, self.v(v).abs()], -1))
        return s + a, v + a * self.u(v)


@right(
    "atom_embedding message_layers.0|update_layers.0 message_layers.1|update_layers.1 "
    "message_layers.2|update_layers.2 readout",
    name="PaiNN: messages and updates in two lists",
)
class Painn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atom_embedding, self.num_message = nn.Embedding(9, 4), 3
        self.message_layers = nn.ModuleList([Message() for _ in range(3)])
        self.update_layers = nn.ModuleList([Update() for _ in range(3)])
        self.readout = nn.Sequential(lin(), nn.SiLU(), nn.Linear(4, 1))

    def forward(self, data: dict[str, Any]) -> Any:
        edge, diff = data["pairs"], data["n_diff"]
        dist = torch.linalg.norm(diff, dim=1, keepdim=True)
        s = self.atom_embedding(data["elems"])
        v = torch.zeros((s.shape[0], 4), dtype=s.dtype)
        for message, update in zip(self.message_layers, self.update_layers, strict=True):
            s, v = message(s, v, edge, dist)
            s, v = update(s, v)
        s = self.readout(s).squeeze()
        return [torch.sum(part) for part in torch.split(s, data["num_atoms"].tolist())]


class EsmLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.fc1, self.fc2, self.ln = lin(), nn.Linear(4, 8), nn.Linear(8, 4), nn.LayerNorm(4)

    def forward(self, x: Any, need_head_weights: bool = False) -> Any:
        y = self.self_attn(self.ln(x))
        attn = (y @ y.transpose(1, 2)).softmax(-1)
        x = x + attn @ y
        return x + self.fc2(F.gelu(self.fc1(x))), attn


class LmHead(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.dense, self.layer_norm = lin(), nn.LayerNorm(4)
        self.weight, self.bias = weight, nn.Parameter(torch.zeros(33))

    def forward(self, features: Any) -> Any:
        return F.linear(self.layer_norm(F.gelu(self.dense(features))), self.weight) + self.bias


@right(
    "embed_tokens layers.0-2 emb_layer_norm_after|contact_head|lm_head.dense",
    name="ESM: contacts read the attentions of all layers, the head is tied",
)
class Esm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(33, 4, padding_idx=1)
        self.layers = nn.ModuleList([EsmLayer() for _ in range(3)])
        self.contact_head, self.emb_layer_norm_after = nn.Linear(3, 1), nn.LayerNorm(4)
        self.lm_head = LmHead(self.embed_tokens.weight)

    def forward(self, tokens: Any, repr_layers: Sequence[int] = (), return_contacts: bool = False) -> Any:
        assert tokens.ndim == 2
        padding_mask = tokens.eq(1)
        x = self.embed_tokens(tokens)
        x = x * (1 - padding_mask.unsqueeze(-1).type_as(x))
        repr_layers, hidden, weights = set(repr_layers), {}, []
        if not padding_mask.any():
            padding_mask = None
        for layer_idx, layer in enumerate(self.layers):
            x, attn = layer(x, need_head_weights=return_contacts)
            if (layer_idx + 1) in repr_layers:
                hidden[layer_idx + 1] = x.transpose(0, 1)
            weights.append(attn)
        x = self.emb_layer_norm_after(x)
        result = {"logits": self.lm_head(x), "representations": hidden}
        attentions = torch.stack(weights, 1)
        if padding_mask is not None:
            mask = 1 - padding_mask.type_as(attentions)
            attentions = attentions * (mask.unsqueeze(1) * mask.unsqueeze(2))[:, None]
        result["contacts"] = torch.sigmoid(self.contact_head(attentions.permute(0, 2, 3, 1))).squeeze(3)
        return result


@right("embed convs1 fc1", name="sentences: convolutions of several widths over words")
class SentenceCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.convs1 = nn.ModuleList([nn.Conv2d(1, 3, (k, 4)) for k in (3, 4, 5)])
        self.dropout, self.fc1 = nn.Dropout(0.5), nn.Linear(9, 2)

    def forward(self, x: Any) -> Any:
        x = self.embed(x).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs1]
        x = [F.max_pool1d(i, i.size(2)).squeeze(2) for i in x]
        return self.fc1(self.dropout(torch.cat(x, 1)))


@right(
    rising=("embedding conv_region", "conv_region conv", "conv fc"),
    name="DPCNN: one convolution until the sentence is short",
)
class DeepPyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv_region = nn.Embedding(30, 4), nn.Conv2d(1, 4, (3, 4))
        self.conv, self.max_pool = nn.Conv2d(4, 4, (3, 1)), nn.MaxPool2d((3, 1), 2)
        self.padding1, self.padding2 = nn.ZeroPad2d((0, 0, 1, 1)), nn.ZeroPad2d((0, 0, 0, 1))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        x = self.conv_region(self.embedding(x[0]).unsqueeze(1))
        x = self.conv(F.relu(self.padding1(x)))
        x = self.conv(F.relu(self.padding1(x)))
        while x.size()[2] > 2:
            x = self._block(x)
        return self.fc(x.squeeze())

    def _block(self, x: Any) -> Any:
        px = self.max_pool(self.padding2(x))
        x = self.conv(F.relu(self.padding1(px)))
        return self.conv(F.relu(self.padding1(x))) + px


@right(rising=("W_enc W_dec", "b_enc W_dec"), name="a sparse autoencoder of four weights")
class SparseCoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_enc, self.W_dec = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(16, 4))
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Any) -> Any:
        acts = F.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        recon = acts @ self.W_dec + self.b_dec
        return (recon - x).pow(2).sum(-1).mean() + 3e-4 * acts.abs().sum(), recon


@right("net.embed net.layers.0-2 criterion", name="a loss that has weights of its own")
class Weighted(LightningModule):
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_vars, self.centers = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.randn(3, 4))

        def forward(self, features: Any, y: Any) -> Any:
            distance = (features - self.centers[y]).pow(2).sum(-1).mean()
            ce = F.cross_entropy(-torch.cdist(features, self.centers), y)
            losses = torch.stack([distance, ce])
            return (torch.exp(-self.log_vars) * losses + self.log_vars).sum()

    def __init__(self) -> None:
        super().__init__()
        self.criterion, self.net = Weighted.Criterion(), Tower(3)

    def forward(self, x: Any) -> Any:
        return self.net(x).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss


@right("inp blocks.0-2 out", name="a forward that is compiled on the instance")
class CompiledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.blocks, self.inp = lin(), layers(3), lin()
        self.forward = torch.compile(self.forward)

    def forward(self, x: Any) -> Any:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.layer1, self.layer2 = nn.Sequential(Conv(), Conv()), nn.Sequential(Conv(), Conv(), Conv())
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 10)

    def forward(self, x: Any) -> Any:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@right("features.0|features.1 features.3.0-1 features.4.0-2 fc", name="the children of a pretrained network, cut off")
class CutOff(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(Pretrained().children())[:-1])
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        self.features.eval()
        with torch.no_grad():
            representations = self.features(x).flatten(1)
        return self.fc(representations)


@right("body.conv1|body.bn1 body.layer1.0-1 body.layer2.0-2 body.fc", name="a traced graph as backbone")
class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = fx.symbolic_trace(Pretrained())

    def forward(self, x: Any) -> Any:
        return self.body(x).softmax(-1)


class LayerGetter(nn.ModuleDict):
    """The children of a model until the last that is asked for."""

    def __init__(self, model: nn.Module, return_layers: dict[str, str]) -> None:
        asked, kept = dict(return_layers), OrderedDict()
        for name, module in model.named_children():
            kept[name] = module
            asked.pop(name, None)
            if not asked:
                break
        super().__init__(kept)
        self.return_layers = return_layers

    def forward(self, x: Any) -> Any:
        out = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return out


@right(
    "backbone.conv1|backbone.bn1 backbone.layer1.0-1 backbone.layer2.0-2 classifier", name="a backbone that is a dict"
)
class Segmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = LayerGetter(Pretrained(), {"layer2": "out"})
        self.classifier = nn.Sequential(Conv(), nn.Conv2d(4, 9, 1))

    def forward(self, x: Any) -> Any:
        shape = x.shape[-2:]
        return {"out": F.interpolate(self.classifier(self.backbone(x)["out"]), size=shape, mode="bilinear")}


@right(
    rising=("encoder.0 encoder.2", "encoder.2 fc1 fc2 decoder.0", "encoder.2 decoder.0", "decoder.0 decoder.2"),
    name="an autoencoder with a code between",
)
class ConvCoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten())
        self.fc1, self.fc2 = nn.Linear(36, 3), nn.Linear(3, 36)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, 2), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3, 2))

    def encode(self, x: Any) -> Any:
        return self.fc1(self.encoder(x))

    def decode(self, z: Any) -> Any:
        return self.decoder(self.fc2(z).view(-1, 4, 3, 3))

    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x))


@right(
    "embedding lstm.weight_ih_l0 lstm.weight_ih_l1 distribution_mu|distribution_presigma",
    name="DeepAR: a step at a time, missing values filled in",
)
class DeepAr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(9, 3), nn.LSTM(5, 4, 2)
        self.relu, self.distribution_sigma = nn.ReLU(), nn.Softplus()
        self.distribution_presigma, self.distribution_mu = nn.Linear(8, 1), nn.Linear(8, 1)
        for names in self.lstm._all_weights:
            for name in filter(lambda n: "bias" in n, names):
                bias = getattr(self.lstm, name)
                n = bias.size(0)
                bias.data[n // 4 : n // 2].fill_(1.0)

    def step(self, x: Any, idx: Any, hidden: Any, cell: Any) -> Any:
        lstm_input = torch.cat((x, self.embedding(idx)), dim=2)
        _, (hidden, cell) = self.lstm(lstm_input, (hidden, cell))
        permuted = hidden.permute(1, 2, 0).contiguous().view(hidden.shape[1], -1)
        sigma = self.distribution_sigma(self.distribution_presigma(permuted))
        return torch.squeeze(self.distribution_mu(permuted)), torch.squeeze(sigma), hidden, cell

    def forward(self, train: Any, idx: Any, labels: Any) -> Any:
        hidden, cell = torch.zeros(2, train.shape[1], 4), torch.zeros(2, train.shape[1], 4)
        loss = torch.zeros(1)
        for t in range(train.shape[0]):
            zero_index = train[t, :, 0] == 0
            if t > 0 and torch.sum(zero_index) > 0:
                train[t, zero_index, 0] = mu[zero_index]  # noqa: F821
            mu, sigma, hidden, cell = self.step(train[t].unsqueeze_(0).clone(), idx, hidden, cell)
            loss = loss - torch.distributions.Normal(mu, sigma).log_prob(labels[t]).mean()
        return loss


@right(
    "conv_in backbone.0-2 cate|kernel|mask_feat",
    name="dynamic convolutions: one branch makes the weights of another",
)
class DynamicMasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.backbone = Conv(3), nn.Sequential(Conv(), Conv(), Conv())
        self.cate, self.kernel, self.mask_feat = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        f = self.backbone(self.conv_in(x))
        cate, kernels, masks = self.cate(f), self.kernel(f), self.mask_feat(f)
        b, c, h, w = masks.shape
        weights = kernels.flatten(2).transpose(1, 2).reshape(b * h * w, c, 1, 1)
        return cate, F.conv2d(masks.reshape(1, b * c, h, w), weights, groups=b)


@right("layers.0|mems.0 layers.1|mems.1 layers.2|mems.2 norm", name="memory tokens for each layer, added to its input")
class MemoryTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layers = nn.LayerNorm(4), nn.ModuleList([Layer() for _ in range(3)])
        self.mems = nn.ParameterList([nn.Parameter(torch.zeros(1, 2, 4)) for _ in range(3)])

    def forward(self, x: Any) -> Any:
        n = x.shape[1]
        for i, layer in enumerate(self.layers):
            x = layer(torch.cat([self.mems[i].expand(x.shape[0], -1, -1), x[:, -n:]], 1))
        return self.norm(x[:, -n:])
