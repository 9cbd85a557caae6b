"""Second sample, text and sound: as somebody else would write them, their right order written before the first run.

A chain states the exact distance from the top. ``rising`` states an order: two names there are a strict "lower than";
where it is a matter of taste how far apart two parts are, more names stand in one line. What counts, for all three
files of the sample: *right* is no place wrong and no warning; *a warned guess* is the one warning with the table,
right or not; *silently wrong* is any wrong place without it.
"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrize

from tests.support.nets.collection import Layer, Tower, layers, lin, right


class HighwayNetwork(nn.Module):
    def __init__(self, size: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.nonlinear = nn.ModuleList([nn.Linear(size, size) for _ in range(num_layers)])
        self.linear = nn.ModuleList([nn.Linear(size, size) for _ in range(num_layers)])
        self.gate = nn.ModuleList([nn.Linear(size, size) for _ in range(num_layers)])

    def forward(self, x: Any) -> Any:
        for layer in range(self.num_layers):
            gate = torch.sigmoid(self.gate[layer](x))
            x = gate * torch.relu(self.nonlinear[layer](x)) + (1 - gate) * self.linear[layer](x)
        return x


@right(
    "highway.gate.0|highway.linear.0|highway.nonlinear.0 highway.gate.1|highway.linear.1|highway.nonlinear.1 "
    "lstm.weight_ih_l0 lstm.weight_ih_l1 out",
    rising=("char_embed conv3 highway.gate.0", "conv1 highway.gate.0", "char_embed highway.gate.0"),
    name="characters, highways, an LSTM",
)
class CharHighway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.char_embed = nn.Embedding(20, 4, padding_idx=0)
        for width in (1, 2, 3):
            setattr(self, f"conv{width}", nn.Conv1d(4, 4, width))
        self.highway = HighwayNetwork(12, 2)
        self.lstm = nn.LSTM(12, 8, 2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(8, 30)

    def forward(self, chars: Any, hidden: Any = None) -> Any:
        n, length, letters = chars.size()
        x = self.char_embed(chars.view(n * length, letters)).transpose(1, 2)
        pooled = [torch.tanh(getattr(self, f"conv{w}")(x)).max(dim=-1)[0] for w in (1, 2, 3)]
        x = self.highway(torch.cat(pooled, dim=1)).view(n, length, -1)
        x, hidden = self.lstm(x, hidden)
        return self.out(x), hidden


class EncoderBlock(nn.Module):
    def __init__(self, conv_num: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(4, 4, 3, padding=1) for _ in range(conv_num)])
        self.normb, self.norme = nn.LayerNorm(4), nn.LayerNorm(4)
        self.norms = nn.ModuleList([nn.LayerNorm(4) for _ in range(conv_num)])
        self.att = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = lin()

    def forward(self, x: Any, mask: Any) -> Any:
        out, res = x, x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            res = out
            out = F.relu(conv(norm(out).transpose(1, 2)).transpose(1, 2)) + res
        res = out
        out = self.normb(out)
        out = self.att(out, out, out, key_padding_mask=mask)[0] + res
        return F.relu(self.fc(self.norme(out))) + out


@right(
    "word_emb|resizer|emb_enc model_enc_blks.0-2 out_begin|out_end",
    rising=("emb_enc cq_att cq_resizer model_enc_blks.0",),
    name="one stack of encoder blocks used thrice over question and context",
)
class QaNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_emb = nn.Embedding(30, 6)
        self.resizer = nn.Linear(6, 4)
        self.emb_enc = EncoderBlock(4)
        self.cq_att = nn.Linear(12, 1, bias=False)
        self.cq_resizer = nn.Linear(16, 4)
        self.model_enc_blks = nn.ModuleList([EncoderBlock(2) for _ in range(3)])
        self.out_begin, self.out_end = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, context: Any, question: Any) -> Any:
        cmask, qmask = context == 0, question == 0
        c = self.emb_enc(self.resizer(self.word_emb(context)), cmask)
        q = self.emb_enc(self.resizer(self.word_emb(question)), qmask)
        ct, qt = c.unsqueeze(2).expand(-1, -1, q.size(1), -1), q.unsqueeze(1).expand(-1, c.size(1), -1, -1)
        s = self.cq_att(torch.cat([ct, qt, ct * qt], dim=3)).squeeze(3)
        a = torch.bmm(F.softmax(s.masked_fill(qmask.unsqueeze(1), -1e30), dim=2), q)
        b = torch.bmm(torch.bmm(F.softmax(s, dim=2), F.softmax(s, dim=1).transpose(1, 2)), c)
        m = self.cq_resizer(torch.cat([c, a, c * a, c * b], dim=2))
        outs = []
        for _ in range(3):
            for blk in self.model_enc_blks:
                m = blk(m, cmask)
            outs.append(m)
        m1, m2, m3 = outs
        p1 = self.out_begin(torch.cat([m1, m2], dim=2)).squeeze(2)
        p2 = self.out_end(torch.cat([m1, m3], dim=2)).squeeze(2)
        return p1.masked_fill(cmask, -1e30), p2.masked_fill(cmask, -1e30)


class PackedEncoder(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._encoder = nn.LSTM(size, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Any, lengths: Any) -> Any:
        ordered, index = lengths.sort(descending=True)
        packed = nn.utils.rnn.pack_padded_sequence(x.index_select(0, index), ordered.cpu(), batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self._encoder(packed)[0], batch_first=True)
        return out.index_select(0, index.argsort())


@right("_word_embedding _encoding _projection _composition _classification", name="two sentences, aligned and composed")
class Esim(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._word_embedding = nn.Embedding(30, 4)
        self._encoding = PackedEncoder(4)
        self._projection = nn.Sequential(nn.Linear(32, 4), nn.ReLU())
        self._composition = PackedEncoder(4)
        self._classification = nn.Sequential(nn.Dropout(), nn.Linear(32, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 3))

    def forward(self, premises: Any, plens: Any, hypotheses: Any, hlens: Any) -> Any:
        p = self._encoding(self._word_embedding(premises), plens)
        h = self._encoding(self._word_embedding(hypotheses), hlens)
        scores = p.bmm(h.transpose(2, 1))
        pa, ha = scores.softmax(-1).bmm(h), scores.transpose(1, 2).softmax(-1).bmm(p)
        p = self._composition(self._projection(torch.cat([p, pa, p - pa, p * pa], -1)), plens)
        h = self._composition(self._projection(torch.cat([h, ha, h - ha, h * ha], -1)), hlens)
        v = torch.cat([p.mean(1), p.max(1).values, h.mean(1), h.max(1).values], dim=1)
        logits = self._classification(v)
        return logits, logits.softmax(-1)


class AdaptiveEmbedding(nn.Module):
    def __init__(self, cutoffs: list[int]) -> None:
        super().__init__()
        self.cutoff_ends = [0, *cutoffs]
        self.emb_layers, self.emb_projs = nn.ModuleList(), nn.ParameterList()
        for i in range(len(cutoffs)):
            left, right_ = self.cutoff_ends[i], self.cutoff_ends[i + 1]
            self.emb_layers.append(nn.Embedding(right_ - left, 4 // (i + 1)))
            self.emb_projs.append(nn.Parameter(torch.zeros(4, 4 // (i + 1))))

    def forward(self, inp: Any) -> Any:
        flat = inp.view(-1)
        emb = torch.zeros([flat.size(0), 4])
        for i in range(len(self.emb_layers)):
            left, right_ = self.cutoff_ends[i], self.cutoff_ends[i + 1]
            mask = (flat >= left) & (flat < right_)
            index = mask.nonzero().squeeze()
            if index.numel() == 0:
                continue
            found = self.emb_layers[i](flat.index_select(0, index) - left)
            emb.index_copy_(0, index, F.linear(found, self.emb_projs[i]))
        return emb.view(*inp.size(), 4) * 2


class RelLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_net, self.r_net, self.o_net = nn.Linear(4, 12, bias=False), lin(), lin()
        self.layer_norm, self.ff = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, w: Any, r: Any, r_w_bias: Any, r_r_bias: Any, mems: Any = None) -> Any:
        cat = w if mems is None else torch.cat([mems, w], 0)
        q, k, v = torch.chunk(self.qkv_net(self.layer_norm(cat)), 3, dim=-1)
        q, rk = q[-w.size(0) :], self.r_net(r)
        score = torch.einsum("ibd,jbd->ijb", q + r_w_bias, k) + torch.einsum("ibd,jd->ijb", q + r_r_bias, rk)
        w = w + self.o_net(torch.einsum("ijb,jbd->ibd", score.softmax(1), v))
        return w + self.ff(w)


@right(
    "word_emb layers.0-2 out_layer",
    rising=("r_w_bias layers.1", "r_r_bias layers.1", "word_emb layers.0"),  # one bias for all layers: with the lowest
    name="Transformer-XL: memory, biases of all layers, adaptive embeddings",
)
class MemTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_emb = AdaptiveEmbedding([10, 20, 30])
        self.drop, self.mem_len = nn.Dropout(0.1), 3
        self.layers = nn.ModuleList()
        for _ in range(3):
            self.layers.append(RelLayer())
        self.register_buffer("inv_freq", 1 / (10000 ** (torch.arange(0.0, 4, 2.0) / 4)))
        self.r_w_bias, self.r_r_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.out_layer = nn.Linear(4, 30)

    def init_mems(self) -> list[Any]:
        param = next(self.parameters())
        return [torch.empty(0, dtype=param.dtype, device=param.device) for _ in range(4)]

    def forward(self, data: Any, target: Any, *mems: Any) -> Any:
        if not mems:
            mems = tuple(self.init_mems())
        emb = self.word_emb(data)
        klen = (mems[0].size(0) if mems[0].numel() else 0) + data.size(0)
        pos = torch.ger(torch.arange(klen - 1, -1, -1.0), self.inv_freq)
        pos = self.drop(torch.cat([pos.sin(), pos.cos()], dim=-1))
        core = self.drop(emb)
        hids = [core]
        for i, layer in enumerate(self.layers):
            mem = mems[i] if mems[i].numel() else None
            core = layer(core, pos, self.r_w_bias, self.r_r_bias, mems=mem)
            hids.append(core)
        with torch.no_grad():
            new = [torch.cat([m, h], 0)[-self.mem_len :].detach() for m, h in zip(mems, hids, strict=True)]
        logits = self.out_layer(self.drop(core))
        return [F.cross_entropy(logits.view(-1, 30), target.view(-1)), *new]


@right(
    rising=("embedding_proj enc", "enc out", "p out"),
    name="one layer until it halts (adaptive computation time)",
)
class Universal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding_proj = nn.Linear(6, 4, bias=False)
        self.enc = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.p = nn.Linear(4, 1)
        self.out = nn.Linear(4, 10)
        self.max_hop, self.threshold = 6, 0.9

    def forward(self, inputs: Any) -> Any:
        state = self.embedding_proj(inputs)
        halting = torch.zeros(state.shape[0], state.shape[1])
        remainders, updates, previous, step = torch.zeros_like(halting), torch.zeros_like(halting), None, 0
        while ((halting < self.threshold) & (updates < self.max_hop)).byte().any():
            p = torch.sigmoid(self.p(state)).squeeze(-1)
            running = (halting < 1.0).float()
            halted = (halting + p * running > self.threshold).float() * running
            running = (halting + p * running <= self.threshold).float() * running
            halting = halting + p * running
            remainders = remainders + halted * (1 - halting)
            halting = halting + halted * remainders
            updates = updates + running + halted
            weights = p * running + halted * remainders
            state = self.enc(state)
            new = state * weights.unsqueeze(-1)
            previous = new if previous is None else new + previous * (1 - weights.unsqueeze(-1))
            step += 1
        return self.out(previous), (remainders, updates)


class Retention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))

    def forward(self, x: Any) -> Any:
        q, k, v = x @ self.w_q, x @ self.w_k, x @ self.w_v
        n = torch.arange(x.shape[1]).unsqueeze(1)
        decay = (0.9 ** (n - n.T).float()) * (n >= n.T).float()
        return (q @ k.permute(0, 2, 1) * decay.unsqueeze(0)) @ v


class RetNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.retentions = nn.ModuleList([Retention() for _ in range(depth)])
        self.ffns = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(depth)])
        self.layer_norms_1 = nn.ModuleList([nn.LayerNorm(4) for _ in range(depth)])
        self.layer_norms_2 = nn.ModuleList([nn.LayerNorm(4) for _ in range(depth)])

    def forward(self, x: Any) -> Any:
        for i in range(self.depth):
            y = self.retentions[i](self.layer_norms_1[i](x)) + x
            x = self.ffns[i](self.layer_norms_2[i](y)) + y
        return x


_RETAINED = " ".join(
    "|".join(f"1.{part}.{i}" for part in ("retentions", "ffns", "layer_norms_1", "layer_norms_2")) for i in range(3)
)


@right(f"0 {_RETAINED} 2", name="retention: four lists in a module of a Sequential")
def retentive() -> nn.Module:
    return nn.Sequential(nn.Embedding(30, 4), RetNet(3), nn.Linear(4, 30))


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.freq = nn.Parameter(10 * torch.ones(1, 4))

    def forward(self, x: Any) -> Any:
        return torch.sin(self.freq * x)


class HyenaOperator(nn.Module):
    def __init__(self, order: int = 2) -> None:
        super().__init__()
        self.order = order
        self.in_proj, self.out_proj = nn.Linear(4, 4 * (order + 1)), lin()
        self.short_filter = nn.Conv1d(4 * (order + 1), 4 * (order + 1), 3, groups=4 * (order + 1), padding=2)
        act = Sine()
        self.implicit_filter = nn.Sequential(nn.Linear(3, 4), act)
        for _ in range(2):
            self.implicit_filter.append(lin())
            self.implicit_filter.append(act)
        self.implicit_filter.append(nn.Linear(4, 4 * (order - 1), bias=False))
        self.bias = nn.Parameter(torch.randn(4 * (order - 1)))

    def forward(self, u: Any) -> Any:
        length = u.size(-2)
        uc = self.short_filter(self.in_proj(u).transpose(1, 2))[..., :length]
        *x, v = uc.split(4, dim=1)
        t = torch.linspace(0, 1, length)[None, :, None]
        k = self.implicit_filter(torch.cat([t, torch.cos(t), torch.sin(t)], -1))
        k = k.view(length, self.order - 1, 4).permute(1, 2, 0)
        for o, xi in enumerate(reversed(x[1:])):
            f = torch.fft.rfft(k[o], n=2 * length) / (2 * length)
            s = torch.fft.rfft(v * xi, n=2 * length)
            v = torch.fft.irfft(s * f, n=2 * length, norm="forward")[..., :length] + v * self.bias[:4, None]
        return self.out_proj((v * x[0]).transpose(1, 2))


class HyenaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.norm1, self.norm2 = HyenaOperator(), nn.LayerNorm(4), nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, hidden: Any, residual: Any = None) -> Any:
        residual = hidden + residual if residual is not None else hidden
        hidden = self.mixer(self.norm1(residual))
        residual = hidden + residual
        return self.mlp(self.norm2(residual)), residual


@right("embeddings layers.0-2 ln_f", name="long convolutions with filters made by a network, head tied")
class HyenaLm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(30, 4)
        self.layers = nn.ModuleList([HyenaBlock() for _ in range(3)])
        self.ln_f = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 30, bias=False)
        self.lm_head.weight = self.embeddings.weight

    def forward(self, input_ids: Any, position_ids: Any = None) -> Any:
        hidden, residual = self.embeddings(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        hidden = self.ln_f(hidden + residual)
        return SimpleNamespace(logits=self.lm_head(hidden))


class SumEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True, bidirectional=True)
        self.w_h = nn.Linear(8, 8, bias=False)

    def forward(self, x: Any) -> Any:
        outputs, hidden = self.lstm(self.embedding(x))
        return outputs, self.w_h(outputs.reshape(-1, 8)), hidden


class ReduceState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce_h, self.reduce_c = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, hidden: Any) -> Any:
        h, c = hidden
        h, c = h.transpose(0, 1).reshape(-1, 8), c.transpose(0, 1).reshape(-1, 8)
        return F.relu(self.reduce_h(h)).unsqueeze(0), F.relu(self.reduce_c(c)).unsqueeze(0)


class SumDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode_proj, self.v = nn.Linear(8, 8), nn.Linear(8, 1, bias=False)
        self.embedding = nn.Embedding(30, 4)
        self.x_context = nn.Linear(12, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.p_gen_linear = nn.Linear(20, 1)
        self.out1, self.out2 = nn.Linear(12, 4), nn.Linear(4, 30)

    def forward(self, y: Any, state: Any, outputs: Any, feature: Any, c: Any, ids: Any) -> Any:
        x = self.x_context(torch.cat((c, self.embedding(y)), 1))
        out, state = self.lstm(x.unsqueeze(1), state)
        s = torch.cat((state[0].view(-1, 4), state[1].view(-1, 4)), 1)
        e = torch.tanh(feature + self.decode_proj(s).unsqueeze(1).expand_as(outputs).reshape(-1, 8))
        att = F.softmax(self.v(e).view(-1, outputs.size(1)), dim=1)
        c = torch.bmm(att.unsqueeze(1), outputs).view(-1, 8)
        p_gen = torch.sigmoid(self.p_gen_linear(torch.cat((c, s, x), 1)))
        vocab = F.softmax(self.out2(self.out1(torch.cat((out.view(-1, 4), c), 1))), dim=1)
        return (p_gen * vocab).scatter_add(1, ids, (1 - p_gen) * att), state, c


@right(
    rising=(
        "encoder.embedding encoder.lstm", "encoder.lstm decoder.out2", "decoder.embedding decoder.lstm",
        "decoder.x_context decoder.lstm", "decoder.lstm decoder.out2", "reduce_state decoder.out2",
    ),
    name="summaries: pointer and generator, three networks in a step",
)  # fmt: skip
class PointerGenerator(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.reduce_state = SumEncoder(), SumDecoder(), ReduceState()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        enc_batch, dec_batch, target = batch
        outputs, feature, hidden = self.encoder(enc_batch)
        s_t = self.reduce_state(hidden)
        c_t = torch.zeros(enc_batch.size(0), 8)
        losses = []
        for di in range(min(dec_batch.size(1), 5)):
            final, s_t, c_t = self.decoder(dec_batch[:, di], s_t, outputs, feature, c_t, enc_batch)
            gold = torch.gather(final, 1, target[:, di].unsqueeze(1)).squeeze()
            losses.append(-torch.log(gold + 1e-12))
        loss = torch.stack(losses, 1).sum(1).mean()
        self.log("train_loss", loss)
        return loss


class ConvEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embedding, self.pos_embedding = nn.Embedding(30, 4), nn.Embedding(50, 4)
        self.emb2hid, self.hid2emb = nn.Linear(4, 6), nn.Linear(6, 4)
        self.convs = nn.ModuleList([nn.Conv1d(6, 12, 3, padding=1) for _ in range(3)])

    def forward(self, src: Any) -> Any:
        pos = torch.arange(0, src.shape[1]).unsqueeze(0).repeat(src.shape[0], 1)
        embedded = self.tok_embedding(src) + self.pos_embedding(pos)
        x = self.emb2hid(embedded).permute(0, 2, 1)
        for _i, conv in enumerate(self.convs):
            x = (F.glu(conv(F.dropout(x, 0.2)), dim=1) + x) * math.sqrt(0.5)
        conved = self.hid2emb(x.permute(0, 2, 1))
        return conved, (conved + embedded) * math.sqrt(0.5)


class ConvDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embedding, self.pos_embedding = nn.Embedding(30, 4), nn.Embedding(50, 4)
        self.emb2hid, self.hid2emb = nn.Linear(4, 6), nn.Linear(6, 4)
        self.attn_hid2emb, self.attn_emb2hid = nn.Linear(6, 4), nn.Linear(4, 6)
        self.fc_out = nn.Linear(4, 30)
        self.convs = nn.ModuleList([nn.Conv1d(6, 12, 3) for _ in range(3)])

    def attend(self, embedded: Any, conved: Any, enc_conved: Any, enc_combined: Any) -> Any:
        combined = (self.attn_hid2emb(conved.permute(0, 2, 1)) + embedded) * math.sqrt(0.5)
        attention = F.softmax(torch.matmul(combined, enc_conved.permute(0, 2, 1)), dim=2)
        attended = self.attn_emb2hid(torch.matmul(attention, enc_combined))
        return attention, (conved + attended.permute(0, 2, 1)) * math.sqrt(0.5)

    def forward(self, trg: Any, enc_conved: Any, enc_combined: Any) -> Any:
        pos = torch.arange(0, trg.shape[1]).unsqueeze(0).repeat(trg.shape[0], 1)
        embedded = self.tok_embedding(trg) + self.pos_embedding(pos)
        x = self.emb2hid(embedded).permute(0, 2, 1)
        for conv in self.convs:
            padding = torch.zeros(x.shape[0], 6, 2)
            conved = F.glu(conv(torch.cat((padding, F.dropout(x, 0.2)), dim=2)), dim=1)
            attention, conved = self.attend(embedded, conved, enc_conved, enc_combined)
            x = (conved + x) * math.sqrt(0.5)
        return self.fc_out(self.hid2emb(x.permute(0, 2, 1))), attention


@right(
    rising=(
        "encoder.tok_embedding encoder.convs.0", "encoder.convs.0 encoder.convs.1", "encoder.convs.1 encoder.convs.2",
        "encoder.convs.2 decoder.fc_out", "decoder.tok_embedding decoder.convs.0", "decoder.convs.0 decoder.convs.1",
        "decoder.convs.1 decoder.convs.2", "decoder.convs.2 decoder.fc_out", "decoder.attn_emb2hid decoder.fc_out",
        "encoder.emb2hid encoder.convs.1", "decoder.emb2hid decoder.convs.1",
    ),
    name="convolutional sequence to sequence, attention in every layer",
)  # fmt: skip
class ConvSeq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = ConvEncoder(), ConvDecoder()

    def forward(self, src: Any, trg: Any) -> Any:
        encoder_conved, encoder_combined = self.encoder(src)
        return self.decoder(trg, encoder_conved, encoder_combined)


class PyramidLayer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.blstm = nn.LSTM(2 * size, 2, 1, bidirectional=True, batch_first=True)

    def forward(self, x: Any) -> Any:
        x = x.contiguous().view(x.size(0), x.size(1) // 2, x.size(2) * 2)
        return self.blstm(x)


class Listener(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.listener_layer = count
        self.p_layer0 = PyramidLayer(4)
        for i in range(1, count):
            setattr(self, "p_layer" + str(i), PyramidLayer(4))

    def forward(self, x: Any) -> Any:
        output, _ = self.p_layer0(x)
        for i in range(1, self.listener_layer):
            output, _ = getattr(self, "p_layer" + str(i))(output)
        return output


class Speller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn_layer = nn.LSTM(34, 4, 2, batch_first=True)
        self.phi, self.psi = lin(), lin()
        self.character_distribution = nn.Linear(8, 30)

    def step(self, word: Any, state: Any, feature: Any) -> Any:
        out, state = self.rnn_layer(word, state)
        energy = torch.bmm(self.phi(out), self.psi(feature).transpose(1, 2)).squeeze(1)
        score = F.softmax(energy, dim=-1)
        context = torch.sum(feature * score.unsqueeze(2), dim=1)
        return (
            F.log_softmax(self.character_distribution(torch.cat([out.squeeze(1), context], dim=-1)), -1),
            state,
            context,
        )

    def forward(self, feature: Any, truth: Any = None, rate: float = 0.9) -> Any:
        teacher = random.random() < rate
        word = torch.zeros(feature.size(0), 1, 30)
        word = torch.cat([word, feature[:, 0:1, :]], dim=-1)
        state, predictions = None, []
        steps = truth.size(1) if truth is not None and teacher else 5
        for t in range(steps):
            raw, state, context = self.step(word, state, feature)
            predictions.append(raw)
            char = truth[:, t : t + 1, :].float() if teacher and truth is not None else raw.exp().unsqueeze(1)
            word = torch.cat([char, context.unsqueeze(1)], dim=-1)
        return predictions


@right(
    rising=(
        "listener.p_layer0 listener.p_layer1", "listener.p_layer1 listener.p_layer2",
        "listener.p_layer2 speller.character_distribution",
        "speller.rnn_layer.weight_ih_l0 speller.rnn_layer.weight_ih_l1",
        "speller.rnn_layer.weight_ih_l1 speller.character_distribution", "speller.psi speller.character_distribution",
    ),
    name="listen, attend and spell",
)  # fmt: skip
class ListenAttendSpell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.listener, self.speller = Listener(), Speller()

    def forward(self, batch_data: Any, batch_label: Any, teacher_force_rate: float) -> Any:
        return self.speller(self.listener(batch_data), batch_label, teacher_force_rate)


class ReadHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_read = nn.Linear(4, 6)

    def forward(self, embeddings: Any, w_prev: Any, memory: Any) -> Any:
        o = self.fc_read(embeddings)
        w = F.softmax(F.softplus(o[:, 4:5]) * F.cosine_similarity(memory, o[:, None, :4], dim=-1), dim=1)
        g = torch.sigmoid(o[:, 5:6])
        w = g * w + (1 - g) * w_prev
        return torch.matmul(w.unsqueeze(1), memory).squeeze(1), w


class WriteHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_write = nn.Linear(4, 14)

    def forward(self, embeddings: Any, w_prev: Any, memory: Any) -> Any:
        o = self.fc_write(embeddings)
        w = F.softmax(F.softplus(o[:, 4:5]) * F.cosine_similarity(memory, o[:, None, :4], dim=-1), dim=1)
        g, e, a = torch.sigmoid(o[:, 5:6]), torch.sigmoid(o[:, 6:10]), o[:, 10:14]
        w = g * w + (1 - g) * w_prev
        return memory * (1 - w.unsqueeze(-1) @ e.unsqueeze(1)) + w.unsqueeze(-1) @ a.unsqueeze(1), w


class Turing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.controller = nn.LSTM(8, 4)
        self.heads = nn.ModuleList([])
        self.heads += [ReadHead(), WriteHead()]
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Any, prev_state: Any) -> Any:
        prev_reads, controller_state, heads_states, memory = prev_state
        out, controller_state = self.controller(torch.cat([x, *prev_reads], dim=1).unsqueeze(0), controller_state)
        out = out.squeeze(0)
        reads, states = [], []
        for head, before in zip(self.heads, heads_states, strict=True):
            if isinstance(head, ReadHead):
                r, state = head(out, before, memory)
                reads.append(r)
            else:
                memory, state = head(out, before, memory)
            states.append(state)
        return torch.sigmoid(self.fc(torch.cat([out, *reads], dim=1))), (reads, controller_state, states, memory)


@right(
    rising=("ntm.controller ntm.heads.0 ntm.fc", "ntm.controller ntm.heads.0", "ntm.controller ntm.heads.1",
            "ntm.controller ntm.fc"),
    name="a memory with heads that read and write, state kept between calls",
)  # fmt: skip
class EncapsulatedTuring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ntm = Turing()
        self.register_buffer("mem_bias", torch.rand(5, 4))

    def init_sequence(self, batch_size: int) -> None:
        reads = [torch.zeros(batch_size, 4)]
        lstm = torch.zeros(1, batch_size, 4), torch.zeros(1, batch_size, 4)
        heads = [torch.zeros(batch_size, 5) for _ in self.ntm.heads]
        self.previous_state = reads, lstm, heads, self.mem_bias.repeat(batch_size, 1, 1)

    def forward(self, x: Any = None) -> Any:
        if x is None:
            x = torch.zeros(1, 4)
        o, self.previous_state = self.ntm(x, self.previous_state)
        return o, self.previous_state


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([Layer(), Layer()]))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Any) -> Any:
        for attn, ff in self.layers:
            x = attn(x)
            x = ff(x)
        return self.norm(x)


def get_hourglass(depth: Any) -> nn.Module:
    return Transformer(depth) if isinstance(depth, int) else Hourglass(depth)


class Hourglass(nn.Module):
    def __init__(self, depth: tuple[Any, Any, Any]) -> None:
        super().__init__()
        pre, valley, post = depth
        self.pre_transformer = Transformer(pre)
        self.down = nn.Linear(8, 4)
        self.valley_transformer = get_hourglass(valley)
        self.up = nn.Linear(4, 8)
        self.post_transformer = Transformer(post)

    def forward(self, x: Any) -> Any:
        x = self.pre_transformer(x)
        b, n, d = x.shape
        down = self.down(x.reshape(b, n // 2, 2 * d))
        val = self.valley_transformer(down)
        x = x + self.up(val).reshape(b, n, d)
        return self.post_transformer(x)


@right(
    # two residual blocks of one class are two layers
    "token_emb transformer.pre_transformer.layers.0.0 transformer.pre_transformer.layers.0.1 "
    "transformer.pre_transformer.layers.1.0 transformer.pre_transformer.layers.1.1 "
    "transformer.valley_transformer.pre_transformer.layers.0.0 "
    "transformer.valley_transformer.pre_transformer.layers.0.1 "
    "transformer.valley_transformer.valley_transformer.layers.0.0 "
    "transformer.valley_transformer.valley_transformer.layers.0.1 "
    "transformer.valley_transformer.valley_transformer.layers.1.0 "
    "transformer.valley_transformer.valley_transformer.layers.1.1 "
    "transformer.valley_transformer.valley_transformer.layers.2.0 "
    "transformer.valley_transformer.valley_transformer.layers.2.1 "
    "transformer.valley_transformer.post_transformer.layers.0.0 "
    "transformer.valley_transformer.post_transformer.layers.0.1 "
    "transformer.post_transformer.layers.0.0 transformer.post_transformer.layers.0.1 "
    "transformer.post_transformer.layers.1.0 transformer.post_transformer.layers.1.1 to_logits",
    name="an hourglass within an hourglass",
)
class HourglassLm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(30, 4)
        self.transformer = get_hourglass((2, (1, 3, 1), 2))
        self.to_logits = nn.Linear(4, 30)

    def forward(self, x: Any) -> Any:
        return self.to_logits(self.transformer(self.token_emb(x)))


class Encoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.auto_model = Tower(3)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features.update({"token_embeddings": self.auto_model(features["input_ids"])})
        return features


class Pooled(nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        mask = features["attention_mask"].unsqueeze(-1).float()
        total = torch.sum(features["token_embeddings"] * mask, 1)
        features["sentence_embedding"] = total / torch.clamp(mask.sum(1), min=1e-9)
        return features


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.activation_function = lin(), nn.Tanh()

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        features.update({"sentence_embedding": self.activation_function(self.linear(features["sentence_embedding"]))})
        return features


@right("0.auto_model.embed 0.auto_model.layers.0-2 2", name="a Sequential whose modules pass a dict on")
class SentenceModel(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Encoded(), Pooled(), Projected())

    def forward(self, features: dict[str, Any]) -> Any:
        for module in self:
            features = module(features)
        return features


class LoraParametrization(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(4, 1))

    def forward(self, weight: Any) -> Any:
        return weight + torch.matmul(self.lora_b, self.lora_a)


@right("embed layers.0-2 head", name="low-rank updates as parametrizations of weights")
def parametrized() -> nn.Module:
    class Lm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers, self.head = nn.Embedding(30, 4), layers(3), nn.Linear(4, 30)

        def forward(self, x: Any) -> Any:
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    model = Lm()
    for module in list(model.layers.modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LoraParametrization())
            module.parametrizations["weight"].original.requires_grad_(False)
    return model


class ParallelBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fused, self.out = nn.LayerNorm(4), nn.Linear(4, 12), lin()

    def forward(self, x: Any, attn_mask: Any = None) -> Any:
        q, k, v = self.fused(self.norm(x)).chunk(3, dim=-1)
        sim = torch.einsum("bid,bjd->bij", q, k)
        if attn_mask is not None:
            sim = sim.masked_fill(~attn_mask, -1e9)
        return self.out(torch.einsum("bij,bjd->bid", sim.softmax(-1), v))


class CrossAttend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.to_q, self.to_kv, self.to_out = nn.LayerNorm(4), lin(), nn.Linear(4, 8), lin()

    def forward(self, x: Any, context: Any) -> Any:
        k, v = self.to_kv(context).chunk(2, dim=-1)
        sim = torch.einsum("bid,bjd->bij", self.to_q(self.norm(x)), k)
        return self.to_out(torch.einsum("bij,bjd->bid", sim.softmax(-1), v))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn(x, *args, **kwargs) + x


@right(
    # what lies between a tower and the layers that read it is a layer of its own
    "token_emb unimodal_layers.0-1 img_attn_pool multimodal_layers.0-1 to_logits.0",
    "img_encoder.embed img_encoder.layers.0-1 img_attn_pool multimodal_layers.0-1 to_logits.0",
    name="contrastive captions: text layers below layers that read the image",
)
class CoCa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(30, 4)
        self.text_cls_token = nn.Parameter(torch.randn(4))
        self.img_encoder = Tower()
        self.img_queries = nn.Parameter(torch.randn(4, 4))
        self.img_attn_pool = CrossAttend()
        self.img_attn_pool_norm, self.text_cls_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.Tensor([1.0]))
        self.unimodal_layers, self.multimodal_layers = nn.ModuleList([]), nn.ModuleList([])
        for _ in range(2):
            self.unimodal_layers.append(Residual(ParallelBlock()))
        for _ in range(2):
            self.multimodal_layers.append(nn.ModuleList([Residual(ParallelBlock()), Residual(CrossAttend())]))
        self.to_logits = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 30, bias=False))
        self.to_logits[-1].weight = self.token_emb.weight

    def embed_text(self, text: Any) -> Any:
        cls = self.text_cls_token.expand(text.shape[0], 1, 4)
        x = torch.cat((self.token_emb(text), cls), dim=-2)
        for block in self.unimodal_layers:
            x = block(x)
        return self.text_cls_norm(x[:, -1]), x[:, :-1]

    def embed_image(self, images: Any) -> Any:
        tokens = self.img_encoder(images)
        queries = self.img_queries.expand(tokens.shape[0], 4, 4)
        tokens = self.img_attn_pool_norm(self.img_attn_pool(queries, tokens))
        return tokens[:, 0], tokens[:, 1:]

    def forward(self, text: Any, images: Any, labels: Any = None, return_loss: bool = False) -> Any:
        if return_loss and labels is None:
            text, labels = text[:, :-1], text[:, 1:]
        text_embeds, text_tokens = self.embed_text(text)
        image_embeds, image_tokens = self.embed_image(images)
        for block, cross_attn in self.multimodal_layers:
            text_tokens = block(text_tokens)
            text_tokens = cross_attn(text_tokens, image_tokens)
        logits = self.to_logits(text_tokens)
        if not return_loss:
            return logits
        sim = torch.einsum("id,jd->ij", text_embeds, image_embeds) * self.temperature.exp()
        target = torch.arange(text.shape[0])
        contrastive = (F.cross_entropy(sim, target) + F.cross_entropy(sim.t(), target)) * 0.5
        return F.cross_entropy(logits.transpose(1, 2), labels) + contrastive


@right(
    "embedding|position encoder.layers.0-2 intent_classifier|slot_classifier",
    rising=("encoder.layers.2 transitions",),
    name="slots and intents over the stock encoder, with a hand-written CRF",
)
class SlotsAndIntents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, 4))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 3)
        self.intent_classifier, self.slot_classifier = nn.Linear(4, 5), nn.Linear(4, 7)
        self.transitions = nn.Parameter(torch.randn(7, 7))

    def crf(self, emissions: Any, tags: Any, mask: Any) -> Any:
        alpha, score = emissions[:, 0], emissions[:, 0].gather(1, tags[:, :1]).squeeze(1)
        for t in range(1, emissions.shape[1]):
            step = torch.logsumexp(alpha.unsqueeze(2) + self.transitions + emissions[:, t].unsqueeze(1), dim=1)
            alpha = torch.where(mask[:, t : t + 1], step, alpha)
            score = score + (self.transitions[tags[:, t - 1], tags[:, t]]) * mask[:, t]
        return torch.logsumexp(alpha, 1) - score

    def forward(self, ids: Any, attention_mask: Any, intents: Any = None, slots: Any = None) -> Any:
        x = self.embedding(ids) + self.position[:, : ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=~attention_mask)
        intent_logits, slot_logits = self.intent_classifier(x[:, 0]), self.slot_classifier(x)
        total = 0
        if intents is not None:
            total = total + F.cross_entropy(intent_logits, intents)
        if slots is not None:
            total = total + self.crf(slot_logits, slots, attention_mask).mean()
        return total, intent_logits, slot_logits


_WAVES = " ".join(
    "|".join(f"{part}.{i}" for part in ("filter_convs", "gate_convs", "residual_convs", "skip_convs")) for i in range(4)
)


@right(f"start_conv {_WAVES} end_conv_1|end_conv_2", name="WaveNet in four lists")
class WaveNet(nn.Module):
    def __init__(self, layers: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.filter_convs, self.gate_convs = nn.ModuleList(), nn.ModuleList()
        self.residual_convs, self.skip_convs = nn.ModuleList(), nn.ModuleList()
        self.start_conv = nn.Conv1d(10, 4, 1)
        self.dilations = []
        for _ in range(blocks):
            dilation = 1
            for _ in range(layers):
                self.dilations.append(dilation)
                self.filter_convs.append(nn.Conv1d(4, 4, 2, dilation=dilation))
                self.gate_convs.append(nn.Conv1d(4, 4, 2, dilation=dilation))
                self.residual_convs.append(nn.Conv1d(4, 4, 1))
                self.skip_convs.append(nn.Conv1d(4, 6, 1))
                dilation *= 2
        self.end_conv_1, self.end_conv_2 = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 10, 1)

    def forward(self, x: Any) -> Any:
        x = self.start_conv(x)
        skip: Any = 0
        for i, dilation in enumerate(self.dilations):
            residual = F.pad(x, (dilation, 0))
            y = torch.tanh(self.filter_convs[i](residual)) * torch.sigmoid(self.gate_convs[i](residual))
            s = self.skip_convs[i](y)
            try:
                skip = skip[:, :, -s.size(2) :]
            except TypeError:
                skip = 0
            skip = s + skip
            x = self.residual_convs[i](y) + x
        return self.end_conv_2(F.relu(self.end_conv_1(F.relu(skip))))


class DiffusionEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.rand(50, 8), persistent=False)
        self.projection1, self.projection2 = nn.Linear(8, 4), lin()

    def forward(self, step: Any) -> Any:
        x = self.embedding[step] if step.dtype in [torch.int32, torch.int64] else self.embedding[step.long()]
        return F.silu(self.projection2(F.silu(self.projection1(x))))


class ResidualBlock(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilated_conv = nn.Conv1d(4, 8, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = lin()
        self.conditioner_projection = nn.Conv1d(5, 8, 1)
        self.output_projection = nn.Conv1d(4, 8, 1)

    def forward(self, x: Any, diffusion_step: Any, conditioner: Any = None) -> Any:
        y = x + self.diffusion_projection(diffusion_step).unsqueeze(-1)
        y = self.dilated_conv(y) + self.conditioner_projection(conditioner)
        gate, filt = torch.chunk(y, 2, dim=1)
        residual, skip = torch.chunk(self.output_projection(torch.sigmoid(gate) * torch.tanh(filt)), 2, dim=1)
        return (x + residual) / math.sqrt(2.0), skip


@right(
    "input_projection|diffusion_embedding|spectrogram_upsampler residual_layers.0-3 skip_projection|output_projection",
    name="a diffusion vocoder",
)
class DiffWave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_projection = nn.Conv1d(1, 4, 1)
        self.diffusion_embedding = DiffusionEmbedding()
        self.spectrogram_upsampler = nn.ConvTranspose1d(5, 5, 4, stride=2, padding=1)
        self.residual_layers = nn.ModuleList([ResidualBlock(2 ** (i % 2)) for i in range(4)])
        self.skip_projection, self.output_projection = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 1, 1)
        nn.init.zeros_(self.output_projection.weight)

    def forward(self, audio: Any, diffusion_step: Any, spectrogram: Any = None) -> Any:
        x = F.relu(self.input_projection(audio.unsqueeze(1)))
        diffusion_step = self.diffusion_embedding(diffusion_step)
        spectrogram = self.spectrogram_upsampler(spectrogram)
        skip = None
        for layer in self.residual_layers:
            x, skip_connection = layer(x, diffusion_step, spectrogram)
            skip = skip_connection if skip is None else skip_connection + skip
        x = skip / math.sqrt(len(self.residual_layers))
        return self.output_projection(F.relu(self.skip_projection(x)))


class TemporalBlock(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(4, 8, 1, bias=False), nn.PReLU(), nn.GroupNorm(1, 8),
            nn.Conv1d(8, 8, 3, padding=dilation, dilation=dilation, groups=8), nn.PReLU(), nn.Conv1d(8, 4, 1),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.net(x) + x


class Separator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        repeats = [nn.Sequential(*[TemporalBlock(2**x) for x in range(2)]) for _ in range(2)]
        self.network = nn.Sequential(
            nn.GroupNorm(1, 6), nn.Conv1d(6, 4, 1), nn.Sequential(*repeats), nn.Conv1d(4, 12, 1)
        )

    def forward(self, mixture_w: Any) -> Any:
        m, n, k = mixture_w.size()
        return F.relu(self.network(mixture_w).view(m, 2, n, k))


@right(
    rising=(
        "encoder separator.network.2.0.0", "separator.network.1 separator.network.2.0.0",
        "separator.network.2.0.0 separator.network.2.0.1", "separator.network.2.0.1 separator.network.2.1.0",
        "separator.network.2.1.0 separator.network.2.1.1", "separator.network.2.1.1 separator.network.3 decoder",
        "separator.network.2.1.1 decoder",
    ),
    name="Conv-TasNet: repeats of blocks in Sequentials in a Sequential, between encoder and decoder",
)  # fmt: skip
class ConvTasNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 6, 4, stride=2, bias=False)
        self.separator = Separator()
        self.decoder = nn.Linear(6, 4, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_normal_(p)

    def forward(self, mixture: Any) -> Any:
        mixture_w = F.relu(self.encoder(mixture.unsqueeze(1)))
        est_mask = self.separator(mixture_w)
        source_w = torch.transpose(mixture_w.unsqueeze(1) * est_mask, 2, 3)
        return self.decoder(source_w).flatten(2)


class JasperBlock(nn.Module):
    def __init__(self, repeat: int = 2, residual: bool = True) -> None:
        super().__init__()
        conv = []
        for i in range(repeat):
            conv.extend([nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)])
            if i < repeat - 1:
                conv.extend([nn.ReLU(), nn.Dropout(0.1)])
        self.mconv = nn.ModuleList(conv)
        self.res = nn.ModuleList([nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)]) if residual else None
        self.mout = nn.Sequential(nn.ReLU(), nn.Dropout(0.1))

    def forward(self, input_: tuple[list[Any], Any]) -> Any:
        xs, lens = input_
        out = xs[-1]
        for layer in self.mconv:
            out = layer(out)
        if self.res is not None:
            res_out = xs[-1]
            for layer in self.res:
                res_out = layer(res_out)
            out = out + res_out
        return [self.mout(out)], lens


@right(
    rising=(
        "encoder.encoder.0 encoder.encoder.1", "encoder.encoder.1 encoder.encoder.2",
        "encoder.encoder.2 encoder.encoder.3", "encoder.encoder.3 decoder.decoder_layers",
    ),
    name="QuartzNet under CTC, a step that calls its parts",
)  # fmt: skip
class QuartzNet(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.encoder = nn.Sequential(JasperBlock(1, False), JasperBlock(), JasperBlock(), JasperBlock(1, False))
        self.decoder.decoder_layers = nn.Sequential(nn.Conv1d(4, 30, 1))
        self.ctc_loss = nn.CTCLoss(blank=29, zero_infinity=True)

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        audio, lens, transcript, transcript_len = batch
        (encoded, *_), encoded_len = self.encoder.encoder(([audio], lens))
        log_probs = F.log_softmax(self.decoder.decoder_layers(encoded).transpose(1, 2), dim=-1)
        loss = self.ctc_loss(log_probs.transpose(0, 1), transcript, encoded_len, transcript_len)
        return {"loss": loss, "log": {"train_loss": loss.item()}}


class MogLstmCell(nn.Module):
    def __init__(self, size: int, hidden: int, iterations: int) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(size, hidden)
        self.mogrifier_list = nn.ModuleList([nn.Linear(hidden, size)])
        for i in range(1, iterations):
            self.mogrifier_list.extend([nn.Linear(size, hidden) if i % 2 else nn.Linear(hidden, size)])

    def mogrify(self, x: Any, h: Any) -> Any:
        for i in range(len(self.mogrifier_list)):
            if (i + 1) % 2 == 0:
                h = (2 * torch.sigmoid(self.mogrifier_list[i](x))) * h
            else:
                x = (2 * torch.sigmoid(self.mogrifier_list[i](h))) * x
        return x, h

    def forward(self, x: Any, states: Any) -> Any:
        ht, ct = states
        x, ht = self.mogrify(x, ht)
        return self.lstm(x, (ht, ct))


@right(
    rising=("embedding mogrifier_layer1", "mogrifier_layer1 mogrifier_layer2", "mogrifier_layer2 fc1"),
    name="mogrifier cells, unrolled by hand",
)
class MogLm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.embedding = nn.Embedding(30, 6)
        self.mogrifier_layer1 = MogLstmCell(6, 4, 5)
        self.mogrifier_layer2 = MogLstmCell(4, 4, 5)
        self.fc1 = nn.Linear(4, 30)
        self.drop = nn.Dropout(0.2)

    def forward(self, seq: Any, max_len: int = 4) -> Any:
        embed = self.embedding(seq)
        batch_size = seq.shape[0]
        h1, c1 = torch.zeros(batch_size, 4), torch.zeros(batch_size, 4)
        h2, c2 = torch.zeros(batch_size, 4), torch.zeros(batch_size, 4)
        outputs = []
        for step in range(max_len):
            x = self.drop(embed[:, step])
            h1, c1 = self.mogrifier_layer1(x, (h1, c1))
            h2, c2 = self.mogrifier_layer2(h1, (h2, c2))
            outputs.append(self.fc1(self.drop(h2)).unsqueeze(1))
        return torch.cat(outputs, dim=1)


@right("bert.embed bert.layers.0-2 classifier", name="R-Drop: two passes in one step")
class RDrop(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.bert, self.classifier = Tower(3), nn.Linear(4, 2)

    def forward(self, ids: Any) -> Any:
        return self.classifier(self.bert(ids)[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        ids, labels = batch["input_ids"], batch["labels"]
        logits1, logits2 = self(ids), self(ids)
        ce = 0.5 * (F.cross_entropy(logits1, labels) + F.cross_entropy(logits2, labels))
        p, q = F.log_softmax(logits1, -1), F.log_softmax(logits2, -1)
        kl = (
            F.kl_div(p, q, log_target=True, reduction="none").sum()
            + F.kl_div(q, p, log_target=True, reduction="none").sum()
        )
        return ce + 0.5 * kl


@right(
    rising=(
        "params.wte params.h0_qkv", "params.h0_qkv params.h0_up params.h1_qkv", "params.h0_down params.h1_qkv",
        "params.h1_down params.h2_qkv", "params.h0_qkv params.h1_qkv", "params.h1_qkv params.h2_qkv",
        "params.h2_down params.ln_f params.head", "params.h2_qkv params.head",
    ),
    name="GPT in plain functions over a ParameterDict",
)  # fmt: skip
class PlainGpt(nn.Module):
    def __init__(self, n_layer: int = 3) -> None:
        super().__init__()
        self.n_layer = n_layer
        p: dict[str, Any] = {"wte": torch.randn(30, 4), "wpe": torch.randn(16, 4)}
        for i in range(n_layer):
            p |= {f"h{i}_ln_1": torch.ones(4), f"h{i}_qkv": torch.randn(4, 12), f"h{i}_proj": torch.randn(4, 4),
                  f"h{i}_ln_2": torch.ones(4), f"h{i}_up": torch.randn(4, 8), f"h{i}_down": torch.randn(8,
                  4)}  # fmt: skip
        p |= {"ln_f": torch.ones(4), "head": torch.randn(4, 30)}
        self.params = nn.ParameterDict({k: nn.Parameter(v) for k, v in p.items()})

    def block(self, x: Any, i: int) -> Any:
        p = self.params
        q, k, v = (F.layer_norm(x, (4,), p[f"h{i}_ln_1"]) @ p[f"h{i}_qkv"]).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ p[f"h{i}_proj"]
        return x + F.gelu(F.layer_norm(x, (4,), p[f"h{i}_ln_2"]) @ p[f"h{i}_up"]) @ p[f"h{i}_down"]

    def forward(self, idx: Any) -> Any:
        x = self.params["wte"][idx] + self.params["wpe"][torch.arange(idx.shape[1])]
        for i in range(self.n_layer):
            x = self.block(x, i)
        return F.layer_norm(x, (4,), self.params["ln_f"]) @ self.params["head"]
