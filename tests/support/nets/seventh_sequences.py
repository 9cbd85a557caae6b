"""Seventh sample, text, sound and time: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import right


# ---------------------------------------------------------------------- language models
class CausalSelfAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.n_head, self.n_embd = heads, d

    def forward(self, x):
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (z.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class GPTBlock(nn.Module):
    def __init__(self, d=8, heads=2):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = CausalSelfAttention(d, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 2 * d), "c_proj": nn.Linear(2 * d, d)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


@dataclass
class GPTConfig:
    vocab_size: int = 16
    block_size: int = 12
    n_layer: int = 3
    n_embd: int = 8
    gradient_checkpointing: bool = True


@right(
    "transformer.wte|transformer.wpe transformer.h.0-2 transformer.ln_f",
    name="GPT in a ModuleDict, tied, with checkpoints and a loss inside",
)
class GPT(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config = config or GPTConfig()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList([GPTBlock(config.n_embd) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None):
        _, t = idx.size()
        assert t <= self.config.block_size, f"Cannot forward sequence of length {t}"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        else:
            logits, loss = self.lm_head(x[:, [-1], :]), None
        return logits, loss

    def configure_optimizers(self, weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.95)):
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]
        fused = "fused" in inspect.signature(torch.optim.AdamW).parameters and torch.cuda.is_available()
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, **({"fused": True} if fused else {}))


class RMSNorm(nn.Module):
    def __init__(self, d, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class T5Attention(nn.Module):
    def __init__(self, d, heads=2, has_relative_attention_bias=False):
        super().__init__()
        self.heads, self.has_bias = heads, has_relative_attention_bias
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        if has_relative_attention_bias:
            self.relative_attention_bias = nn.Embedding(8, heads)

    def compute_bias(self, q, k):
        distance = torch.arange(k)[None, :] - torch.arange(q)[:, None]
        return self.relative_attention_bias(distance.clamp(-4, 3) + 4).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x, kv=None, position_bias=None, causal=False):
        kv = x if kv is None else kv
        q, k, v = (
            f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, z in ((self.q, x), (self.k, kv), (self.v, kv))
        )
        scores = q @ k.transpose(3, 2)
        if position_bias is None:
            n, m = scores.shape[-2:]
            position_bias = self.compute_bias(n, m) if self.has_bias else torch.zeros((1, self.heads, n, m))
            if causal:
                position_bias = position_bias + torch.full((n, m), -1e9).triu(1)
        scores = scores + position_bias
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), position_bias


class T5Block(nn.Module):
    def __init__(self, d, is_decoder, first):
        super().__init__()
        self.is_decoder = is_decoder
        self.ln_self, self.self_attn = RMSNorm(d), T5Attention(d, has_relative_attention_bias=first)
        if is_decoder:
            self.ln_cross, self.cross_attn = RMSNorm(d), T5Attention(d)
        self.ln_ff, self.wi, self.wo = RMSNorm(d), nn.Linear(d, 2 * d, bias=False), nn.Linear(2 * d, d, bias=False)

    def forward(self, x, encoder_states=None, position_bias=None):
        y, position_bias = self.self_attn(self.ln_self(x), position_bias=position_bias, causal=self.is_decoder)
        x = x + y
        if self.is_decoder and encoder_states is not None:
            x = x + self.cross_attn(self.ln_cross(x), kv=encoder_states)[0]
        return x + self.wo(F.relu(self.wi(self.ln_ff(x)))), position_bias


class T5Stack(nn.Module):
    def __init__(self, embed_tokens, d, n, is_decoder):
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList([T5Block(d, is_decoder, first=i == 0) for i in range(n)])
        self.final_layer_norm = RMSNorm(d)

    def forward(self, input_ids, encoder_hidden_states=None):
        hidden_states, position_bias = self.embed_tokens(input_ids), None
        for layer in self.block:
            hidden_states, position_bias = layer(hidden_states, encoder_hidden_states, position_bias)
        return self.final_layer_norm(hidden_states)


@right(
    "shared encoder.block.0-1 lm_head", "shared decoder.block.0-1 decoder.final_layer_norm|lm_head",
    name="T5 by hand: a shared embedding, a bias that block 0 hands on",
)  # fmt: skip
class TinyT5(nn.Module):
    def __init__(self, d=8, vocab=20, n=2):
        super().__init__()
        self.shared = nn.Embedding(vocab, d)
        self.encoder, self.decoder = T5Stack(self.shared, d, n, False), T5Stack(self.shared, d, n, True)
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.pad = 0

    def _shift_right(self, labels):
        shifted = labels.new_zeros(labels.shape)
        shifted[..., 1:] = labels[..., :-1].clone()
        return shifted.masked_fill(shifted == -100, self.pad)

    def forward(self, input_ids, labels=None, decoder_input_ids=None, encoder_outputs=None):
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids)
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self._shift_right(labels)
        logits = self.lm_head(self.decoder(decoder_input_ids, encoder_hidden_states=encoder_outputs))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-100)
        return {"loss": loss, "logits": logits}


class SwitchFFN(nn.Module):
    def __init__(self, d, n_experts=3, k=2):
        super().__init__()
        self.gate = nn.Linear(d, n_experts, bias=False)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d)) for _ in range(n_experts)]
        )
        self.k = k

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = self.gate(x).softmax(-1)
        weights, chosen = torch.topk(probs, self.k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, nth = torch.where(chosen == i)
            if token.numel() == 0:
                continue
            out.index_add_(0, token, weights[token, nth, None] * expert(x[token]))
        load = F.one_hot(chosen[:, 0], len(self.experts)).float().mean(0)
        return out.view(shape), len(self.experts) * (load * probs.mean(0)).sum()


class MoEBlock(nn.Module):
    def __init__(self, d, moe):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(d), CausalSelfAttention(d, 2)
        self.ffn_norm = RMSNorm(d)
        self.ffn = SwitchFFN(d) if moe else nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        y = self.ffn(self.ffn_norm(x))
        y, aux = y if isinstance(y, tuple) else (y, x.new_zeros(()))
        return x + y, aux


@right(
    "tok_embeddings layers.0-3 norm|output",
    name="mixture of experts in every second block, its loss is collected",
)
class MoELM(nn.Module):
    def __init__(self, d=8, vocab=16, n_layers=4):
        super().__init__()
        self.output, self.norm = nn.Linear(d, vocab, bias=False), RMSNorm(d)
        self.layers = torch.nn.ModuleList()
        for layer_id in range(n_layers):
            self.layers.append(MoEBlock(d, moe=layer_id % 2 == 1))
        self.tok_embeddings = nn.Embedding(vocab, d)

    def forward(self, tokens, labels=None, aux_coef=0.01):
        h, aux_losses = self.tok_embeddings(tokens), []
        for layer in self.layers:
            h, aux = layer(h)
            aux_losses.append(aux)
        logits = self.output(self.norm(h)).float()
        if labels is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + aux_coef * sum(aux_losses)


class MambaBlock(nn.Module):
    def __init__(self, d, state=4, conv=3):
        super().__init__()
        inner = 2 * d
        self.in_proj = nn.Linear(d, inner * 2, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj, self.dt_proj = nn.Linear(inner, 1 + 2 * state, bias=False), nn.Linear(1, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1).float().repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj, self.state = nn.Linear(inner, d, bias=False), state

    def forward(self, x):
        _, n, _ = x.shape
        x, res = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, :n].transpose(1, 2))
        delta, b, c = self.x_proj(x).split([1, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        return self.out_proj(self.selective_scan(x, delta, b, c) * F.silu(res))

    def selective_scan(self, u, delta, b, c):
        da = torch.exp(torch.einsum("bld,dn->bldn", delta, -torch.exp(self.A_log.float())))
        dbu = torch.einsum("bld,bln,bld->bldn", delta, b, u)
        h, ys = torch.zeros_like(da[:, 0]), []
        for i in range(u.shape[1]):
            h = da[:, i] * h + dbu[:, i]
            ys.append(torch.einsum("bdn,bn->bd", h, c[:, i]))
        return torch.stack(ys, dim=1) + u * self.D


class ResidualMamba(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mixer, self.norm = MambaBlock(d), RMSNorm(d)

    def forward(self, x):
        return self.mixer(self.norm(x)) + x


@right("embedding layers.0-2 norm_f", name="Mamba by hand with a scan in Python, tied")
class Mamba(nn.Module):
    def __init__(self, d=6, vocab=16, n_layer=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList([ResidualMamba(d) for _ in range(n_layer)])
        self.norm_f = RMSNorm(d)
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm_f(x))


class S4D(nn.Module):
    def __init__(self, d, n=4):
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(d) * 2 - 4)
        self.C = nn.Parameter(torch.randn(d, n, 2))
        self.log_A_real, self.A_imag = (
            nn.Parameter(torch.zeros(d, n)),
            nn.Parameter(math.pi * torch.arange(n).repeat(d, 1)),
        )
        self.D, self.output_linear = nn.Parameter(torch.randn(d)), nn.Conv1d(d, 2 * d, 1)

    def kernel(self, length):
        dt, c = torch.exp(self.log_dt), torch.view_as_complex(self.C)
        a = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dta = a * dt.unsqueeze(-1)
        k = dta.unsqueeze(-1) * torch.arange(length, device=a.device)
        return 2 * torch.einsum("hn, hnl -> hl", c * (torch.exp(dta) - 1.0) / a, torch.exp(k)).real

    def forward(self, u):
        length = u.size(-1)
        k_f = torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * k_f, n=2 * length)[..., :length]
        y = F.gelu(y + u * self.D.unsqueeze(-1))
        return F.glu(self.output_linear(y), dim=-2), None


@right(
    "encoder s4_layers.0|norms.0 s4_layers.1|norms.1 s4_layers.2|norms.2 decoder",
    name="S4: layers, norms and dropouts in three lists, a convolution by FFT",
)
class S4Model(nn.Module):
    def __init__(self, d_input=1, d_output=10, d_model=8, n_layers=3, dropout=0.1, prenorm=True):
        super().__init__()
        self.prenorm = prenorm
        self.encoder = nn.Linear(d_input, d_model)
        self.s4_layers, self.norms, self.dropouts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(n_layers):
            self.s4_layers.append(S4D(d_model))
            self.norms.append(nn.LayerNorm(d_model))
            self.dropouts.append(nn.Dropout1d(dropout))
        self.decoder = nn.Linear(d_model, d_output)

    def forward(self, x):
        x = self.encoder(x)
        x = x.transpose(-1, -2)
        for layer, norm, dropout in zip(self.s4_layers, self.norms, self.dropouts, strict=True):
            z = x
            if self.prenorm:
                z = norm(z.transpose(-1, -2)).transpose(-1, -2)
            z, _ = layer(z)
            x = dropout(z) + x
            if not self.prenorm:
                x = norm(x.transpose(-1, -2)).transpose(-1, -2)
        x = x.transpose(-1, -2).mean(dim=1)
        return self.decoder(x)


class RWKVBlock(nn.Module):
    def __init__(self, d, layer_id):
        super().__init__()
        self.layer_id = layer_id
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        if layer_id == 0:
            self.ln0 = nn.LayerNorm(d)
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.time_decay, self.time_first = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.time_mix = nn.Parameter(torch.full((3, d), 0.5))
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.ffn_mix, self.ffn_key, self.ffn_value = (
            nn.Parameter(torch.full((d,), 0.5)),
            nn.Linear(d, d),
            nn.Linear(d, d),
        )

    def wkv(self, k, v):
        w, u = -torch.exp(self.time_decay), self.time_first
        num, den, out = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
        for t in range(k.shape[1]):
            e = torch.exp(u + k[:, t])
            out.append((num + e * v[:, t]) / (den + e))
            num, den = torch.exp(w) * num + torch.exp(k[:, t]) * v[:, t], torch.exp(w) * den + torch.exp(k[:, t])
        return torch.stack(out, 1)

    def forward(self, x):
        if self.layer_id == 0:
            x = self.ln0(x)
        y = self.ln1(x)
        xx = self.time_shift(y)
        k, v, r = (
            f(y * m + xx * (1 - m)) for f, m in zip((self.key, self.value, self.receptance), self.time_mix, strict=True)
        )
        x = x + self.output(torch.sigmoid(r) * self.wkv(k, v))
        y = self.ln2(x)
        y = y * self.ffn_mix + self.time_shift(y) * (1 - self.ffn_mix)
        return x + self.ffn_value(torch.square(torch.relu(self.ffn_key(y))))


@right("emb blocks.0-2 ln_out|head", name="RWKV: the first block has one norm more")
class RWKV(nn.Module):
    def __init__(self, d=8, vocab=16, n_layer=3, ctx_len=16):
        super().__init__()
        self.ctx_len = ctx_len
        self.emb = nn.Embedding(vocab, d)
        self.blocks = nn.Sequential(*[RWKVBlock(d, i) for i in range(n_layer)])
        self.ln_out, self.head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def forward(self, idx, targets=None):
        assert idx.shape[1] <= self.ctx_len, "Cannot forward, because len(input) > model ctx_len."
        x = self.head(self.ln_out(self.blocks(self.emb(idx))))
        if targets is None:
            return x
        loss = F.cross_entropy(x.view(-1, x.size(-1)), targets.view(-1))
        penalty = (x.max(-1).values ** 2).mean() * 1e-4
        return loss + penalty


# ---------------------------------------------------------------------- encoders and what is built of them
class EncoderLayer(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, batch_first=True)
        self.attention_norm, self.output_norm = nn.LayerNorm(d, eps=1e-12), nn.LayerNorm(d, eps=1e-12)
        self.intermediate, self.output = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, hidden_states, attention_mask=None):
        y, _ = self.attention(hidden_states, hidden_states, hidden_states, key_padding_mask=attention_mask)
        hidden_states = self.attention_norm(hidden_states + y)
        y = self.output(F.gelu(self.intermediate(hidden_states)))
        return self.output_norm(hidden_states + y)


@right(
    "word|position|time_mlp layer.0-2 norm|unembed",
    name="masked diffusion of text, a training step only",
)
class MaskedDiffusionLM(LightningModule):
    """No forward: what is masked is drawn in the step."""

    def __init__(self, d=8, vocab=16, length=12, n=3):
        super().__init__()
        self.mask_id, self.length = vocab, length
        self.word, self.position = nn.Embedding(vocab + 1, d), nn.Embedding(length, d)
        self.time_mlp = nn.Sequential(nn.Linear(1, d), nn.SiLU(), nn.Linear(d, d))
        self.layer = nn.ModuleList([EncoderLayer(d) for _ in range(n)])
        self.norm, self.unembed = nn.LayerNorm(d), nn.Linear(d, vocab)

    def denoise(self, ids, t):
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.time_mlp(t[:, None])[:, None]
        for layer in self.layer:
            x = layer(x)
        return self.unembed(self.norm(x))

    def training_step(self, batch, batch_idx):
        ids = batch["input_ids"]
        t = torch.rand(ids.shape[0], device=ids.device).clamp_min(1e-3)
        masked = torch.rand(ids.shape, device=ids.device) < t[:, None]
        masked[:, 0] = True
        noisy = torch.where(masked, torch.full_like(ids, self.mask_id), ids)
        logits = self.denoise(noisy, t)
        loss = F.cross_entropy(logits[masked], ids[masked], reduction="none")
        loss = (loss / t[:, None].expand_as(ids)[masked]).sum() / ids.numel()
        self.log("elbo", loss)
        return loss

    @torch.no_grad()
    def sample(self, n, steps=4):
        ids = torch.full((n, self.length), self.mask_id)
        for i in range(steps, 0, -1):
            logits = self.denoise(ids, torch.full((n,), i / steps))
            new = torch.distributions.Categorical(logits=logits).sample()
            ids = torch.where((ids == self.mask_id) & (torch.rand(ids.shape) < 1 / i), new, ids)
        return ids

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-4)


class TextTower(nn.Module):
    def __init__(self, d=8, vocab=20, n=2):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {"word": nn.Embedding(vocab, d), "position": nn.Embedding(16, d), "norm": nn.LayerNorm(d)}
        )
        self.layers = nn.ModuleList(EncoderLayer(d) for _ in range(n))
        self.dense = nn.Linear(d, d)

    def forward(self, input_ids, attention_mask):
        x = self.embeddings["word"](input_ids)
        x = self.embeddings["norm"](x + self.embeddings["position"](torch.arange(input_ids.shape[1]))[None])
        for layer in self.layers:
            x = layer(x, ~attention_mask.bool())
        mask = attention_mask.unsqueeze(-1).to(x.dtype)
        return F.normalize(self.dense((x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)), dim=-1)


@right(
    "query.embeddings query.layers.0-1 query.dense|log_scale", "passage.embeddings passage.layers.0-2 passage.dense",
    name="dense retrieval: two encoders of different depth, negatives of the batch",
)  # fmt: skip
class DenseRetriever(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.passage, self.query = TextTower(n=3), TextTower(n=2)

    def forward(self, query, positive, negative=None):
        q, p = self.query(**query), self.passage(**positive)
        if negative is not None:
            p = torch.cat([p, self.passage(**negative)])
        scores = q @ p.t() * self.log_scale.exp()
        return F.cross_entropy(scores, torch.arange(len(q), device=scores.device)), scores


@right(
    "embeddings discriminator.0-1 rtd_dense|rtd_out", "generator.0 mlm_dense|mlm_norm|mlm_out",
    name="ELECTRA: tokens drawn by a generator, embeddings for both",
)  # fmt: skip
class Electra(LightningModule):
    def __init__(self, d=8, vocab=20):
        super().__init__()
        self.embeddings = nn.Embedding(vocab, d)
        self.generator = nn.ModuleList([EncoderLayer(d)])
        self.discriminator = nn.ModuleList([EncoderLayer(d), EncoderLayer(d)])
        self.mlm_dense, self.mlm_norm, self.mlm_out = nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, vocab)
        self.rtd_dense, self.rtd_out = nn.Linear(d, d), nn.Linear(d, 1)

    def encode(self, layers, ids):
        h = self.embeddings(ids)
        for layer in layers:
            h = layer(h)
        return h

    def training_step(self, batch, batch_idx):
        ids, masked = batch
        corrupted = ids.masked_fill(masked, 0)
        h = self.mlm_norm(F.gelu(self.mlm_dense(self.encode(self.generator, corrupted))))
        mlm_logits = self.mlm_out(h)
        mlm_loss = F.cross_entropy(mlm_logits[masked], ids[masked])
        with torch.no_grad():
            gumbel = -torch.log(-torch.log(torch.rand_like(mlm_logits).clamp(1e-9, 1 - 1e-9)))
            sampled = torch.where(masked, (mlm_logits + gumbel).argmax(-1), ids)
        replaced = (sampled != ids).float()
        rtd = self.rtd_out(F.gelu(self.rtd_dense(self.encode(self.discriminator, sampled)))).squeeze(-1)
        return mlm_loss + 50 * F.binary_cross_entropy_with_logits(rtd, replaced)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-4)


@right(
    "backbone.wte|backbone.wpe backbone.h.0-2|prompts.0-2 backbone.ln_f|score",
    name="deep prompts in front of every block of a frozen backbone",
)
class DeepPrompts(nn.Module):
    class Backbone(nn.Module):
        def __init__(self, d=8, vocab=16):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(16, d)
            self.h, self.ln_f = nn.ModuleList([GPTBlock(d) for _ in range(3)]), nn.LayerNorm(d)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.h:
                x = block(x)
            return self.ln_f(x)

    def __init__(self, d=8, n_prompt=2, classes=3):
        super().__init__()
        self.backbone = self.Backbone(d)
        for p in self.backbone.parameters():
            p.requires_grad_(False)
        self.prompts = nn.ParameterList([nn.Parameter(torch.randn(n_prompt, d) * 0.02) for _ in range(3)])
        self.score, self.n = nn.Linear(d, classes), n_prompt

    def forward(self, ids):
        bb = self.backbone
        x = bb.wte(ids) + bb.wpe.weight[: ids.shape[1]]
        for i, block in enumerate(bb.h):
            prompt = self.prompts[i].unsqueeze(0).expand(x.shape[0], -1, -1)
            x = block(torch.cat([prompt, x], dim=1))[:, self.n :]
        return self.score(bb.ln_f(x)[:, -1])


@right("embedding convs fc", name="TextCNN: kernels of three sizes side by side")
class TextCNN(nn.Module):
    def __init__(self, vocab=20, d=8, kernels=(2, 3, 4), channels=4, classes=3):
        super().__init__()
        self.fc, self.dropout = nn.Linear(len(kernels) * channels, classes), nn.Dropout(0.5)
        self.convs = nn.ModuleList([nn.Conv2d(1, channels, (k, d)) for k in kernels])
        self.embedding = nn.Embedding(vocab, d, padding_idx=0)

    def conv_and_pool(self, x, conv):
        x = F.relu(conv(x)).squeeze(3)
        return F.max_pool1d(x, x.size(2)).squeeze(2)

    def forward(self, x):
        out = self.embedding(x[0])
        out = out.unsqueeze(1)
        out = torch.cat([self.conv_and_pool(out, conv) for conv in self.convs], 1)
        return self.fc(self.dropout(out))


@right(
    "word_embeds lstm.weight_ih_l0*|lstm.weight_hh_l0*|lstm.bias_ih_l0*|lstm.bias_hh_l0* "
    "lstm.weight_ih_l1*|lstm.weight_hh_l1*|lstm.bias_ih_l1*|lstm.bias_hh_l1* hidden2tag|transitions",
    name="BiLSTM-CRF: packed sequences, transitions of tags",
)
class BiLSTMCRF(nn.Module):
    def __init__(self, vocab=20, d=6, hidden=8, tags=4):
        super().__init__()
        self.transitions = nn.Parameter(torch.randn(tags, tags))
        self.word_embeds = nn.Embedding(vocab, d)
        self.lstm = nn.LSTM(d, hidden // 2, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(hidden, tags)

    def _get_lstm_features(self, sentence, lengths):
        embeds = pack_padded_sequence(self.word_embeds(sentence), lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = self.lstm(embeds)
        out, _ = pad_packed_sequence(out, batch_first=True)
        return self.hidden2tag(out)

    def _forward_alg(self, feats, mask):
        alpha = feats[:, 0]
        for t in range(1, feats.shape[1]):
            new = torch.logsumexp(alpha.unsqueeze(2) + self.transitions.unsqueeze(0), dim=1) + feats[:, t]
            alpha = torch.where(mask[:, t].unsqueeze(1), new, alpha)
        return torch.logsumexp(alpha, dim=1)

    def _score_sentence(self, feats, tags, mask):
        emit = feats.gather(2, tags.unsqueeze(2)).squeeze(2)
        trans = self.transitions[tags[:, :-1], tags[:, 1:]]
        return (emit * mask).sum(1) + (trans * mask[:, 1:]).sum(1)

    def neg_log_likelihood(self, sentence, tags, lengths):
        feats = self._get_lstm_features(sentence, lengths)
        mask = torch.arange(feats.shape[1])[None] < lengths[:, None]
        return (self._forward_alg(feats, mask) - self._score_sentence(feats, tags, mask)).mean()

    def forward(self, sentence, lengths):
        feats = self._get_lstm_features(sentence, lengths)
        score, back = feats[:, 0], []
        for t in range(1, feats.shape[1]):
            best, idx = (score.unsqueeze(2) + self.transitions).max(1)
            back.append(idx)
            score = best + feats[:, t]
        path = [score.argmax(1)]
        for idx in reversed(back):
            path.append(idx.gather(1, path[-1].unsqueeze(1)).squeeze(1))
        return score.max(1).values, torch.stack(path[::-1], 1)


class AttnDecoder(nn.Module):
    def __init__(self, hidden, vocab):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.wa, self.ua, self.va = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.gru, self.out = nn.GRU(2 * hidden, hidden, batch_first=True), nn.Linear(hidden, vocab)

    def forward(self, encoder_outputs, encoder_hidden, target_tensor=None, max_length=5):
        decoder_input = torch.zeros(encoder_outputs.size(0), 1, dtype=torch.long)
        decoder_hidden, outputs = encoder_hidden, []
        for i in range(max_length):
            output, decoder_hidden = self.forward_step(decoder_input, decoder_hidden, encoder_outputs)
            outputs.append(output)
            if target_tensor is not None:
                decoder_input = target_tensor[:, i].unsqueeze(1)
            else:
                decoder_input = output.topk(1).indices.squeeze(-1).detach()
        return F.log_softmax(torch.cat(outputs, dim=1), dim=-1)

    def forward_step(self, token, hidden, encoder_outputs):
        query = hidden.permute(1, 0, 2)
        weights = self.va(torch.tanh(self.wa(query) + self.ua(encoder_outputs))).squeeze(2).unsqueeze(1)
        context = torch.bmm(weights.softmax(-1), encoder_outputs)
        output, hidden = self.gru(torch.cat((self.embedding(token), context), dim=2), hidden)
        return self.out(output), hidden


@right(
    rising=("enc_embedding enc_gru.weight_ih_l0 dec.out", "dec.embedding dec.gru.weight_ih_l0 dec.out"),
    name="translation with additive attention, step by step",
)
class Seq2SeqGRU(LightningModule):
    def __init__(self, vocab=16, hidden=8):
        super().__init__()
        self.enc_embedding, self.dropout = nn.Embedding(vocab, hidden), nn.Dropout(0.1)
        self.enc_gru = nn.GRU(hidden, hidden, batch_first=True)
        self.dec = AttnDecoder(hidden, vocab)

    def forward(self, src, tgt=None):
        outputs, hidden = self.enc_gru(self.dropout(self.enc_embedding(src)))
        return self.dec(outputs, hidden, tgt)

    def training_step(self, batch, batch_idx):
        src, tgt = batch
        return F.nll_loss(self(src, tgt).flatten(0, 1), tgt.flatten())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


# ---------------------------------------------------------------------- sound
class ConformerBlock(nn.Module):
    def __init__(self, d, kernel=5):
        super().__init__()
        self.ff1, self.ff2 = (
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d)) for _ in range(2)
        )
        self.norm_mha, self.mha = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.norm_conv, self.pw1 = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1)
        self.dw, self.bn = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d), nn.BatchNorm1d(d)
        self.pw2, self.norm_final = nn.Conv1d(d, d, 1), nn.LayerNorm(d)

    def forward(self, x, pad_mask):
        x = x + 0.5 * self.ff1(x)
        y = self.norm_mha(x)
        x = x + self.mha(y, y, y, key_padding_mask=pad_mask)[0]
        y = F.glu(self.pw1(self.norm_conv(x).transpose(1, 2)), dim=1).masked_fill(pad_mask[:, None], 0.0)
        x = x + self.pw2(F.silu(self.bn(self.dw(y)))).transpose(1, 2)
        return self.norm_final(x + 0.5 * self.ff2(x))


@right(
    "subsampling|linear_in conformer_layers.0-2 ctc_lo",
    name="Conformer with CTC: batches are dicts with lengths",
)
class ConformerCTC(nn.Module):
    def __init__(self, mels=16, d=8, vocab=10, n=3):
        super().__init__()
        self.subsampling = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
        self.linear_in = nn.Linear(4 * mels // 4, d)
        self.conformer_layers = nn.ModuleList([ConformerBlock(d) for _ in range(n)])
        self.ctc_lo, self.ctc_loss = nn.Linear(d, vocab), nn.CTCLoss(zero_infinity=True)
        self.d = d

    def forward(self, batch):
        speech, lengths = batch["speech"], batch["speech_lengths"]
        if self.training:
            speech = speech.clone()
            start = int(torch.randint(0, speech.shape[2] - 2, (1,)))
            speech[:, :, start : start + 2] = 0.0
        x = self.subsampling(speech.unsqueeze(1))
        b, c, t, f = x.size()
        x = self.linear_in(x.transpose(1, 2).contiguous().view(b, t, c * f)) * math.sqrt(self.d)
        olens = torch.div(lengths + 3, 4, rounding_mode="floor").clamp(max=t)
        pad_mask = torch.arange(t, device=x.device)[None] >= olens[:, None]
        for layer in self.conformer_layers:
            x = layer(x, pad_mask)
        log_probs = F.log_softmax(self.ctc_lo(x), dim=-1)
        stats = {"log_probs": log_probs, "olens": olens}
        if "text" in batch:
            stats["loss"] = self.ctc_loss(log_probs.transpose(0, 1), batch["text"], olens, batch["text_lengths"])
        return stats


@right(
    "enc_in enc_rnn.weight_ih_l0|enc_rnn.weight_hh_l0|enc_rnn.bias_ih_l0|enc_rnn.bias_hh_l0 "
    "enc_rnn.weight_ih_l1|enc_rnn.weight_hh_l1|enc_rnn.bias_ih_l1|enc_rnn.bias_hh_l1 "
    "joint.enc_proj|joint.pred_proj|joint.out",
    "predictor.embed predictor.rnn joint.out",
    name="transducer: encoder, predictor and joiner",
)
class Transducer(nn.Module):
    class Predictor(nn.Module):
        def __init__(self, vocab, d):
            super().__init__()
            self.rnn, self.embed, self.blank = nn.LSTM(d, d, batch_first=True), nn.Embedding(vocab, d), 0

        def forward(self, y, state=None):
            y = F.pad(y, (1, 0), value=self.blank)
            return self.rnn(self.embed(y), state)

    class Joint(nn.Module):
        def __init__(self, d, vocab):
            super().__init__()
            self.enc_proj, self.pred_proj, self.out = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, vocab)

        def forward(self, enc, pred):
            h = self.enc_proj(enc).unsqueeze(2) + self.pred_proj(pred).unsqueeze(1)
            return self.out(torch.tanh(h))

    def __init__(self, mels=8, d=6, vocab=9):
        super().__init__()
        self.joint, self.predictor = self.Joint(d, vocab), self.Predictor(vocab, d)
        self.enc_in = nn.Linear(mels * 2, d)
        self.enc_rnn = nn.LSTM(d, d, num_layers=2, batch_first=True)

    def stack_frames(self, x):
        b, t, f = x.shape
        return x[:, : t - t % 2].reshape(b, t // 2, f * 2)

    def forward(self, audio_signal, targets):
        enc, _ = self.enc_rnn(self.enc_in(self.stack_frames(audio_signal)))
        pred, _ = self.predictor(targets)
        return self.joint(enc, pred).log_softmax(-1)


class TemporalBlock(nn.Module):
    def __init__(self, b, h, dilation):
        super().__init__()
        self.conv1x1, self.prelu, self.norm1 = nn.Conv1d(b, h, 1, bias=False), nn.PReLU(), nn.GroupNorm(1, h)
        self.dw = nn.Conv1d(h, h, 3, padding=dilation, dilation=dilation, groups=h)
        self.prelu2, self.norm2, self.pw = nn.PReLU(), nn.GroupNorm(1, h), nn.Conv1d(h, b, 1, bias=False)

    def forward(self, x):
        y = self.norm1(self.prelu(self.conv1x1(x)))
        return self.pw(self.norm2(self.prelu2(self.dw(y)))) + x


@right(
    "encoder|separator.network.0|separator.network.1 separator.network.2.0.0 separator.network.2.0.1 "
    "separator.network.2.1.0 separator.network.2.1.1 separator.network.3|decoder",
    name="Conv-TasNet: repeats of blocks inside a Sequential of all",
)
class ConvTasNet(nn.Module):
    class Separator(nn.Module):
        def __init__(self, n, b, h, x, r, c):
            super().__init__()
            self.c = c
            repeats = []
            for _ in range(r):
                repeats.append(nn.Sequential(*[TemporalBlock(b, h, 2**i) for i in range(x)]))
            self.network = nn.Sequential(
                nn.GroupNorm(1, n), nn.Conv1d(n, b, 1, bias=False), nn.Sequential(*repeats), nn.Conv1d(b, c * n, 1)
            )

        def forward(self, mixture_w):
            m, n, k = mixture_w.size()
            score = self.network(mixture_w).view(m, self.c, n, k)
            return F.relu(score)

    def __init__(self, n=8, kernel=4, b=4, h=8, x=2, r=2, c=2):
        super().__init__()
        self.encoder = nn.Conv1d(1, n, kernel, stride=kernel // 2, bias=False)
        self.separator = self.Separator(n, b, h, x, r, c)
        self.decoder = nn.ConvTranspose1d(n, 1, kernel, stride=kernel // 2, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_normal_(p)

    def forward(self, mixture):
        mixture_w = F.relu(self.encoder(mixture.unsqueeze(1)))
        est_mask = self.separator(mixture_w)
        source_w = mixture_w.unsqueeze(1) * est_mask
        m, c = source_w.shape[:2]
        est_source = self.decoder(source_w.flatten(0, 1)).view(m, c, -1)
        return F.pad(est_source, (0, mixture.size(-1) - est_source.size(-1)))


@torch.jit.ignore
def fused_add_tanh_sigmoid_multiply(input_a, input_b, n_channels):
    in_act = input_a + input_b
    return torch.tanh(in_act[:, :n_channels]) * torch.sigmoid(in_act[:, n_channels:])


@right(
    "start|cond_layer in_layers.0-2|res_skip_layers.0-2 end",
    name="WaveNet of a vocoder: dilated and skip convolutions in two lists",
)
class WN(nn.Module):
    def __init__(self, n_in=2, n_mel=6, n_layers=3, n_channels=4, kernel_size=3):
        super().__init__()
        self.n_layers, self.n_channels = n_layers, n_channels
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        self.start = weight_norm(nn.Conv1d(n_in, n_channels, 1))
        end = nn.Conv1d(n_channels, 2 * n_in, 1)
        end.weight.data.zero_()
        end.bias.data.zero_()
        self.end = end
        self.cond_layer = weight_norm(nn.Conv1d(n_mel, 2 * n_channels * n_layers, 1))
        for i in range(n_layers):
            dilation = 2**i
            padding = int((kernel_size * dilation - dilation) / 2)
            self.in_layers.append(
                weight_norm(nn.Conv1d(n_channels, 2 * n_channels, kernel_size, dilation=dilation, padding=padding))
            )
            res_skip_channels = 2 * n_channels if i < n_layers - 1 else n_channels
            self.res_skip_layers.append(weight_norm(nn.Conv1d(n_channels, res_skip_channels, 1)))

    def forward(self, forward_input):
        audio, spect = forward_input
        audio = self.start(audio)
        output = torch.zeros_like(audio)
        spect = self.cond_layer(spect)
        for i in range(self.n_layers):
            offset = i * 2 * self.n_channels
            acts = fused_add_tanh_sigmoid_multiply(
                self.in_layers[i](audio), spect[:, offset : offset + 2 * self.n_channels, :], self.n_channels
            )
            res_skip_acts = self.res_skip_layers[i](acts)
            if i < self.n_layers - 1:
                audio = audio + res_skip_acts[:, : self.n_channels, :]
                output = output + res_skip_acts[:, self.n_channels :, :]
            else:
                output = output + res_skip_acts
        return self.end(output)


class FFTBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.slf_attn, self.ln1 = nn.MultiheadAttention(d, 2, batch_first=True), nn.LayerNorm(d)
        self.w_1, self.w_2, self.ln2 = nn.Conv1d(d, 2 * d, 3, padding=1), nn.Conv1d(2 * d, d, 1), nn.LayerNorm(d)

    def forward(self, x, mask=None):
        x = self.ln1(x + self.slf_attn(x, x, x, key_padding_mask=mask)[0])
        y = self.w_2(F.relu(self.w_1(x.transpose(1, 2)))).transpose(1, 2)
        x = self.ln2(x + y)
        return x if mask is None else x.masked_fill(mask.unsqueeze(-1), 0)


class VariancePredictor(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv1d(d, d, 3, padding=1), nn.LayerNorm(d), nn.Linear(d, 1)

    def forward(self, x):
        return self.linear(self.norm(F.relu(self.conv(x.mT)).mT)).squeeze(-1)


@right(
    rising=("encoder.src_word_emb encoder.layer_stack.0-1 decoder.layer_stack.0-1 mel_linear",),
    name="FastSpeech 2: lengths are regulated between encoder and decoder",
)
class FastSpeech2(nn.Module):
    class Stack(nn.Module):
        def __init__(self, d, vocab=None):
            super().__init__()
            self.src_word_emb = nn.Embedding(vocab, d, padding_idx=0) if vocab else None
            self.layer_stack = nn.ModuleList([FFTBlock(d) for _ in range(2)])

        def forward(self, seq, mask):
            x = seq if self.src_word_emb is None else self.src_word_emb(seq)
            for layer in self.layer_stack:
                x = layer(x, mask)
            return x

    def __init__(self, d=8, vocab=20, mels=5):
        super().__init__()
        self.encoder, self.decoder = self.Stack(d, vocab), self.Stack(d)
        self.duration_predictor, self.pitch_predictor = VariancePredictor(d), VariancePredictor(d)
        self.pitch_embedding = nn.Embedding(8, d)
        self.register_buffer("pitch_bins", torch.linspace(-2, 2, 7))
        self.mel_linear = nn.Linear(d, mels)

    def length_regulator(self, x, duration):
        out = [torch.repeat_interleave(row, n, dim=0) for row, n in zip(x, duration, strict=True)]
        mel_len = torch.tensor([o.shape[0] for o in out])
        return nn.utils.rnn.pad_sequence(out, batch_first=True), mel_len

    def forward(self, texts, src_lens, pitch=None, durations=None):
        src_mask = torch.arange(texts.shape[1])[None] >= src_lens[:, None]
        x = self.encoder(texts, src_mask)
        log_duration, pitch_pred = self.duration_predictor(x), self.pitch_predictor(x)
        x = x + self.pitch_embedding(torch.bucketize(pitch_pred.detach() if pitch is None else pitch, self.pitch_bins))
        if durations is None:
            durations = torch.clamp(torch.round(torch.exp(log_duration) - 1), min=1).long()
        x, mel_lens = self.length_regulator(x, durations)
        mel_mask = torch.arange(x.shape[1])[None] >= mel_lens[:, None]
        mel = self.mel_linear(self.decoder(x, mel_mask))
        return mel, log_duration, pitch_pred, mel_mask


@right(rising=("encoder.0-2 lstm decoder.0-2",), name="Demucs: the decoder is filled from the front")
class Demucs(nn.Module):
    def __init__(self, sources=2, channels=4, depth=3, kernel=8, stride=4):
        super().__init__()
        self.depth, self.kernel, self.stride = depth, kernel, stride
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        in_channels, out_channels = 1, sources
        for index in range(depth):
            encode = [nn.Conv1d(in_channels, channels, kernel, stride), nn.ReLU(), nn.Conv1d(channels, 2 * channels, 1)]
            self.encoder.append(nn.Sequential(*encode, nn.GLU(dim=1)))
            decode = [nn.Conv1d(channels, 2 * channels, 3, padding=1), nn.GLU(dim=1)]
            decode += [nn.ConvTranspose1d(channels, out_channels, kernel, stride)]
            if index > 0:
                decode.append(nn.ReLU())
            self.decoder.insert(0, nn.Sequential(*decode))
            in_channels, out_channels = channels, channels
        self.lstm = nn.LSTM(channels, channels, num_layers=2, bidirectional=True)
        self.lstm_linear = nn.Linear(2 * channels, channels)

    def valid_length(self, length):
        for _ in range(self.depth):
            length = max(1, math.ceil((length - self.kernel) / self.stride) + 1)
        for _ in range(self.depth):
            length = (length - 1) * self.stride + self.kernel
        return int(length)

    def forward(self, mix):
        length = mix.shape[-1]
        x = F.pad(mix, (0, self.valid_length(length) - length))
        std = x.std(dim=-1, keepdim=True) + 1e-3
        x, saved = x / std, []
        for encode in self.encoder:
            x = encode(x)
            saved.append(x)
        x = self.lstm_linear(self.lstm(x.permute(2, 0, 1))[0]).permute(1, 2, 0)
        for decode in self.decoder:
            skip = saved.pop(-1)
            x = decode(x + skip[..., : x.shape[-1]])
        return x[..., :length] * std


class SEANetRes(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block = nn.Sequential(nn.ELU(), nn.Conv1d(c, c // 2, 3, padding=1), nn.ELU(), nn.Conv1d(c // 2, c, 1))

    def forward(self, x):
        return x + self.block(x)


class SLSTM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.lstm = nn.LSTM(c, c)

    def forward(self, x):
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class CodecOutput(NamedTuple):
    audio: torch.Tensor
    codes: torch.Tensor
    penalty: torch.Tensor


@right(
    rising=(
        "encoder.model.0 encoder.model.1 encoder.model.4 encoder.model.7 "
        "decoder.model.0 decoder.model.4 decoder.model.9",
    ),
    name="EnCodec: mixed Sequentials, residual codebooks in buffers",
)  # fmt: skip
class Codec(nn.Module):
    class Coder(nn.Module):
        def __init__(self, *modules):
            super().__init__()
            self.model = nn.Sequential(*modules)

        def forward(self, x):
            return self.model(x)

    def __init__(self, c=4, n_q=3, bins=8):
        super().__init__()
        self.encoder = self.Coder(
            nn.Conv1d(1, c, 7, padding=3), SEANetRes(c), nn.ELU(), nn.Conv1d(c, 2 * c, 4, 2, 1),
            SEANetRes(2 * c), nn.ELU(), nn.Conv1d(2 * c, 2 * c, 4, 2, 1), SLSTM(2 * c), nn.ELU(),
            nn.Conv1d(2 * c, 2 * c, 3, padding=1),
        )  # fmt: skip
        self.decoder = self.Coder(
            nn.Conv1d(2 * c, 2 * c, 7, padding=3), SLSTM(2 * c), nn.ELU(), nn.ConvTranspose1d(2 * c, 2 * c, 4, 2, 1),
            SEANetRes(2 * c), nn.ELU(), nn.ConvTranspose1d(2 * c, c, 4, 2, 1), SEANetRes(c), nn.ELU(),
            nn.Conv1d(c, 1, 7, padding=3),
        )  # fmt: skip
        self.register_buffer("codebooks", torch.randn(n_q, bins, 2 * c))

    def quantize(self, z):
        residual, quantized, codes = z.transpose(1, 2), 0, []
        for codebook in self.codebooks:
            idx = torch.cdist(residual, codebook.unsqueeze(0)).argmin(-1)
            picked = F.embedding(idx, codebook)
            quantized, residual = quantized + picked, residual - picked
            codes.append(idx)
        quantized = quantized.transpose(1, 2)
        penalty = F.mse_loss(z, quantized.detach())
        return z + (quantized - z).detach(), torch.stack(codes, 1), penalty

    def forward(self, x):
        quantized, codes, penalty = self.quantize(self.encoder(x))
        return CodecOutput(self.decoder(quantized)[..., : x.shape[-1]], codes, penalty)


@right(
    "emb|condition_proj transformer.layers.0-2 out_norm|linears",
    name="music of four codebooks: summed embeddings, a head each, a delay",
)
class MusicLM(nn.Module):
    class Streaming(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.layers = nn.ModuleList()
            for _ in range(n):
                self.layers.append(nn.TransformerEncoderLayer(d, 2, 2 * d, batch_first=True, norm_first=True))

        def forward(self, x, mask):
            for layer in self.layers:
                x = layer(x, src_mask=mask)
            return x

    def __init__(self, n_q=4, card=8, d=8):
        super().__init__()
        self.n_q, self.card = n_q, card
        self.emb = nn.ModuleList([nn.Embedding(card + 1, d) for _ in range(n_q)])
        self.condition_proj = nn.Linear(5, d)
        self.transformer = self.Streaming(d, 3)
        self.out_norm = nn.LayerNorm(d)
        self.linears = nn.ModuleList([nn.Linear(d, card, bias=False) for _ in range(n_q)])

    def delay(self, codes):
        out = codes.new_full(codes.shape, self.card)
        for k in range(self.n_q):
            out[:, k, k + 1 :] = codes[:, k, : codes.shape[-1] - k - 1]
        return out

    def forward(self, codes, condition):
        sequence = self.delay(codes)
        x = sum(self.emb[k](sequence[:, k]) for k in range(self.n_q))
        x = torch.cat([self.condition_proj(condition), x], dim=1)
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        out = self.out_norm(self.transformer(x, mask))
        logits = torch.stack([self.linears[k](out) for k in range(self.n_q)], dim=1)
        return logits[:, :, condition.shape[1] :]


# ---------------------------------------------------------------------- time series
class TSTEncoderLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.self_attn, self.norm_attn = nn.MultiheadAttention(d, 2, batch_first=True), nn.BatchNorm1d(d)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * d, d))
        self.norm_ffn = nn.BatchNorm1d(d)

    def forward(self, src):
        src = self.norm_attn((src + self.self_attn(src, src, src)[0]).mT).mT
        return self.norm_ffn((src + self.ff(src)).mT).mT


@right(
    "backbone.w_p|backbone.w_pos backbone.encoder.0-2 head",
    name="PatchTST: patches of every channel by themselves",
)
class PatchTST(nn.Module):
    class Backbone(nn.Module):
        def __init__(self, patch_num, patch_len, d, n):
            super().__init__()
            self.w_p = nn.Linear(patch_len, d)
            self.w_pos = nn.Parameter(torch.empty((patch_num, d)).uniform_(-0.02, 0.02))
            self.dropout = nn.Dropout(0.1)
            self.encoder = nn.ModuleList([TSTEncoderLayer(d) for _ in range(n)])

        def forward(self, x):
            n_vars = x.shape[1]
            x = self.w_p(x)
            u = torch.reshape(x, (x.shape[0] * x.shape[1], x.shape[2], x.shape[3]))
            u = self.dropout(u + self.w_pos)
            for mod in self.encoder:
                u = mod(u)
            z = torch.reshape(u, (-1, n_vars, u.shape[-2], u.shape[-1]))
            return z.permute(0, 1, 3, 2)

    def __init__(self, seq_len=24, pred_len=6, patch_len=8, stride=4, d=8, n=3):
        super().__init__()
        self.patch_len, self.stride = patch_len, stride
        patch_num = (seq_len - patch_len) // stride + 1
        self.backbone = self.Backbone(patch_num, patch_len, d, n)
        self.head = nn.Sequential(nn.Flatten(start_dim=-2), nn.Linear(d * patch_num, pred_len), nn.Dropout(0.0))

    def forward(self, x):
        mean = x.mean(1, keepdim=True).detach()
        stdev = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
        z = ((x - mean) / stdev).permute(0, 2, 1)
        z = z.unfold(dimension=-1, size=self.patch_len, step=self.stride)
        z = self.head(self.backbone(z)).permute(0, 2, 1)
        return z * stdev + mean


class DataEmbedding(nn.Module):
    def __init__(self, c_in, d, marks=4):
        super().__init__()
        self.value, self.temporal = nn.Conv1d(c_in, d, 3, padding=1, padding_mode="circular"), nn.Linear(marks, d)

    def forward(self, x, x_mark):
        return self.value(x.permute(0, 2, 1)).transpose(1, 2) + self.temporal(x_mark)


class DistilConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.down, self.norm = nn.Conv1d(c, c, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(c)
        self.pool = nn.MaxPool1d(3, 2, 1)

    def forward(self, x):
        return self.pool(F.elu(self.norm(self.down(x.permute(0, 2, 1))))).transpose(1, 2)


class InformerEncoder(nn.Module):
    def __init__(self, attn_layers, conv_layers=None):
        super().__init__()
        self.attn_layers = nn.ModuleList(attn_layers)
        self.conv_layers = nn.ModuleList(conv_layers) if conv_layers is not None else None

    def forward(self, x):
        if self.conv_layers is not None:
            for attn_layer, conv_layer in zip(self.attn_layers, self.conv_layers, strict=False):
                x = conv_layer(attn_layer(x))
            x = self.attn_layers[-1](x)
        else:
            for attn_layer in self.attn_layers:
                x = attn_layer(x)
        return x


class InformerDecoder(nn.Module):
    def __init__(self, layers, norm_layer=None):
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm_layer

    def forward(self, x, cross):
        for layer in self.layers:
            x = layer(x, cross)
        return self.norm(x) if self.norm is not None else x


@right(
    "enc_embedding encoder.attn_layers.0 encoder.attn_layers.1|encoder.conv_layers.0 projection",
    "dec_embedding decoder.layers.0 decoder.norm|projection",
    name="Informer: the encoder distils between its layers",
)
class Informer(nn.Module):
    def __init__(self, enc_in=3, dec_in=3, c_out=3, out_len=4, d=8, e_layers=2, d_layers=1, distil=True):
        super().__init__()
        self.pred_len = out_len
        self.enc_embedding, self.dec_embedding = DataEmbedding(enc_in, d), DataEmbedding(dec_in, d)
        self.encoder = InformerEncoder(
            [EncoderLayer(d) for _ in range(e_layers)], [DistilConv(d) for _ in range(e_layers - 1)] if distil else None
        )
        self.decoder = InformerDecoder(
            [nn.TransformerDecoderLayer(d, 2, 2 * d, batch_first=True) for _ in range(d_layers)], nn.LayerNorm(d)
        )
        self.projection = nn.Linear(d, c_out, bias=True)

    def forward(self, x_enc, x_mark_enc, x_dec, x_mark_dec):
        enc_out = self.encoder(self.enc_embedding(x_enc, x_mark_enc))
        dec_out = self.decoder(self.dec_embedding(x_dec, x_mark_dec), enc_out)
        return self.projection(dec_out)[:, -self.pred_len :, :]


class TimesBlock(nn.Module):
    def __init__(self, d, k=2):
        super().__init__()
        self.k = k
        self.conv = nn.Sequential(nn.Conv2d(d, 2 * d, 3, padding=1), nn.GELU(), nn.Conv2d(2 * d, d, 3, padding=1))

    def forward(self, x):
        b, t, n = x.size()
        xf = torch.fft.rfft(x, dim=1)
        frequency = xf.abs().mean(0).mean(-1)
        frequency[0] = 0
        _, top = torch.topk(frequency, self.k)
        periods, weights = t // np.maximum(top.detach().cpu().numpy(), 1), xf.abs().mean(-1)[:, top]
        res = []
        for period in periods:
            length = -(-t // int(period)) * int(period)
            out = F.pad(x, (0, 0, 0, length - t)).reshape(b, -1, int(period), n).permute(0, 3, 1, 2)
            out = self.conv(out).permute(0, 2, 3, 1).reshape(b, -1, n)
            res.append(out[:, :t])
        weights = F.softmax(weights, dim=1).unsqueeze(1).unsqueeze(1)
        return torch.sum(torch.stack(res, dim=-1) * weights, -1) + x


@right(
    "enc_embedding|predict_linear model.0|layer_norm model.1 projection",
    name="TimesNet: one norm after every block",
)
class TimesNet(nn.Module):
    def __init__(self, seq_len=12, pred_len=4, c=3, d=6, e_layers=2):
        super().__init__()
        self.pred_len, self.layer = pred_len, e_layers
        self.model = nn.ModuleList([TimesBlock(d) for _ in range(e_layers)])
        self.enc_embedding = DataEmbedding(c, d)
        self.layer_norm = nn.LayerNorm(d)
        self.predict_linear = nn.Linear(seq_len, pred_len + seq_len)
        self.projection = nn.Linear(d, c, bias=True)

    def forecast(self, x_enc, x_mark_enc):
        means = x_enc.mean(1, keepdim=True).detach()
        x_enc = x_enc.sub(means)
        enc_out = self.enc_embedding(x_enc, x_mark_enc)
        enc_out = self.predict_linear(enc_out.permute(0, 2, 1)).permute(0, 2, 1)
        for i in range(self.layer):
            enc_out = self.layer_norm(self.model[i](enc_out))
        return self.projection(enc_out).add(means)

    def forward(self, x_enc, x_mark_enc, mask=None):
        dec_out = self.forecast(x_enc, x_mark_enc)
        return dec_out[:, -self.pred_len :, :]


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TCNBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        chomp = Chomp1d(padding)
        self.net = nn.Sequential(self.conv1, chomp, nn.ReLU(), nn.Dropout(0.1), self.conv2, chomp, nn.ReLU())
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None

    def forward(self, x):
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(out + res)


@right("embedding network.0-2 mu|sigma", name="TCN with a distribution on top")
class TCNForecaster(nn.Module):
    def __init__(self, stations=5, channels=(4, 6, 6), kernel_size=2):
        super().__init__()
        self.sigma, self.mu = nn.Linear(channels[-1], 1), nn.Linear(channels[-1], 1)
        self.embedding = nn.Embedding(stations, 3)
        layers = []
        for i in range(len(channels)):
            in_channels = 4 if i == 0 else channels[i - 1]
            layers += [TCNBlock(in_channels, channels[i], kernel_size, dilation=2**i)]
        self.network = nn.Sequential(*layers)

    def forward(self, series, station):
        static = self.embedding(station).unsqueeze(-1).expand(-1, -1, series.shape[-1])
        y = self.network(torch.cat([series.unsqueeze(1), static], 1))[:, :, -1]
        return torch.distributions.Normal(self.mu(y), F.softplus(self.sigma(y)) + 1e-6)


class NBeatsBlock(nn.Module):
    def __init__(self, backcast, forecast, units, theta):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(backcast, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())
        self.theta_b, self.theta_f = nn.Linear(units, theta, bias=False), nn.Linear(units, theta, bias=False)
        self.backcast_fc, self.forecast_fc = nn.Linear(theta, backcast), nn.Linear(theta, forecast)

    def forward(self, x):
        x = self.fc(x)
        return self.backcast_fc(F.relu(self.theta_b(x))), self.forecast_fc(F.relu(self.theta_f(x)))


@right(
    rising=("stacks.0.0 stacks.0.1 stacks.1.0 stacks.1.1",),
    name="N-BEATS: stacks of blocks that read what is left over",
)
class NBeats(nn.Module):
    def __init__(self, backcast_length=10, forecast_length=4, n_stacks=2, n_blocks=2):
        super().__init__()
        self.forecast_length = forecast_length
        self.stacks, self.parameters_list = [], []
        for _ in range(n_stacks):
            blocks = [NBeatsBlock(backcast_length, forecast_length, 8, 4) for _ in range(n_blocks)]
            self.stacks.append(nn.ModuleList(blocks))
        self.stacks = nn.ModuleList(self.stacks)

    def forward(self, backcast):
        forecast = torch.zeros(backcast.size(0), self.forecast_length, device=backcast.device)
        for stack in self.stacks:
            for block in stack:
                b, f = block(backcast)
                backcast = backcast - b
                forecast = forecast + f
        return backcast, forecast
