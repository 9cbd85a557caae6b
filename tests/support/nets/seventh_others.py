"""Seventh sample, graphs, tables, control and more: their right order written before the first run, by the rules of
the card."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn

from tests.support.nets.collection import right


# ---------------------------------------------------------------------- graphs and molecules
def scatter_sum(src, index, n):
    return torch.zeros(n, *src.shape[1:], dtype=src.dtype, device=src.device).index_add_(0, index, src)


class GCNConv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.lin, self.bias = nn.Linear(a, b, bias=False), nn.Parameter(torch.zeros(b))

    def forward(self, x, edge_index):
        row, col = edge_index
        deg = scatter_sum(torch.ones_like(row, dtype=x.dtype), col, x.shape[0]) + 1
        norm = deg.rsqrt()[row] * deg.rsqrt()[col]
        x = self.lin(x)
        return scatter_sum(x[row] * norm[:, None], col, x.shape[0]) + x / deg[:, None] + self.bias


@right(
    "lin_in convs.0-2|bns.0-2 lin_out",
    name="graph convolutions with jumping knowledge, edges are dropped",
)
class JKNet(nn.Module):
    def __init__(self, in_channels=5, hidden=6, out_channels=3, num_layers=3, dropout=0.5):
        super().__init__()
        self.convs, self.bns = nn.ModuleList(), nn.ModuleList()
        self.lin_in = nn.Linear(in_channels, hidden)
        for _ in range(num_layers):
            self.convs.append(GCNConv(hidden, hidden))
            self.bns.append(nn.BatchNorm1d(hidden))
        self.lin_out = nn.Linear(hidden * num_layers, out_channels)
        self.dropout = dropout

    def forward(self, x, edge_index):
        if self.training:
            edge_index = edge_index[:, torch.rand(edge_index.shape[1]) > 0.1]
        x, xs = F.relu(self.lin_in(x)), []
        for conv, bn in zip(self.convs, self.bns, strict=True):
            h = F.relu(bn(conv(x, edge_index)))
            x = F.dropout(h, p=self.dropout, training=self.training) + x
            xs += [x]
        return self.lin_out(torch.cat(xs, dim=-1)).log_softmax(dim=-1)


class EGCL(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(2 * d + 1, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d))
        self.coord_mlp = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 1, bias=False))

    def forward(self, h, edge_index, coord):
        row, col = edge_index
        diff = coord[row] - coord[col]
        radial = torch.sum(diff**2, 1).unsqueeze(1)
        edge = self.edge_mlp(torch.cat([h[row], h[col], radial], dim=1))
        coord = coord + scatter_sum(diff * self.coord_mlp(edge), row, h.size(0)) / (h.size(0) - 1)
        out = self.node_mlp(torch.cat([h, scatter_sum(edge, row, h.size(0))], dim=1))
        return h + out, coord


@right("embedding_in gcl_0-2 embedding_out", name="EGNN: layers added by number, coordinates go along")
class EGNN(nn.Module):
    def __init__(self, in_node_nf=4, hidden_nf=6, out_node_nf=1, n_layers=3):
        super().__init__()
        self.n_layers = n_layers
        self.embedding_in = nn.Linear(in_node_nf, hidden_nf)
        self.embedding_out = nn.Linear(hidden_nf, out_node_nf)
        for i in range(0, n_layers):
            self.add_module("gcl_%d" % i, EGCL(hidden_nf))  # noqa: UP031

    def forward(self, h, x, edges):
        h = self.embedding_in(h)
        for i in range(0, self.n_layers):
            h, x = self._modules["gcl_%d" % i](h, edges, x)  # noqa: UP031
        h = self.embedding_out(h)
        return h, x


class CFConv(nn.Module):
    def __init__(self, d, mlp, cutoff):
        super().__init__()
        self.lin1, self.lin2, self.nn, self.cutoff = nn.Linear(d, d, bias=False), nn.Linear(d, d), mlp, cutoff

    def forward(self, x, edge_index, edge_weight, edge_attr):
        c = 0.5 * (torch.cos(edge_weight * math.pi / self.cutoff) + 1.0)
        w = self.nn(edge_attr) * c.view(-1, 1)
        return self.lin2(scatter_sum(self.lin1(x)[edge_index[0]] * w, edge_index[1], x.shape[0]))


class InteractionBlock(nn.Module):
    def __init__(self, d, gaussians, cutoff):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(gaussians, d), nn.Softplus(), nn.Linear(d, d))
        self.conv = CFConv(d, self.mlp, cutoff)
        self.act, self.lin = nn.Softplus(), nn.Linear(d, d)

    def forward(self, x, edge_index, edge_weight, edge_attr):
        return self.lin(self.act(self.conv(x, edge_index, edge_weight, edge_attr)))


@right("embedding interactions.0-2 lin1|lin2", name="SchNet: energies, and forces as their gradient")
class SchNet(nn.Module):
    def __init__(self, d=8, num_interactions=3, gaussians=6, cutoff=5.0, forces=False):
        super().__init__()
        self.cutoff, self.forces = cutoff, forces
        self.register_buffer("offset", torch.linspace(0, cutoff, gaussians))
        self.lin1, self.act, self.lin2 = nn.Linear(d, d // 2), nn.Softplus(), nn.Linear(d // 2, 1)
        self.embedding = nn.Embedding(10, d, padding_idx=0)
        self.interactions = nn.ModuleList()
        for _ in range(num_interactions):
            self.interactions.append(InteractionBlock(d, gaussians, cutoff))

    def forward(self, z, pos, batch=None):
        batch = torch.zeros_like(z) if batch is None else batch
        if self.forces:
            pos.requires_grad_(True)
        dist = torch.cdist(pos, pos) + torch.eye(len(z)) * 1e3
        near = (dist.detach() < self.cutoff) & (batch[:, None] == batch[None])
        edge_index = near.nonzero().t()
        edge_weight = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=-1)
        edge_attr = torch.exp(-0.5 * (edge_weight.view(-1, 1) - self.offset.view(1, -1)) ** 2)
        h = self.embedding(z)
        for interaction in self.interactions:
            h = h + interaction(h, edge_index, edge_weight, edge_attr)
        h = self.lin2(self.act(self.lin1(h)))
        energy = scatter_sum(h, batch, int(batch.max()) + 1)
        if not self.forces:
            return energy
        return energy, -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]


class ProteinLayer(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = nn.MultiheadAttention(d, heads), nn.LayerNorm(d)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.LayerNorm(d)

    def forward(self, x, self_attn_padding_mask=None, need_head_weights=False):
        residual = x
        x = self.self_attn_layer_norm(x)
        x, attn = self.self_attn(
            x, x, x, key_padding_mask=self_attn_padding_mask, need_weights=need_head_weights, average_attn_weights=False
        )
        x = residual + x
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), attn


class RobertaLMHead(nn.Module):
    def __init__(self, d, output_dim, weight):
        super().__init__()
        self.dense, self.layer_norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.weight, self.bias = weight, nn.Parameter(torch.zeros(output_dim))

    def forward(self, features):
        x = self.layer_norm(F.gelu(self.dense(features)))
        return F.linear(x, self.weight) + self.bias


@right(
    "embed_tokens layers.0-2 emb_layer_norm_after|lm_head|contact_head",
    name="protein language model: contacts by regression on all attentions",
)
class ProteinLM(nn.Module):
    def __init__(self, d=8, n=3, heads=2, alphabet=24):
        super().__init__()
        self.padding_idx, self.mask_idx, self.embed_scale = 1, 2, 1
        self.embed_tokens = nn.Embedding(alphabet, d, padding_idx=1)
        self.layers = nn.ModuleList([ProteinLayer(d, heads) for _ in range(n)])
        self.contact_head = nn.Linear(n * heads, 1)
        self.emb_layer_norm_after = nn.LayerNorm(d)
        self.lm_head = RobertaLMHead(d, alphabet, self.embed_tokens.weight)

    def forward(self, tokens, repr_layers=(), return_contacts=True):
        padding_mask = tokens.eq(self.padding_idx)
        x = self.embed_scale * self.embed_tokens(tokens)
        x = x.masked_fill((tokens == self.mask_idx).unsqueeze(-1), 0.0)
        x = x * (1 - padding_mask.unsqueeze(-1).type_as(x))
        hidden, attn_weights = {}, []
        if 0 in repr_layers:
            hidden[0] = x
        x = x.transpose(0, 1)
        if not padding_mask.any():
            padding_mask = None
        for layer_idx, layer in enumerate(self.layers):
            x, attn = layer(x, self_attn_padding_mask=padding_mask, need_head_weights=return_contacts)
            if (layer_idx + 1) in repr_layers:
                hidden[layer_idx + 1] = x.transpose(0, 1)
            if return_contacts:
                attn_weights.append(attn)
        x = self.emb_layer_norm_after(x).transpose(0, 1)
        result = {"logits": self.lm_head(x), "representations": hidden}
        if return_contacts:
            attentions = torch.cat(attn_weights, 1)
            attentions = attentions + attentions.transpose(-1, -2)
            result["contacts"] = torch.sigmoid(self.contact_head(attentions.permute(0, 2, 3, 1)).squeeze(3))
        return result


class EvoBlock(nn.Module):
    def __init__(self, c_m, c_z):
        super().__init__()
        self.norm_m, self.norm_z = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.qkv, self.bias, self.o = nn.Linear(c_m, 3 * c_m), nn.Linear(c_z, 1), nn.Linear(c_m, c_m)
        self.left, self.right, self.outer = nn.Linear(c_m, 2), nn.Linear(c_m, 2), nn.Linear(4, c_z)
        self.tri_a, self.tri_b, self.tri_o = nn.Linear(c_z, c_z), nn.Linear(c_z, c_z), nn.Linear(c_z, c_z)

    def forward(self, m, z):
        q, k, v = self.qkv(self.norm_m(m)).chunk(3, -1)
        logits = torch.einsum("sic,sjc->sij", q, k) + self.bias(z).squeeze(-1)
        m = m + self.o(torch.einsum("sij,sjc->sic", logits.softmax(-1), v))
        outer = torch.einsum("sia,sjb->ijab", self.left(m), self.right(m)).flatten(-2) / m.shape[0]
        z = z + self.outer(outer)
        y = self.norm_z(z)
        return m, z + self.tri_o(torch.einsum("ikc,jkc->ijc", self.tri_a(y).sigmoid(), self.tri_b(y)))


@right(
    rising=("msa_embed evoformer.0-2 structure.ipa structure.to_coords", "msa_embed evoformer.0-2 distogram"),
    name="folding: recycled pairs, one structure layer that is repeated",
)
class MiniFold(nn.Module):
    class Structure(nn.Module):
        def __init__(self, c_s, c_z, n=2):
            super().__init__()
            self.n, self.norm, self.ipa = n, nn.LayerNorm(c_s), nn.Linear(c_s + c_z + 1, c_s)
            self.to_coords, self.plddt = nn.Linear(c_s, 3), nn.Linear(c_s, 1)

        def forward(self, s, z):
            xyz, trajectory = s.new_zeros(s.shape[0], 3), []
            for _ in range(self.n):
                d = (xyz[:, None] - xyz[None]).norm(dim=-1, keepdim=True).mean(1)
                s = self.norm(s + self.ipa(torch.cat([s, z.mean(1), d], -1)))
                xyz = xyz + self.to_coords(s)
                trajectory.append(xyz)
            return trajectory, self.plddt(s)

    def __init__(self, c_m=6, c_z=4, n=3):
        super().__init__()
        self.msa_embed, self.left, self.right = nn.Embedding(22, c_m), nn.Embedding(21, c_z), nn.Embedding(21, c_z)
        self.recycle_norm, self.recycle_dist = nn.LayerNorm(c_z), nn.Linear(1, c_z)
        self.evoformer = nn.ModuleList([EvoBlock(c_m, c_z) for _ in range(n)])
        self.structure, self.distogram = self.Structure(c_m, c_z), nn.Linear(c_z, 8)

    def iteration(self, feats, prev):
        m = self.msa_embed(feats["msa"])
        z = self.left(feats["aatype"])[:, None] + self.right(feats["aatype"])[None]
        if prev is not None:
            z = z + self.recycle_norm(prev["z"]) + self.recycle_dist(torch.cdist(prev["xyz"], prev["xyz"])[..., None])
        for block in self.evoformer:
            m, z = block(m, z)
        trajectory, plddt = self.structure(m[0], z)
        return {"z": z, "xyz": trajectory[-1], "plddt": plddt, "distogram": self.distogram(z + z.transpose(0, 1))}

    def forward(self, feats, num_recycles=1):
        prev = None
        for cycle in range(num_recycles + 1):
            last = cycle == num_recycles
            with torch.set_grad_enabled(last and torch.is_grad_enabled()):
                out = self.iteration(feats, prev)
            prev = {"z": out["z"].detach(), "xyz": out["xyz"].detach()}
        return out


@right(
    "drug_embed drug_convs.0-1 fc", "prot_embed prot_convs.0-2 fc",
    name="affinity of drug and target, two convolutional encoders",
)  # fmt: skip
class DeepDTA(nn.Module):
    def __init__(self, d=6, smiles=16, amino=22):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(2 * d, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.drug_embed, self.prot_embed = nn.Embedding(smiles, d), nn.Embedding(amino, d)
        self.drug_convs = nn.ModuleList([nn.Conv1d(d, d, k, padding=k // 2) for k in (3, 5)])
        self.prot_convs = nn.ModuleList([nn.Conv1d(d, d, k, padding=k // 2) for k in (3, 5, 7)])

    def branch(self, tokens, embed, convs):
        x = embed(tokens).permute(0, 2, 1)
        for conv in convs:
            x = F.relu(conv(x))
        return x.max(dim=-1)[0]

    def forward(self, data):
        drug = self.branch(data["smiles"], self.drug_embed, self.drug_convs)
        prot = self.branch(data["sequence"], self.prot_embed, self.prot_convs)
        return self.fc(torch.cat((drug, prot), 1)).squeeze(-1)


@right(
    "start_conv filter_convs.0-1|gate_convs.0-1|gconv.0-1|bn.0-1 filter_convs.2|gate_convs.2 end_conv_1|end_conv_2",
    name="Graph WaveNet: traffic, a learned adjacency, lists by index",
)
class GraphWaveNet(nn.Module):
    def __init__(self, num_nodes=5, c=4, layers=3, in_dim=2, out_dim=4):
        super().__init__()
        self.layers = layers
        self.filter_convs, self.gate_convs = nn.ModuleList(), nn.ModuleList()
        self.skip_convs, self.bn, self.gconv = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.start_conv = nn.Conv2d(in_dim, c, (1, 1))
        self.nodevec1 = nn.Parameter(torch.randn(num_nodes, 3))
        self.nodevec2 = nn.Parameter(torch.randn(3, num_nodes))
        self.receptive_field = 1
        for i in range(layers):
            self.filter_convs.append(nn.Conv2d(c, c, (1, 2), dilation=2**i))
            self.gate_convs.append(nn.Conv2d(c, c, (1, 2), dilation=2**i))
            self.skip_convs.append(nn.Conv2d(c, 2 * c, (1, 1)))
            self.bn.append(nn.BatchNorm2d(c))
            self.gconv.append(nn.Conv2d(3 * c, c, (1, 1)))
            self.receptive_field += 2**i
        self.end_conv_1, self.end_conv_2 = nn.Conv2d(2 * c, 2 * c, (1, 1)), nn.Conv2d(2 * c, out_dim, (1, 1))

    def forward(self, inp, support):
        in_len = inp.size(3)
        x = F.pad(inp, (self.receptive_field - in_len, 0, 0, 0)) if in_len < self.receptive_field else inp
        x, skip = self.start_conv(x), 0
        adp = F.softmax(F.relu(torch.mm(self.nodevec1, self.nodevec2)), dim=1)
        for i in range(self.layers):
            residual = x
            x = torch.tanh(self.filter_convs[i](residual)) * torch.sigmoid(self.gate_convs[i](residual))
            s = self.skip_convs[i](x)
            try:
                skip = skip[:, :, :, -s.size(3) :]
            except TypeError:
                skip = 0
            skip = s + skip
            out = [x] + [torch.einsum("ncvl,vw->ncwl", x, a).contiguous() for a in (support, adp)]
            x = F.dropout(self.gconv[i](torch.cat(out, dim=1)), 0.3, training=self.training)
            x = self.bn[i](x + residual[:, :, :, -x.size(3) :])
        return self.end_conv_2(F.relu(self.end_conv_1(F.relu(skip))))


# ---------------------------------------------------------------------- tables and recommendations
@right(
    "tokenizer layers.0-2 last_normalization|head",
    name="FT-Transformer: layers are ModuleDicts, the first has a norm less",
)
class FTTransformer(nn.Module):
    class Tokenizer(nn.Module):
        def __init__(self, d_numerical, categories, d):
            super().__init__()
            self.register_buffer("offsets", torch.tensor([0, *categories[:-1]]).cumsum(0))
            self.category_embeddings = nn.Embedding(sum(categories), d)
            self.weight = nn.Parameter(torch.randn(d_numerical + 1, d) * 0.1)
            self.bias = nn.Parameter(torch.zeros(d_numerical + len(categories), d))

        def forward(self, x_num, x_cat):
            x_num = torch.cat([torch.ones(len(x_cat), 1, device=x_cat.device), *([] if x_num is None else [x_num])], 1)
            x = self.weight[None] * x_num[:, :, None]
            x = torch.cat([x, self.category_embeddings(x_cat + self.offsets[None])], dim=1)
            return x + torch.cat([torch.zeros(1, self.bias.shape[1]), self.bias])[None]

    def __init__(self, d_numerical=4, categories=(3, 5), d=8, n_layers=3, prenormalization=True):
        super().__init__()
        self.tokenizer = self.Tokenizer(d_numerical, list(categories), d)
        self.layers, self.prenorm = nn.ModuleList([]), prenormalization
        for layer_idx in range(n_layers):
            layer = nn.ModuleDict(
                {
                    "attention": nn.MultiheadAttention(d, 2, batch_first=True),
                    "linear0": nn.Linear(d, 4 * d),
                    "linear1": nn.Linear(2 * d, d),
                    "norm1": nn.LayerNorm(d),
                }
            )
            if not prenormalization or layer_idx:
                layer["norm0"] = nn.LayerNorm(d)
            self.layers.append(layer)
        self.last_normalization = nn.LayerNorm(d) if prenormalization else None
        self.head = nn.Linear(d, 1)

    def _start_residual(self, x, layer, norm_idx):
        x_residual = x
        if self.prenorm:
            norm_key = f"norm{norm_idx}"
            if norm_key in layer:
                x_residual = layer[norm_key](x_residual)
        return x_residual

    def _end_residual(self, x, x_residual, layer, norm_idx):
        x = x + F.dropout(x_residual, 0.1, self.training)
        return x if self.prenorm else layer[f"norm{norm_idx}"](x)

    def forward(self, x_num, x_cat):
        x = self.tokenizer(x_num, x_cat)
        for layer_idx, layer in enumerate(self.layers):
            is_last_layer = layer_idx + 1 == len(self.layers)
            x_residual = self._start_residual(x, layer, 0)
            x_residual, _ = layer["attention"](
                x_residual[:, :1] if is_last_layer else x_residual, x_residual, x_residual
            )
            if is_last_layer:
                x = x[:, : x_residual.shape[1]]
            x = self._end_residual(x, x_residual, layer, 0)
            x_residual = self._start_residual(x, layer, 1)
            a, b = layer["linear0"](x_residual).chunk(2, dim=-1)
            x = self._end_residual(x, layer["linear1"](a * F.relu(b)), layer, 1)
        x = x[:, 0]
        if self.last_normalization is not None:
            x = self.last_normalization(x)
        return self.head(F.relu(x)).squeeze(-1)


@right(
    "embedding_dict dnn.linears.0-2|dnn.bn.0-2 dnn_linear",
    "crossnet.kernels.0|crossnet.bias.0 crossnet.kernels.1|crossnet.bias.1 dnn_linear",
    name="deep and cross network: kernels in parameter lists",
)
class DCN(nn.Module):
    class CrossNet(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.layer_num = n
            self.kernels = nn.ParameterList([nn.Parameter(torch.randn(d, 1) * 0.1) for _ in range(n)])
            self.bias = nn.ParameterList([nn.Parameter(torch.zeros(d, 1)) for _ in range(n)])

        def forward(self, inputs):
            x_0 = inputs.unsqueeze(2)
            x_l = x_0
            for i in range(self.layer_num):
                xl_w = torch.tensordot(x_l, self.kernels[i], dims=([1], [0]))
                x_l = torch.matmul(x_0, xl_w) + self.bias[i] + x_l
            return torch.squeeze(x_l, dim=2)

    class DNN(nn.Module):
        def __init__(self, d, hidden_units):
            super().__init__()
            units = [d, *hidden_units]
            self.linears = nn.ModuleList([nn.Linear(units[i], units[i + 1]) for i in range(len(units) - 1)])
            self.bn = nn.ModuleList([nn.BatchNorm1d(units[i + 1]) for i in range(len(units) - 1)])

        def forward(self, inputs):
            deep_input = inputs
            for i in range(len(self.linears)):
                fc = self.linears[i](deep_input)
                fc = self.bn[i](fc)
                deep_input = F.dropout(F.relu(fc), 0.1, self.training)
            return deep_input

    def __init__(self, sparse=None, dense=3, d=4):
        super().__init__()
        self.sparse = sparse or {"user": 10, "item": 12, "country": 4}
        width = d * len(self.sparse) + dense
        self.dnn, self.crossnet = self.DNN(width, (8, 8, 6)), self.CrossNet(width, 2)
        self.dnn_linear = nn.Linear(width + 6, 1, bias=False)
        self.embedding_dict = nn.ModuleDict({feat: nn.Embedding(n, d) for feat, n in self.sparse.items()})

    def forward(self, x):
        embeds = [self.embedding_dict[feat](x[:, i].long()) for i, feat in enumerate(self.sparse)]
        dnn_input = torch.cat([*embeds, x[:, len(self.sparse) :]], dim=-1)
        stack_out = torch.cat((self.crossnet(dnn_input), self.dnn(dnn_input)), dim=-1)
        return torch.sigmoid(self.dnn_linear(stack_out))


class PointWiseFeedForward(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(d, d, kernel_size=1), nn.Conv1d(d, d, kernel_size=1)

    def forward(self, inputs):
        outputs = self.conv2(F.relu(self.conv1(inputs.transpose(-1, -2))))
        outputs = outputs.transpose(-1, -2)
        outputs += inputs
        return outputs


@right(
    "item_emb|pos_emb "
    "attention_layernorms.0-1|attention_layers.0-1|forward_layernorms.0-1|forward_layers.0-1 last_layernorm",
    name="SASRec: four lists in turn, items are scored by their embedding",
)
class SASRec(nn.Module):
    def __init__(self, item_num=20, maxlen=8, d=6, num_blocks=2):
        super().__init__()
        self.item_emb, self.pos_emb = (
            nn.Embedding(item_num + 1, d, padding_idx=0),
            nn.Embedding(maxlen + 1, d, padding_idx=0),
        )
        self.attention_layernorms, self.attention_layers = nn.ModuleList(), nn.ModuleList()
        self.forward_layernorms, self.forward_layers = nn.ModuleList(), nn.ModuleList()
        self.last_layernorm = nn.LayerNorm(d, eps=1e-8)
        for _ in range(num_blocks):
            self.attention_layernorms.append(nn.LayerNorm(d, eps=1e-8))
            self.attention_layers.append(nn.MultiheadAttention(d, 1))
            self.forward_layernorms.append(nn.LayerNorm(d, eps=1e-8))
            self.forward_layers.append(PointWiseFeedForward(d))

    def log2feats(self, log_seqs):
        seqs = self.item_emb(log_seqs) * self.item_emb.embedding_dim**0.5
        poss = torch.arange(1, log_seqs.shape[1] + 1, device=log_seqs.device).repeat(log_seqs.shape[0], 1)
        poss = poss * (log_seqs != 0)
        seqs = seqs + self.pos_emb(poss)
        tl = seqs.shape[1]
        attention_mask = ~torch.tril(torch.ones((tl, tl), dtype=torch.bool, device=log_seqs.device))
        for i in range(len(self.attention_layers)):
            seqs = torch.transpose(seqs, 0, 1)
            q = self.attention_layernorms[i](seqs)
            mha_outputs, _ = self.attention_layers[i](q, seqs, seqs, attn_mask=attention_mask)
            seqs = q + mha_outputs
            seqs = torch.transpose(seqs, 0, 1)
            seqs = self.forward_layernorms[i](seqs)
            seqs = self.forward_layers[i](seqs)
        return self.last_layernorm(seqs)

    def forward(self, user_ids, log_seqs, pos_seqs, neg_seqs):
        log_feats = self.log2feats(log_seqs)
        pos_embs, neg_embs = self.item_emb(pos_seqs), self.item_emb(neg_seqs)
        return (log_feats * pos_embs).sum(dim=-1), (log_feats * neg_embs).sum(dim=-1)

    def predict(self, user_ids, log_seqs, item_indices):
        final_feat = self.log2feats(log_seqs)[:, -1, :]
        return self.item_emb(item_indices).matmul(final_feat.unsqueeze(-1)).squeeze(-1)


# ---------------------------------------------------------------------- control
class CausalBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = (
            nn.LayerNorm(d),
            nn.MultiheadAttention(d, 2, batch_first=True),
            nn.LayerNorm(d),
        )
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, mask=None):
        y, n = self.ln_1(x), x.shape[1]
        causal = torch.full((n, n), float("-inf"), device=x.device).triu(1)
        x = x + self.attn(y, y, y, attn_mask=causal, key_padding_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


@right(
    "embed_timestep|embed_return|embed_state|embed_action|embed_ln transformer.h.0-2 "
    "transformer.ln_f|predict_state|predict_action|predict_return",
    name="decision transformer: three tokens a step",
)
class DecisionTransformer(nn.Module):
    class Model(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.h, self.ln_f = nn.ModuleList([CausalBlock(d) for _ in range(n)]), nn.LayerNorm(d)

        def forward(self, inputs_embeds, attention_mask=None):
            hidden = inputs_embeds
            for block in self.h:
                hidden = block(hidden, attention_mask)
            return {"last_hidden_state": self.ln_f(hidden)}

    def __init__(self, state_dim=3, act_dim=2, d=8, n=3, max_ep_len=20, action_tanh=True):
        super().__init__()
        self.hidden_size = d
        self.transformer = self.Model(d, n)
        self.embed_timestep = nn.Embedding(max_ep_len, d)
        self.embed_return, self.embed_state = nn.Linear(1, d), nn.Linear(state_dim, d)
        self.embed_action, self.embed_ln = nn.Linear(act_dim, d), nn.LayerNorm(d)
        self.predict_state = nn.Linear(d, state_dim)
        self.predict_action = nn.Sequential(nn.Linear(d, act_dim), *([nn.Tanh()] if action_tanh else []))
        self.predict_return = nn.Linear(d, 1)

    def forward(self, states, actions, rewards, returns_to_go, timesteps, attention_mask=None):
        b, t = states.shape[0], states.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones((b, t), dtype=torch.long)
        time = self.embed_timestep(timesteps)
        s, a, r = (
            self.embed_state(states) + time,
            self.embed_action(actions) + time,
            self.embed_return(returns_to_go) + time,
        )
        stacked = torch.stack((r, s, a), dim=1).permute(0, 2, 1, 3).reshape(b, 3 * t, self.hidden_size)
        stacked = self.embed_ln(stacked)
        mask = torch.stack((attention_mask,) * 3, dim=1).permute(0, 2, 1).reshape(b, 3 * t)
        x = self.transformer(inputs_embeds=stacked, attention_mask=mask == 0)["last_hidden_state"]
        x = x.reshape(b, t, 3, self.hidden_size).permute(0, 2, 1, 3)
        return self.predict_state(x[:, 2]), self.predict_action(x[:, 1]), self.predict_return(x[:, 2])


class ImpalaRes(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv1(F.relu(self.conv0(F.relu(x)))) + x


class ConvSequence(nn.Module):
    def __init__(self, input_shape, c):
        super().__init__()
        self.input_shape, self.c = input_shape, c
        self.conv = nn.Conv2d(input_shape[0], c, 3, padding=1)
        self.res_block0, self.res_block1 = ImpalaRes(c), ImpalaRes(c)

    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 3, 2, 1)
        x = self.res_block1(self.res_block0(x))
        assert x.shape[1:] == self.get_output_shape()
        return x

    def get_output_shape(self):
        _, h, w = self.input_shape
        return (self.c, (h + 1) // 2, (w + 1) // 2)


@right(
    rising=("network.0 network.1 network.4 actor", "network.0 network.1 network.4 critic"),
    name="PPO agent: a trunk, an actor, a critic, no forward",
)
class Agent(nn.Module):
    def __init__(self, shape=(3, 8, 8), n_actions=4):
        super().__init__()
        conv_seqs = []
        for out_channels in [4, 8]:
            conv_seq = ConvSequence(shape, out_channels)
            shape = conv_seq.get_output_shape()
            conv_seqs.append(conv_seq)
        conv_seqs += [nn.Flatten(), nn.ReLU(), nn.Linear(shape[0] * shape[1] * shape[2], 8), nn.ReLU()]
        self.network = nn.Sequential(*conv_seqs)
        self.actor, self.critic = nn.Linear(8, n_actions), nn.Linear(8, 1)

    def get_value(self, x):
        return self.critic(self.network(x / 255.0))

    def get_action_and_value(self, x, action=None):
        hidden = self.network(x / 255.0)
        probs = torch.distributions.Categorical(logits=self.actor(hidden))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)


class Actor(nn.Module):
    def __init__(self, obs, act, h=8):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(obs, h), nn.Linear(h, h)
        self.fc_mean, self.fc_logstd = nn.Linear(h, act), nn.Linear(h, act)

    def forward(self, x):
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        mean, log_std = self.fc_mean(x), torch.tanh(self.fc_logstd(x))
        return mean, -5 + 0.5 * (2 + 5) * (log_std + 1)

    def get_action(self, x):
        mean, log_std = self(x)
        normal = torch.distributions.Normal(mean, log_std.exp())
        x_t = normal.rsample()
        y_t = torch.tanh(x_t)
        log_prob = normal.log_prob(x_t) - torch.log(1 - y_t.pow(2) + 1e-6)
        return y_t, log_prob.sum(1, keepdim=True)


class SoftQ(nn.Module):
    def __init__(self, obs, act, h=8):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(obs + act, h), nn.Linear(h, h), nn.Linear(h, 1)

    def forward(self, x, a):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat([x, a], 1))))))


@right(
    rising=(
        "actor.fc1 actor.fc2 actor.fc_mean",
        "qf1.fc1 qf1.fc2 qf1.fc3",
        "qf2_target.fc1 qf2_target.fc2 qf2_target.fc3",
    ),
    name="SAC: an actor, twin critics and their targets",
)  # fmt: skip
class SAC(LightningModule):
    def __init__(self, obs=3, act=2, gamma=0.99, tau=0.005):
        super().__init__()
        self.automatic_optimization = False
        self.gamma, self.tau, self.target_entropy = gamma, tau, -float(act)
        self.actor, self.qf1, self.qf2 = Actor(obs, act), SoftQ(obs, act), SoftQ(obs, act)
        self.qf1_target, self.qf2_target = SoftQ(obs, act), SoftQ(obs, act)
        self.qf1_target.load_state_dict(self.qf1.state_dict())
        self.qf2_target.load_state_dict(self.qf2.state_dict())
        self.log_alpha = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        q_optimizer, actor_optimizer, a_optimizer = self.optimizers()
        obs, actions, rewards, next_obs, dones = batch
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_actions, next_log_pi = self.actor.get_action(next_obs)
            target = torch.min(self.qf1_target(next_obs, next_actions), self.qf2_target(next_obs, next_actions))
            next_q = rewards + (1 - dones) * self.gamma * (target - alpha * next_log_pi).view(-1)
        qf_loss = sum(F.mse_loss(q(obs, actions).view(-1), next_q) for q in (self.qf1, self.qf2))
        q_optimizer.zero_grad()
        self.manual_backward(qf_loss)
        q_optimizer.step()
        pi, log_pi = self.actor.get_action(obs)
        actor_loss = ((alpha * log_pi) - torch.min(self.qf1(obs, pi), self.qf2(obs, pi))).mean()
        actor_optimizer.zero_grad()
        self.manual_backward(actor_loss)
        actor_optimizer.step()
        alpha_loss = (-self.log_alpha.exp() * (log_pi.detach() + self.target_entropy)).mean()
        a_optimizer.zero_grad()
        self.manual_backward(alpha_loss)
        a_optimizer.step()
        for net, copy_ in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
            for param, target_param in zip(net.parameters(), copy_.parameters(), strict=True):
                target_param.data.copy_(self.tau * param.data + (1 - self.tau) * target_param.data)

    def configure_optimizers(self):
        q = torch.optim.Adam(list(self.qf1.parameters()) + list(self.qf2.parameters()), lr=1e-3)
        return q, torch.optim.Adam(self.actor.parameters(), lr=3e-4), torch.optim.Adam([self.log_alpha], lr=1e-3)


@right(
    rising=("encoder.0 encoder.2 post.0 post.2 decoder.0 decoder.3", "encoder.0 encoder.2 post.0 post.2 reward"),
    name="world model: a recurrent state with prior and posterior",
)
class WorldModel(nn.Module):
    def __init__(self, act=2, deter=6, stoch=4):
        super().__init__()
        self.deter, self.stoch = deter, stoch
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.ELU(), nn.Conv2d(4, 4, 4, 2, 1), nn.ELU(), nn.Flatten()
        )
        self.inp, self.cell = nn.Linear(stoch + act, deter), nn.GRUCell(deter, deter)
        self.prior = nn.Sequential(nn.Linear(deter, 8), nn.ELU(), nn.Linear(8, 2 * stoch))
        self.post = nn.Sequential(nn.Linear(deter + 16, 8), nn.ELU(), nn.Linear(8, 2 * stoch))
        self.decoder = nn.Sequential(
            nn.Linear(deter + stoch, 16), nn.ELU(), nn.Unflatten(1, (16, 1, 1)), nn.ConvTranspose2d(16, 1, 8)
        )
        self.reward = nn.Linear(deter + stoch, 1)

    def dist(self, stats):
        mean, std = stats.chunk(2, dim=-1)
        return torch.distributions.Normal(mean, F.softplus(std) + 0.1)

    def observe(self, embed, action, is_first):
        h, z = embed.new_zeros(embed.shape[0], self.deter), embed.new_zeros(embed.shape[0], self.stoch)
        states, kl = [], 0
        for t in range(embed.shape[1]):
            keep = (1.0 - is_first[:, t].float()).unsqueeze(-1)
            h, z = h * keep, z * keep
            h = self.cell(F.elu(self.inp(torch.cat([z, action[:, t]], -1))), h)
            prior, post = self.dist(self.prior(h)), self.dist(self.post(torch.cat([h, embed[:, t]], -1)))
            z = post.rsample()
            kl = kl + torch.distributions.kl_divergence(post, prior).sum(-1).mean()
            states.append(torch.cat([h, z], -1))
        return torch.stack(states, 1), kl / embed.shape[1]

    def forward(self, data):
        image = data["image"]
        b, t = image.shape[:2]
        embed = self.encoder(image.flatten(0, 1)).unflatten(0, (b, t))
        feat, kl = self.observe(embed, data["action"], data["is_first"])
        recon = self.decoder(feat.flatten(0, 1)).unflatten(0, (b, t))
        return {
            "kl": kl,
            "image": F.mse_loss(recon, image),
            "reward": F.mse_loss(self.reward(feat)[..., 0], data["reward"]),
        }


class ResConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2, self.gn = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(2, c)

    def forward(self, x):
        return F.relu(self.gn(self.conv2(F.relu(self.conv1(x)))) + x)


@right(
    "cams.front.stem cams.front.blocks.0-1 trunk.0-1 norm|action_head",
    "cams.wrist.stem cams.wrist.blocks.0-1 trunk.0-1 norm|action_head",
    name="robot policy: an encoder per camera in a ModuleDict, an EMA copy is kept outside",
)
class RobotPolicy(LightningModule):
    class Camera(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.blocks = nn.ModuleList([ResConv(d), ResConv(d)])
            self.stem = nn.Conv2d(3, d, 4, 4)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return x.flatten(2).transpose(1, 2)

    def __init__(self, cameras=("front", "wrist"), d=8, act=3, horizon=4):
        super().__init__()
        self.action_head, self.norm = nn.Linear(d, act * horizon), nn.LayerNorm(d)
        self.trunk = nn.ModuleList([CausalBlock(d) for _ in range(2)])
        self.cams = nn.ModuleDict({name: self.Camera(d) for name in cameras})
        self.horizon, self.ema_state = horizon, None

    def forward(self, obs):
        tokens = torch.cat([cam(obs[f"rgb_{name}"]) for name, cam in self.cams.items()], dim=1)
        for block in self.trunk:
            tokens = block(tokens)
        return self.action_head(self.norm(tokens).mean(1)).unflatten(-1, (self.horizon, -1))

    def training_step(self, batch, batch_idx):
        pred = self(batch["obs"])
        valid = (~batch["is_pad"]).unsqueeze(-1)
        return (F.l1_loss(pred, batch["action"], reduction="none") * valid).mean()

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            now = {k: v.detach().clone() for k, v in self.state_dict().items()}
            old = self.ema_state or now
            self.ema_state = {k: old[k].lerp(now[k], 0.01) for k in now}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)}


# ---------------------------------------------------------------------- small data, many tasks
class DiffusionBlock(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.ff, self.act = nn.Linear(size, size), nn.GELU()

    def forward(self, x):
        return x + self.act(self.ff(x))


@right("joint_mlp.0 joint_mlp.2-4 joint_mlp.5", name="diffusion of points: stem, blocks and head in one Sequential")
class PointDiffusion(nn.Module):
    class Sinusoidal(nn.Module):
        def __init__(self, size, scale=1.0):
            super().__init__()
            self.size, self.scale = size, scale

        def forward(self, x):
            half = self.size // 2
            emb = torch.exp(-torch.log(torch.Tensor([10000.0])) / (half - 1) * torch.arange(half))
            emb = (x * self.scale).unsqueeze(-1) * emb.unsqueeze(0)
            return torch.cat((torch.sin(emb), torch.cos(emb)), dim=-1)

    def __init__(self, hidden_size=8, hidden_layers=3, emb_size=4):
        super().__init__()
        self.time_mlp = self.Sinusoidal(emb_size)
        self.input_mlp1, self.input_mlp2 = self.Sinusoidal(emb_size, 25.0), self.Sinusoidal(emb_size, 25.0)
        layers = [nn.Linear(3 * emb_size, hidden_size), nn.GELU()]
        for _ in range(hidden_layers):
            layers.append(DiffusionBlock(hidden_size))
        layers.append(nn.Linear(hidden_size, 2))
        self.joint_mlp = nn.Sequential(*layers)

    def forward(self, x, t):
        x1_emb = self.input_mlp1(x[:, 0])
        x2_emb = self.input_mlp2(x[:, 1])
        t_emb = self.time_mlp(t)
        x = torch.cat((x1_emb, x2_emb, t_emb), dim=-1)
        return self.joint_mlp(x)


@right(
    "vars.0|vars.1|vars.2|vars.3 vars.4|vars.5|vars.6|vars.7 vars.8|vars.9",
    name="MAML: a learner of bare parameters by a config",
)
class Learner(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config or [
            ("conv2d", [4, 1, 3, 3, 2, 1]), ("bn", [4]), ("relu", [True]),
            ("conv2d", [4, 4, 3, 3, 2, 1]), ("bn", [4]), ("relu", [True]),
            ("flatten", []), ("linear", [5, 16]),
        ]  # fmt: skip
        self.vars = nn.ParameterList()
        for name, param in self.config:
            if name == "conv2d":
                w = nn.Parameter(torch.ones(*param[:4]))
                torch.nn.init.kaiming_normal_(w)
                self.vars.append(w)
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
            elif name == "linear":
                w = nn.Parameter(torch.ones(*param))
                torch.nn.init.kaiming_normal_(w)
                self.vars.append(w)
                self.vars.append(nn.Parameter(torch.zeros(param[0])))
            elif name == "bn":
                self.vars.append(nn.Parameter(torch.ones(param[0])))
                self.vars.append(nn.Parameter(torch.zeros(param[0])))

    def forward(self, x, vars=None):
        if vars is None:
            vars = self.vars
        idx = 0
        for name, param in self.config:
            if name == "conv2d":
                x = F.conv2d(x, vars[idx], vars[idx + 1], stride=param[4], padding=param[5])
                idx += 2
            elif name == "linear":
                x = F.linear(x, vars[idx], vars[idx + 1])
                idx += 2
            elif name == "bn":
                x = F.batch_norm(x, None, None, weight=vars[idx], bias=vars[idx + 1], training=True)
                idx += 2
            elif name == "relu":
                x = F.relu(x, inplace=param[0])
            elif name == "flatten":
                x = x.view(x.size(0), -1)
            else:
                raise NotImplementedError
        assert idx == len(vars)
        return x


def conv_block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))


@right("encoder.0-3 scale", name="prototypical network with a learned temperature")
class ProtoNet(LightningModule):
    def __init__(self, x_dim=1, hid_dim=4, z_dim=4):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.encoder = nn.Sequential(
            conv_block(x_dim, hid_dim),
            conv_block(hid_dim, hid_dim),
            conv_block(hid_dim, hid_dim),
            conv_block(hid_dim, z_dim),
        )

    def forward(self, x):
        return self.encoder(x).view(x.size(0), -1)

    def loss(self, sample):
        xs, xq = sample["xs"], sample["xq"]
        n_class, n_support, n_query = xs.size(0), xs.size(1), xq.size(1)
        x = torch.cat([xs.view(n_class * n_support, *xs.size()[2:]), xq.view(n_class * n_query, *xq.size()[2:])], 0)
        z = self.forward(x)
        z_proto = z[: n_class * n_support].view(n_class, n_support, -1).mean(1)
        dists = torch.cdist(z[n_class * n_support :], z_proto).pow(2)
        log_p_y = F.log_softmax(-dists * self.scale, dim=1).view(n_class, n_query, -1)
        target = torch.arange(n_class).view(n_class, 1, 1).expand(n_class, n_query, 1)
        return -log_p_y.gather(2, target).mean(), (log_p_y.argmax(2) == target.squeeze(2)).float().mean()

    def training_step(self, batch, batch_idx):
        loss, acc = self.loss(batch)
        self.log_dict({"loss": loss, "acc": acc}, batch_size=1)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class SmallConvNet(nn.Module):
    def __init__(self, c=4, n=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.blocks = nn.Sequential(*[ResConv(c) for _ in range(n)])
        self.out_dim = c

    def forward(self, x):
        return {"features": self.blocks(self.stem(x)).mean((2, 3))}


@right(
    "convnets.0.stem convnets.0.blocks.0-1 fc|aux_fc", "convnets.1.stem convnets.1.blocks.0-1 fc|aux_fc",
    name="continual learning: a network more for every task, the older are frozen",
)  # fmt: skip
class DERNet(nn.Module):
    def __init__(self, tasks=(3, 2)):
        super().__init__()
        self.convnets, self.fc, self.aux_fc, self.task_sizes, self.out_dim = nn.ModuleList(), None, None, [], None
        seen = 0
        for size in tasks:
            seen += size
            self.update_fc(seen)

    @property
    def feature_dim(self):
        return 0 if self.out_dim is None else self.out_dim * len(self.convnets)

    def update_fc(self, nb_classes):
        if len(self.convnets) == 0:
            self.convnets.append(SmallConvNet())
        else:
            self.convnets.append(copy.deepcopy(self.convnets[-1]))
            for p in self.convnets[-2].parameters():
                p.requires_grad = False
        if self.out_dim is None:
            self.out_dim = self.convnets[-1].out_dim
        fc = nn.Linear(self.feature_dim, nb_classes)
        if self.fc is not None:
            old = self.fc.out_features
            fc.weight.data[:old, : self.feature_dim - self.out_dim] = self.fc.weight.data
            fc.bias.data[:old] = self.fc.bias.data
        self.fc = fc
        self.task_sizes.append(nb_classes - sum(self.task_sizes))
        self.aux_fc = nn.Linear(self.out_dim, self.task_sizes[-1] + 1)

    def forward(self, x):
        features = [convnet(x)["features"] for convnet in self.convnets]
        out = {"logits": self.fc(torch.cat(features, 1))}
        out.update({"aux_logits": self.aux_fc(features[-1]), "features": features})
        return out


class GradReverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.neg() * ctx.alpha, None


@right(
    rising=(
        "feature.f_conv1 feature.f_conv2 class_classifier.c_fc1 class_classifier.c_fc3",
        "feature.f_conv1 feature.f_conv2 domain_classifier.d_fc1 domain_classifier.d_fc2",
    ),
    name="adaptation of domains by a reversed gradient, Sequentials filled by name",
)
class DANN(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature = nn.Sequential()
        self.feature.add_module("f_conv1", nn.Conv2d(3, 4, kernel_size=3))
        self.feature.add_module("f_bn1", nn.BatchNorm2d(4))
        self.feature.add_module("f_pool1", nn.MaxPool2d(2))
        self.feature.add_module("f_relu1", nn.ReLU(True))
        self.feature.add_module("f_conv2", nn.Conv2d(4, 4, kernel_size=3))
        self.feature.add_module("f_drop1", nn.Dropout2d())
        self.feature.add_module("f_relu2", nn.ReLU(True))
        self.class_classifier = nn.Sequential()
        self.class_classifier.add_module("c_fc1", nn.Linear(4 * 5 * 5, 8))
        self.class_classifier.add_module("c_bn1", nn.BatchNorm1d(8))
        self.class_classifier.add_module("c_relu1", nn.ReLU(True))
        self.class_classifier.add_module("c_fc3", nn.Linear(8, 10))
        self.domain_classifier = nn.Sequential(
            OrderedDict([("d_fc1", nn.Linear(4 * 5 * 5, 8)), ("d_relu1", nn.ReLU(True)), ("d_fc2", nn.Linear(8, 2))])
        )

    def forward(self, input_data, alpha=1.0):
        input_data = input_data.expand(input_data.data.shape[0], 3, 16, 16)
        feature = self.feature(input_data)
        feature = feature.view(-1, 4 * 5 * 5)
        reverse_feature = GradReverse.apply(feature, alpha)
        return self.class_classifier(feature), self.domain_classifier(reverse_feature)


@right(
    "student.stem student.blocks.0-1 student_fc|connector", "teacher.stem teacher.blocks.0-2 teacher_fc",
    name="distillation of logits and features from a larger network",
)  # fmt: skip
class Distiller(LightningModule):
    def __init__(self, classes=5, temperature=4.0):
        super().__init__()
        self.teacher, self.teacher_fc = SmallConvNet(8, 3), nn.Linear(8, classes)
        self.student, self.student_fc = SmallConvNet(4, 2), nn.Linear(4, classes)
        self.connector, self.t = nn.Linear(4, 8), temperature
        for module in (self.teacher, self.teacher_fc):
            module.eval().requires_grad_(False)

    def forward(self, x):
        return self.student_fc(self.student(x)["features"])

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.teacher.eval()
        with torch.no_grad():
            t_feat = self.teacher(x)["features"]
            t_logits = self.teacher_fc(t_feat)
        s_feat = self.student(x)["features"]
        s_logits = self.student_fc(s_feat)
        kd = F.kl_div(F.log_softmax(s_logits / self.t, 1), F.softmax(t_logits / self.t, 1), reduction="batchmean")
        hint = F.mse_loss(F.normalize(self.connector(s_feat)), F.normalize(t_feat))
        loss = F.cross_entropy(s_logits, y) + self.t**2 * kd + hint
        self.log_dict({"loss": loss, "kd": kd, "hint": hint})
        return loss

    def configure_optimizers(self):
        trained = [*self.student.parameters(), *self.student_fc.parameters(), *self.connector.parameters()]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


# ---------------------------------------------------------------------- physics and weather
class SpectralConv2d(nn.Module):
    def __init__(self, width, modes):
        super().__init__()
        self.modes = modes
        self.weights1 = nn.Parameter(torch.rand(width, width, modes, modes, dtype=torch.cfloat) / width**2)
        self.weights2 = nn.Parameter(torch.rand(width, width, modes, modes, dtype=torch.cfloat) / width**2)

    def forward(self, x):
        m, x_ft = self.modes, torch.fft.rfft2(x)
        out_ft = torch.zeros(*x_ft.shape, dtype=torch.cfloat, device=x.device)
        out_ft[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", x_ft[:, :, :m, :m], self.weights1)
        out_ft[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", x_ft[:, :, -m:, :m], self.weights2)
        return torch.fft.irfft2(out_ft, s=(x.size(-2), x.size(-1)))


@right("fc0 conv0-3|w0-3 fc1|fc2", name="Fourier neural operator: numbered attributes, complex weights")
class FNO2d(nn.Module):
    def __init__(self, modes=2, width=6):
        super().__init__()
        self.padding = 2
        self.fc0 = nn.Linear(3, width)
        self.conv0, self.conv1 = SpectralConv2d(width, modes), SpectralConv2d(width, modes)
        self.conv2, self.conv3 = SpectralConv2d(width, modes), SpectralConv2d(width, modes)
        self.w0, self.w1 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.w2, self.w3 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.fc1, self.fc2 = nn.Linear(width, 8), nn.Linear(8, 1)

    def get_grid(self, shape, device):
        b, nx, ny = shape[0], shape[1], shape[2]
        gridx = torch.linspace(0, 1, nx).reshape(1, nx, 1, 1).repeat([b, 1, ny, 1])
        gridy = torch.linspace(0, 1, ny).reshape(1, 1, ny, 1).repeat([b, nx, 1, 1])
        return torch.cat((gridx, gridy), dim=-1).to(device)

    def forward(self, x):
        grid = self.get_grid(x.shape, x.device)
        x = self.fc0(torch.cat((x, grid), dim=-1)).permute(0, 3, 1, 2)
        x = F.pad(x, [0, self.padding, 0, self.padding])
        x1 = self.conv0(x)
        x2 = self.w0(x)
        x = F.gelu(x1 + x2)
        x1 = self.conv1(x)
        x2 = self.w1(x)
        x = F.gelu(x1 + x2)
        x1 = self.conv2(x)
        x2 = self.w2(x)
        x = F.gelu(x1 + x2)
        x1 = self.conv3(x)
        x2 = self.w3(x)
        x = x1 + x2
        x = x[..., : -self.padding, : -self.padding].permute(0, 2, 3, 1)
        return self.fc2(F.gelu(self.fc1(x)))


class SineLayer(nn.Module):
    def __init__(self, in_features, out_features, is_first=False, omega_0=30):
        super().__init__()
        self.omega_0 = omega_0
        self.linear = nn.Linear(in_features, out_features)
        with torch.no_grad():
            bound = 1 / in_features if is_first else math.sqrt(6 / in_features) / omega_0
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, x):
        return torch.sin(self.omega_0 * self.linear(x))


@right("net.0-2 net.3", name="waves by a sine network: the loss is of derivatives")
class SirenPINN(LightningModule):
    def __init__(self, hidden=8, hidden_layers=2, c=1.0):
        super().__init__()
        self.c = c
        self.net = []
        self.net.append(SineLayer(2, hidden, is_first=True))
        for _ in range(hidden_layers):
            self.net.append(SineLayer(hidden, hidden))
        self.net.append(nn.Linear(hidden, 1))
        self.net = nn.Sequential(*self.net)

    def forward(self, coords):
        coords = coords.clone().detach().requires_grad_(True)
        return self.net(coords), coords

    @staticmethod
    def gradient(y, x):
        return torch.autograd.grad(y, x, grad_outputs=torch.ones_like(y), create_graph=True)[0]

    def training_step(self, batch, batch_idx):
        u, coords = self(batch["interior"])
        du = self.gradient(u, coords)
        u_tt = self.gradient(du[:, :1], coords)[:, :1]
        u_xx = self.gradient(du[:, 1:], coords)[:, 1:]
        boundary, _ = self(batch["boundary"])
        loss = (u_tt - self.c**2 * u_xx).pow(2).mean() * 1e-4 + (boundary - batch["value"]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


@right(
    "token_embeds|var_embed|var_query|var_agg|pos_embed|lead_time_embed blocks.0-2 norm|head",
    name="weather: a patch embedding per variable, gathered by attention",
)
class ClimateViT(nn.Module):
    def __init__(self, default_vars=("t2m", "u10", "v10", "z500"), img_size=(8, 16), patch=4, d=8, depth=3):
        super().__init__()
        self.var_map = {v: i for i, v in enumerate(default_vars)}
        self.patch, self.img_size = patch, img_size
        n = (img_size[0] // patch) * (img_size[1] // patch)
        self.token_embeds = nn.ModuleList([nn.Conv2d(1, d, patch, patch) for _ in default_vars])
        self.var_embed = nn.Parameter(torch.zeros(1, len(default_vars), d))
        self.var_query = nn.Parameter(torch.zeros(1, 1, d))
        self.var_agg = nn.MultiheadAttention(d, 2, batch_first=True)
        self.pos_embed, self.lead_time_embed = nn.Parameter(torch.zeros(1, n, d)), nn.Linear(1, d)
        self.blocks = nn.ModuleList([TowerBlock(d) for _ in range(depth)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.ModuleList()
        for _ in range(2):
            self.head.append(nn.Linear(d, d))
            self.head.append(nn.GELU())
        self.head.append(nn.Linear(d, len(default_vars) * patch**2))
        self.head = nn.Sequential(*self.head)

    def aggregate_variables(self, x):
        b, _, n, _ = x.shape
        x = torch.einsum("bvld->blvd", x).flatten(0, 1)
        var_query = self.var_query.repeat_interleave(x.shape[0], dim=0)
        x, _ = self.var_agg(var_query, x, x)
        return x.squeeze(1).unflatten(0, (b, n))

    def unpatchify(self, x):
        h, w, p = self.img_size[0] // self.patch, self.img_size[1] // self.patch, self.patch
        x = x.reshape(x.shape[0], h, w, p, p, -1)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], -1, h * p, w * p)

    def forward(self, x, lead_times, variables, y=None):
        embeds = []
        var_ids = [self.var_map[v] for v in variables]
        for i, index in enumerate(var_ids):
            embeds.append(self.token_embeds[index](x[:, i : i + 1]).flatten(2).transpose(1, 2))
        x = torch.stack(embeds, dim=1) + self.var_embed[:, var_ids].unsqueeze(2)
        x = self.aggregate_variables(x) + self.pos_embed
        x = x + self.lead_time_embed(lead_times.unsqueeze(-1)).unsqueeze(1)
        for blk in self.blocks:
            x = blk(x)
        preds = self.unpatchify(self.head(self.norm(x)))[:, var_ids]
        loss = None if y is None else ((preds - y) ** 2).mean()
        return loss, preds


# ---------------------------------------------------------------------- several kinds of data
class TowerBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x, mask=None):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


class VisionTower(nn.Module):
    def __init__(self, d=8, n=2):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.zeros(1, 1, d))
        self.blocks, self.norm = nn.ModuleList([TowerBlock(d) for _ in range(n)]), nn.LayerNorm(d)

    def forward(self, pixels):
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@dataclass
class VLMOutput:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


@right(
    "vision_tower.patch|vision_tower.cls vision_tower.blocks.0 vision_tower.blocks.1|vision_tower.norm "
    "mm_projector|embed_tokens layers.0-2 norm|lm_head",
    name="chat about pictures: features are put where the image tokens stand",
)
class PictureChat(nn.Module):
    def __init__(self, d=8, vocab=20, image_token=19):
        super().__init__()
        self.image_token = image_token
        self.embed_tokens = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList([TowerBlock(d) for _ in range(3)])
        self.norm, self.lm_head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)
        self.vision_tower = VisionTower(d)
        self.mm_projector = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def encode_images(self, pixel_values):
        return self.mm_projector(self.vision_tower(pixel_values)[:, 1:])

    def forward(self, input_ids, pixel_values=None, labels=None):
        embeds = self.embed_tokens(input_ids)
        if pixel_values is not None:
            features = self.encode_images(pixel_values)
            where = (input_ids == self.image_token).unsqueeze(-1).expand_as(embeds)
            embeds = embeds.masked_scatter(where, features.to(embeds.dtype))
        n = embeds.shape[1]
        mask = torch.full((n, n), float("-inf"), device=embeds.device).triu(1)
        for layer in self.layers:
            embeds = layer(embeds, mask)
        logits = self.lm_head(self.norm(embeds))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return VLMOutput(logits=logits, loss=loss)


class GatedCrossAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([0.0]))
        self.ff = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, media):
        x = x + self.attn(self.norm(x), media, media)[0] * self.attn_gate.tanh()
        return x + self.ff(x) * self.ff_gate.tanh()


@right(
    "wte gated_xattn.0-2|blocks.0-2 ln_f|lm_head",
    name="Flamingo: gated attention to media before every block",
)
class Flamingo(nn.Module):
    def __init__(self, d=8, vocab=20, n=3):
        super().__init__()
        self.vision = VisionTower(d)
        self.blocks = nn.ModuleList([TowerBlock(d) for _ in range(n)])
        self.gated_xattn = nn.ModuleList([GatedCrossAttention(d) for _ in range(n)])
        self.wte, self.ln_f, self.lm_head = nn.Embedding(vocab, d), nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)
        for module in (self.wte, self.blocks, self.ln_f, self.lm_head):
            module.requires_grad_(False)

    def forward(self, text_tokens, images):
        b, m = images.shape[:2]
        media = self.vision(images.flatten(0, 1)).unflatten(0, (b, m)).flatten(1, 2)
        x = self.wte(text_tokens)
        n = x.shape[1]
        mask = torch.full((n, n), float("-inf"), device=x.device).triu(1)
        for xattn, block in zip(self.gated_xattn, self.blocks, strict=True):
            x = xattn(x, media)
            x = block(x, mask)
        return self.lm_head(self.ln_f(x))


@right(
    "video.proj|video.pos video.layers.0 video.layers.1|video.norm fusion.0-1 heads",
    "audio.proj|audio.pos audio.layers.0|audio.norm fusion.0-1 heads",
    name="emotion from sight and sound: two encoders, fusion, tasks weighed by uncertainty",
)
class AudioVisual(LightningModule):
    class Encoder(nn.Module):
        def __init__(self, inp, d, n):
            super().__init__()
            self.norm, self.pos = nn.LayerNorm(d), nn.Parameter(torch.zeros(1, 16, d))
            self.layers, self.proj = nn.ModuleList([TowerBlock(d) for _ in range(n)]), nn.Linear(inp, d)

        def forward(self, x):
            x = self.proj(x) + self.pos[:, : x.size(1)]
            for layer in self.layers:
                x = layer(x)
            return self.norm(x)

    def __init__(self, d=8, tasks=None):
        super().__init__()
        self.tasks = tasks or {"emotion": 4, "valence": 1}
        self.video, self.audio = self.Encoder(6, d, 2), self.Encoder(5, d, 1)
        self.fusion = nn.ModuleList([TowerBlock(d), TowerBlock(d)])
        self.heads = nn.ModuleDict({name: nn.Linear(d, n) for name, n in self.tasks.items()})
        self.log_vars = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.tasks})

    def forward(self, video, audio):
        x = torch.cat([self.video(video), self.audio(audio)], dim=1)
        for layer in self.fusion:
            x = layer(x)
        x = x.mean(dim=1)
        return {name: head(x) for name, head in self.heads.items()}

    def training_step(self, batch, batch_idx):
        out = self(batch["video"], batch["audio"])
        losses = {
            "emotion": F.cross_entropy(out["emotion"], batch["emotion"]),
            "valence": F.mse_loss(out["valence"].squeeze(-1), batch["valence"]),
        }
        return sum(torch.exp(-self.log_vars[k]) * loss + self.log_vars[k] for k, loss in losses.items())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
