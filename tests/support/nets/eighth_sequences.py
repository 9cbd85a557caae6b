"""Eighth sample, text, audio and series: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn

from tests.support.nets.collection import right
from tests.support.nets.eighth_images import strictly


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, dim * 3, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Any, mask: Any = None) -> Any:
        b, n, d = x.shape
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        if mask is not None:
            dots = dots.masked_fill(~mask, -torch.finfo(dots.dtype).max)
        out = torch.einsum("bhij,bhjd->bhid", dots.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, d))


def feed_forward(dim: int, mult: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * mult), nn.GELU(), nn.Linear(dim * mult, dim))


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([Attention(dim), feed_forward(dim)]))

    def forward(self, x: Any) -> Any:
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return x


@right(
    "to_patch_embedding|cls_token|pos_embedding transformer.layers.0-2 norm|mlp_head",
    name="spectrogram transformer: pairs of attention and feed-forward in a list of lists",
)
class SpectrogramTransformer(nn.Module):
    def __init__(self, dim: int = 8, depth: int = 3, patch: int = 4, bins: int = 8, frames: int = 16) -> None:
        super().__init__()
        self.patch = patch
        num_patches = (bins // patch) * (frames // patch)
        self.to_patch_embedding = nn.Linear(patch * patch, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, num_patches + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = Transformer(dim, depth)
        self.norm, self.mlp_head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, spec: Any) -> Any:
        if spec.ndim == 4:
            spec = spec.squeeze(1)
        b, p = spec.shape[0], self.patch
        spec = (spec - spec.mean((1, 2), keepdim=True)) / (spec.std((1, 2), keepdim=True) + 1e-5)
        x = spec.unfold(1, p, p).unfold(2, p, p).reshape(b, -1, p * p)
        x = self.to_patch_embedding(x)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x += self.pos_embedding[:, : x.shape[1]]
        x = self.transformer(x)
        return self.mlp_head(self.norm(x[:, 0]))


def make_pad_mask(lengths: Any, maxlen: int) -> Any:
    return torch.arange(maxlen, device=lengths.device)[None] >= lengths[:, None]


class SpeechEncoder(nn.Module):
    def __init__(self, idim: int, odim: int, num_blocks: int = 3) -> None:
        super().__init__()
        self.after_norm = nn.LayerNorm(odim)
        self.encoders = nn.ModuleList(
            [nn.TransformerEncoderLayer(odim, 2, odim, batch_first=True, norm_first=True) for _ in range(num_blocks)]
        )
        self.embed = nn.Conv1d(idim, odim, 3, stride=2, padding=1)

    def forward(self, xs_pad: Any, ilens: Any) -> tuple[Any, Any]:
        xs_pad = self.embed(xs_pad.transpose(1, 2)).transpose(1, 2)
        olens = (ilens + 1) // 2
        masks = make_pad_mask(olens, xs_pad.size(1))
        for layer in self.encoders:
            xs_pad = layer(xs_pad, src_key_padding_mask=masks)
        return self.after_norm(xs_pad), olens


class SpeechDecoder(nn.Module):
    def __init__(self, vocab: int, odim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, odim)
        self.decoders = nn.ModuleList(
            [nn.TransformerDecoderLayer(odim, 2, odim, batch_first=True, norm_first=True) for _ in range(2)]
        )
        self.after_norm, self.output_layer = nn.LayerNorm(odim), nn.Linear(odim, vocab)

    def forward(self, ys_in_pad: Any, hs_pad: Any, hlens: Any) -> Any:
        size = ys_in_pad.size(1)
        causal = torch.triu(torch.ones(size, size, dtype=torch.bool, device=ys_in_pad.device), 1)
        x, memory_mask = self.embed(ys_in_pad), make_pad_mask(hlens, hs_pad.size(1))
        for decoder in self.decoders:
            x = decoder(x, hs_pad, tgt_mask=causal, memory_key_padding_mask=memory_mask)
        return self.output_layer(self.after_norm(x))


@right(
    "encoder.embed encoder.encoders.0-2 ctc_lo",
    "decoder.embed decoder.decoders.0-1 decoder.after_norm|decoder.output_layer",
    name="speech recognition with CTC and attention",
)
class HybridASR(LightningModule):
    def __init__(self, vocab_size: int = 11, ctc_weight: float = 0.3) -> None:
        super().__init__()
        self.sos = self.eos = vocab_size - 1
        self.ignore_id, self.ctc_weight = -1, ctc_weight
        self.ctc_lo = nn.Linear(8, vocab_size)
        self.decoder, self.encoder = SpeechDecoder(vocab_size, 8), SpeechEncoder(5, 8)
        self.ctc_loss = nn.CTCLoss(zero_infinity=True)
        self.criterion = nn.CrossEntropyLoss(ignore_index=self.ignore_id)

    def forward(self, speech: Any, speech_lengths: Any, text: Any, text_lengths: Any) -> tuple[Any, dict[str, Any]]:
        encoder_out, encoder_out_lens = self.encoder(speech, speech_lengths)
        log_probs = self.ctc_lo(encoder_out).log_softmax(-1).transpose(0, 1)
        loss_ctc = self.ctc_loss(log_probs, text.clamp(min=0), encoder_out_lens, text_lengths)
        ys_in = F.pad(text.masked_fill(text == self.ignore_id, self.eos), (1, 0), value=self.sos)
        ys_out = F.pad(text, (0, 1), value=self.ignore_id)
        ys_out[torch.arange(len(text), device=text.device), text_lengths] = self.eos
        decoder_out = self.decoder(ys_in, encoder_out, encoder_out_lens)
        loss_att = self.criterion(decoder_out.flatten(0, 1), ys_out.flatten())
        loss = self.ctc_weight * loss_ctc + (1 - self.ctc_weight) * loss_att
        return loss, {"loss_ctc": loss_ctc.detach(), "loss_att": loss_att.detach()}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, stats = self(**batch)
        self.log_dict({f"train/{k}": v for k, v in stats.items()})
        return loss


class Sin(nn.Module):
    def __init__(self, dim: int, w: float = 10.0) -> None:
        super().__init__()
        self.freq = nn.Parameter(w * torch.ones(1, dim))

    def forward(self, x: Any) -> Any:
        return torch.sin(self.freq * x)


class HyenaOperator(nn.Module):
    def __init__(self, d_model: int, l_max: int, order: int = 2) -> None:
        super().__init__()
        self.d_model, self.order = d_model, order
        self.in_proj, self.out_proj = nn.Linear(d_model, (order + 1) * d_model), nn.Linear(d_model, d_model)
        inner = d_model * (order + 1)
        self.short_filter = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        act = Sin(6)
        self.implicit_filter = nn.Sequential(nn.Linear(3, 6), act, nn.Linear(6, 6), act, nn.Linear(6, d_model))
        self.bias = nn.Parameter(torch.randn(d_model))
        t = torch.linspace(0, 1, l_max)[:, None]
        self.register_buffer("z", torch.cat([t, torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t)], dim=-1))

    def fftconv(self, u: Any, k: Any) -> Any:
        seqlen = u.shape[-1]
        fft_size = 2 * seqlen
        k_f, u_f = torch.fft.rfft(k, n=fft_size) / fft_size, torch.fft.rfft(u.to(dtype=k.dtype), n=fft_size)
        y = torch.fft.irfft(u_f * k_f, n=fft_size, norm="forward")[..., :seqlen]
        return (y + u * self.bias.unsqueeze(-1)).to(dtype=u.dtype)

    def forward(self, u: Any) -> Any:
        length = u.size(-2)
        u = self.in_proj(u).transpose(1, 2)
        uc = self.short_filter(u)[..., :length]
        *x, v = uc.split(self.d_model, dim=1)
        k = self.implicit_filter(self.z[:length]).transpose(0, 1)
        for x_i in reversed(x[1:]):
            v = self.fftconv(v * x_i, k)
        return self.out_proj((v * x[0]).transpose(1, 2))


class HyenaBlock(nn.Module):
    def __init__(self, d_model: int, l_max: int, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.mixer, self.mlp = HyenaOperator(d_model, l_max), nn.Linear(d_model, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, hidden: Any, residual: Any = None) -> tuple[Any, Any]:
        residual = hidden + residual if residual is not None else hidden
        hidden = self.mixer(self.norm1(residual.to(dtype=self.norm1.weight.dtype)))
        residual = hidden + residual
        return F.gelu(self.mlp(self.norm2(residual))), residual


@right(
    "word_embeddings layers.0-2 ln_f",
    name="long convolutions with a residual of their own and a tied output",
)
class HyenaLM(nn.Module):
    def __init__(self, d_model: int = 8, n_layer: int = 3, vocab_size: int = 13, l_max: int = 32) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        self.layers = nn.ModuleList([HyenaBlock(d_model, l_max, layer_idx=i) for i in range(n_layer)])
        self.ln_f = nn.LayerNorm(d_model)
        self.tie_weights()

    def tie_weights(self) -> None:
        self.lm_head.weight = self.word_embeddings.weight

    def forward(self, input_ids: Any, position_ids: Any = None, state: Any = None) -> Any:
        hidden_states = self.word_embeddings(input_ids)
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual)
        hidden_states = self.ln_f((hidden_states + residual).to(dtype=self.ln_f.weight.dtype))
        return (self.lm_head(hidden_states),), None


def modulate(x: Any, shift: Any, scale: Any) -> Any:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DDiTBlock(nn.Module):
    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn, self.mlp = Attention(dim), feed_forward(dim)
        self.adaLN_modulation = nn.Linear(cond_dim, 3 * dim)

    def forward(self, x: Any, c: Any) -> Any:
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm(x), shift, scale))
        return x + self.mlp(x)


class DIT(nn.Module):
    def __init__(self, vocab_size: int, hidden: int = 8, n_blocks: int = 3) -> None:
        super().__init__()
        self.vocab_embed = nn.Embedding(vocab_size, hidden)
        self.sigma_map = nn.Linear(4, hidden)
        self.blocks = nn.ModuleList([DDiTBlock(hidden, hidden) for _ in range(n_blocks)])
        self.output_norm, self.output_layer = nn.LayerNorm(hidden), nn.Linear(hidden, vocab_size)

    def forward(self, indices: Any, sigma: Any) -> Any:
        x = self.vocab_embed(indices)
        freqs = torch.exp(-math.log(100) * torch.arange(2, device=sigma.device) / 2)
        args = sigma[:, None].float() * freqs[None]
        c = F.silu(self.sigma_map(torch.cat([torch.cos(args), torch.sin(args)], dim=-1)))
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            for i in range(len(self.blocks)):
                x = self.blocks[i](x, c)
            x = self.output_layer(self.output_norm(x))
        return x.float()


@right(
    "backbone.vocab_embed|backbone.sigma_map backbone.blocks.0-2 backbone.output_norm|backbone.output_layer",
    name="masked diffusion of text: training_step alone, an average kept beside",
)
class MaskedDiffusion(LightningModule):
    def __init__(self, vocab_size: int = 12, ema_decay: float = 0.999) -> None:
        super().__init__()
        self.mask_index, self.neg_infinity, self.ema_decay = vocab_size, -1e6, ema_decay
        self.backbone = DIT(vocab_size + 1)
        self.ema = copy.deepcopy(self.backbone).requires_grad_(False)

    def _subs_parameterization(self, logits: Any, xt: Any) -> Any:
        logits[:, :, self.mask_index] += self.neg_infinity
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        keep = (xt != self.mask_index)[..., None]
        onehot = F.one_hot(xt, logits.size(-1)).bool()
        return torch.where(keep, torch.where(onehot, 0.0, self.neg_infinity), logits)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x0, mask = batch["input_ids"], batch["attention_mask"]
        t = torch.rand(x0.shape[0], device=x0.device) * (1 - 1e-3) + 1e-3
        move = torch.rand(*x0.shape, device=x0.device) < t[:, None]
        xt = torch.where(move, self.mask_index, x0)
        log_p = self._subs_parameterization(self.backbone(xt, -torch.log1p(-t * 0.999)), xt)
        nll = -torch.gather(log_p, -1, x0[:, :, None]).squeeze(-1) / t[:, None]
        loss = (nll * mask).sum() / mask.sum()
        self.log("trainer/loss", loss)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        for averaged, p in zip(self.ema.parameters(), self.backbone.parameters(), strict=True):
            averaged.lerp_(p.detach(), 1 - self.ema_decay)


class SingleRNN(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size, hidden_size, 1, batch_first=True, bidirectional=True)
        self.proj = nn.Linear(hidden_size * 2, input_size)

    def forward(self, x: Any) -> Any:
        rnn_output, _ = self.rnn(x)
        return self.proj(rnn_output.contiguous().view(-1, rnn_output.shape[2])).view(x.shape)


@right(
    "encoder|enc_norm|bottleneck row_rnn.0|row_norm.0|col_rnn.0|col_norm.0 row_rnn.1|row_norm.1|col_rnn.1|col_norm.1"
    " row_rnn.2|row_norm.2|col_rnn.2|col_norm.2 output|decoder",
    name="separation by a dual-path recurrent network",
)
class DPRNNTasNet(nn.Module):
    def __init__(
        self, enc_dim: int = 6, feature_dim: int = 4, num_spk: int = 2, layer: int = 3, segment: int = 4
    ) -> None:
        super().__init__()
        self.num_spk, self.segment_size = num_spk, segment
        self.encoder = nn.Conv1d(1, enc_dim, 4, stride=2, bias=False)
        self.decoder = nn.ConvTranspose1d(enc_dim, 1, 4, stride=2, bias=False)
        self.enc_norm, self.bottleneck = nn.GroupNorm(1, enc_dim), nn.Conv1d(enc_dim, feature_dim, 1, bias=False)
        self.row_rnn, self.col_rnn = nn.ModuleList([]), nn.ModuleList([])
        self.row_norm, self.col_norm = nn.ModuleList([]), nn.ModuleList([])
        for _ in range(layer):
            self.row_rnn.append(SingleRNN(feature_dim, 5))
            self.col_rnn.append(SingleRNN(feature_dim, 5))
            self.row_norm.append(nn.GroupNorm(1, feature_dim, eps=1e-8))
            self.col_norm.append(nn.GroupNorm(1, feature_dim, eps=1e-8))
        self.output = nn.Conv1d(feature_dim, enc_dim * num_spk, 1)

    def forward(self, mixture: Any) -> Any:
        enc = F.relu(self.encoder(mixture.unsqueeze(1)))
        feature = self.bottleneck(self.enc_norm(enc))
        batch_size, n, length = feature.shape
        rest = -length % self.segment_size
        out = F.pad(feature, (0, rest)).view(batch_size, n, -1, self.segment_size).transpose(2, 3).contiguous()
        _, _, dim1, dim2 = out.shape
        for i in range(len(self.row_rnn)):
            row_input = out.permute(0, 3, 2, 1).contiguous().view(batch_size * dim2, dim1, -1)
            row_output = self.row_rnn[i](row_input)
            row_output = row_output.view(batch_size, dim2, dim1, -1).permute(0, 3, 2, 1).contiguous()
            out = out + self.row_norm[i](row_output)
            col_input = out.permute(0, 2, 3, 1).contiguous().view(batch_size * dim1, dim2, -1)
            col_output = self.col_rnn[i](col_input)
            col_output = col_output.view(batch_size, dim1, dim2, -1).permute(0, 3, 1, 2).contiguous()
            out = out + self.col_norm[i](col_output)
        out = out.transpose(2, 3).reshape(batch_size, n, -1)[..., :length]
        masks = torch.sigmoid(self.output(out)).view(batch_size, self.num_spk, -1, length)
        masked = enc.unsqueeze(1) * masks
        return self.decoder(masked.view(batch_size * self.num_spk, -1, length)).view(batch_size, self.num_spk, -1)


class ConvFeatures(nn.Module):
    def __init__(self, conv_layers: list[tuple[int, int, int]]) -> None:
        super().__init__()
        in_d = 1
        self.conv_layers = nn.ModuleList()
        for i, (dim, k, stride) in enumerate(conv_layers):
            conv = nn.Conv1d(in_d, dim, k, stride=stride, bias=False)
            extra = [nn.GroupNorm(dim, dim)] if i == 0 else []
            self.conv_layers.append(nn.Sequential(conv, nn.Dropout(p=0.0), *extra, nn.GELU()))
            in_d = dim

    def forward(self, x: Any) -> Any:
        x = x.unsqueeze(1)
        for conv in self.conv_layers:
            x = conv(x)
        return x


class HubertEncoder(nn.Module):
    def __init__(self, dim: int, num_layers: int, layerdrop: float) -> None:
        super().__init__()
        self.pos_conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(dim, dim, 3, padding=1, groups=2))
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(dim, 2, dim, 0.0) for _ in range(num_layers)])
        self.layer_norm, self.layerdrop = nn.LayerNorm(dim), layerdrop

    def forward(self, x: Any) -> tuple[Any, list[Any]]:
        x = x + F.gelu(self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        x = self.layer_norm(x).transpose(0, 1)
        layer_results = []
        for layer in self.layers:
            dropout_probability = np.random.random()
            if not self.training or (dropout_probability > self.layerdrop):
                x = layer(x)
                layer_results.append(x)
        return x.transpose(0, 1), layer_results


@right(
    "encoder.layers.0-2 final_proj",
    rising=(
        *strictly("feature_extractor.conv_layers.0 feature_extractor.conv_layers.1 feature_extractor.conv_layers.2"),
        *strictly("feature_extractor.conv_layers.2 encoder.layers.0"),
        "feature_extractor.conv_layers.2 post_extract_proj encoder.pos_conv encoder.layers.0",
        "mask_emb encoder.layers.1",
    ),
    name="speech pretrained on masked units, with LayerDrop",
)
class HubertPretrain(nn.Module):
    def __init__(self, dim: int = 4, num_classes: int = 7, mask_prob: float = 0.5) -> None:
        super().__init__()
        self.feature_extractor = ConvFeatures([(4, 5, 3), (4, 3, 2), (6, 3, 2)])
        self.post_extract_proj = nn.Linear(6, dim)
        self.mask_prob, self.logit_temp = mask_prob, 0.1
        self.mask_emb = nn.Parameter(torch.FloatTensor(dim).uniform_())
        self.encoder = HubertEncoder(dim, 3, layerdrop=0.05)
        self.layer_norm = nn.LayerNorm(6)
        self.final_proj = nn.Linear(dim, 5)
        self.label_embs = nn.Parameter(torch.randn(num_classes, 5))

    def apply_mask(self, x: Any) -> tuple[Any, Any]:
        mask = torch.rand(x.shape[:2], device=x.device) < self.mask_prob
        return torch.where(mask.unsqueeze(-1), self.mask_emb.to(x.dtype), x), mask

    def forward(self, source: Any, target: Any = None, mask: bool = True, features_only: bool = False) -> Any:
        features = self.layer_norm(self.feature_extractor(source).transpose(1, 2))
        features = self.post_extract_proj(features)
        if mask:
            x, mask_indices = self.apply_mask(features)
        else:
            x, mask_indices = features, None
        x, _ = self.encoder(x)
        if features_only:
            return {"x": x, "features": features}
        logits = F.cosine_similarity(self.final_proj(x).unsqueeze(2), self.label_embs, dim=-1) / self.logit_temp
        return {"logits": logits, "target": None if target is None else target[:, : x.size(1)], "mask": mask_indices}


@right(
    "embedding lstm.weight_ih_l0|lstm.weight_hh_l0 lstm.weight_ih_l1|lstm.weight_hh_l1"
    " lstm.weight_ih_l2|lstm.weight_hh_l2 distribution_mu|distribution_presigma",
    name="probabilistic forecasting, one step of time per call",
)
class DeepAR(LightningModule):
    def __init__(self, num_class: int = 5, cov_dim: int = 3, lstm_layers: int = 3, hidden_dim: int = 4) -> None:
        super().__init__()
        self.lstm_layers, self.lstm_hidden_dim = lstm_layers, hidden_dim
        self.embedding = nn.Embedding(num_class, 4)
        self.lstm = nn.LSTM(1 + cov_dim + 4, hidden_dim, lstm_layers, bias=True, batch_first=False, dropout=0.1)
        for names in self.lstm._all_weights:
            for name in filter(lambda n: "bias" in n, names):
                bias = getattr(self.lstm, name)
                n = bias.size(0)
                bias.data[n // 4 : n // 2].fill_(1.0)
        self.distribution_presigma = nn.Linear(hidden_dim * lstm_layers, 1)
        self.distribution_mu = nn.Linear(hidden_dim * lstm_layers, 1)

    def forward(self, x: Any, idx: Any, hidden: Any, cell: Any) -> Any:
        onehot_embed = self.embedding(idx)
        lstm_input = torch.cat((x, onehot_embed.unsqueeze(0)), dim=2)
        _output, (hidden, cell) = self.lstm(lstm_input, (hidden, cell))
        hidden_permute = hidden.permute(1, 2, 0).contiguous().view(hidden.shape[1], -1)
        mu = self.distribution_mu(hidden_permute)
        sigma = F.softplus(self.distribution_presigma(hidden_permute))
        return torch.squeeze(mu, 1), torch.squeeze(sigma, 1), hidden, cell

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        train_batch, idx, labels = batch
        hidden = torch.zeros(self.lstm_layers, idx.shape[0], self.lstm_hidden_dim, device=self.device)
        cell = torch.zeros_like(hidden)
        loss = torch.zeros(1, device=self.device)
        for t in range(train_batch.shape[0]):
            mu, sigma, hidden, cell = self(train_batch[t].unsqueeze(0), idx, hidden, cell)
            loss = loss - torch.distributions.Normal(mu, sigma + 1e-6).log_prob(labels[t]).mean()
        return loss.sum() / train_batch.shape[0]


class RelAttention(nn.Module):
    def __init__(self, d_model: int, n_head: int = 2) -> None:
        super().__init__()
        self.n_head, self.d_head = n_head, d_model // n_head
        self.q_net, self.kv_net = nn.Linear(d_model, d_model, bias=False), nn.Linear(d_model, 2 * d_model, bias=False)
        self.r_net, self.o_net = nn.Linear(d_model, d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.layer_norm = nn.LayerNorm(d_model)

    def _rel_shift(self, x: Any) -> Any:
        zero_pad = torch.zeros((x.size(0), 1, *x.size()[2:]), device=x.device, dtype=x.dtype)
        x_padded = torch.cat([zero_pad, x], dim=1)
        return x_padded.view(x.size(1) + 1, x.size(0), *x.size()[2:])[1:].view_as(x)

    def forward(self, w: Any, r: Any, r_w_bias: Any, r_r_bias: Any, attn_mask: Any = None, mems: Any = None) -> Any:
        qlen, bsz = w.size(0), w.size(1)
        cat = torch.cat([mems, w], 0) if mems is not None else w
        w_head_k, w_head_v = torch.chunk(self.kv_net(cat), 2, dim=-1)
        klen = w_head_k.size(0)
        w_head_q = self.q_net(w).view(qlen, bsz, self.n_head, self.d_head)
        w_head_k = w_head_k.view(klen, bsz, self.n_head, self.d_head)
        w_head_v = w_head_v.view(klen, bsz, self.n_head, self.d_head)
        r_head_k = self.r_net(r).view(klen, self.n_head, self.d_head)
        ac = torch.einsum("ibnd,jbnd->ijbn", w_head_q + r_w_bias, w_head_k)
        bd = self._rel_shift(torch.einsum("ibnd,jnd->ijbn", w_head_q + r_r_bias, r_head_k))
        score = (ac + bd).mul_(1 / self.d_head**0.5)
        if attn_mask is not None and attn_mask.any().item():
            score = score.masked_fill(attn_mask[:, :, None, None], -1e9)
        vec = torch.einsum("ijbn,jbnd->ibnd", F.softmax(score, dim=1), w_head_v)
        return self.layer_norm(w + self.o_net(vec.contiguous().view(qlen, bsz, -1)))


class RelLayer(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dec_attn, self.pos_ff = RelAttention(d_model), feed_forward(d_model)

    def forward(self, dec_inp: Any, r: Any, r_w_bias: Any, r_r_bias: Any, dec_attn_mask: Any, mems: Any) -> Any:
        output = self.dec_attn(dec_inp, r, r_w_bias, r_r_bias, attn_mask=dec_attn_mask, mems=mems)
        return output + self.pos_ff(output)


@right("word_emb|r_w_bias|r_r_bias layers.0-2 out_layer", name="language model with memories of the last segment")
class TransformerXL(nn.Module):
    def __init__(self, n_token: int = 15, n_layer: int = 3, d_model: int = 8, mem_len: int = 4) -> None:
        super().__init__()
        self.mem_len, self.n_layer = mem_len, n_layer
        self.word_emb = nn.Embedding(n_token, d_model)
        self.layers = nn.ModuleList()
        for _ in range(n_layer):
            self.layers.append(RelLayer(d_model))
        self.out_layer = nn.Linear(d_model, n_token)
        self.register_buffer("inv_freq", 1 / (10000 ** (torch.arange(0.0, d_model, 2.0) / d_model)))
        self._create_params(d_model)

    def _create_params(self, d_model: int) -> None:
        self.r_w_bias = nn.Parameter(torch.zeros(2, d_model // 2))
        self.r_r_bias = nn.Parameter(torch.zeros(2, d_model // 2))

    def init_mems(self) -> list[Any]:
        return [torch.empty(0, dtype=self.r_w_bias.dtype, device=self.r_w_bias.device) for _ in range(self.n_layer + 1)]

    def _update_mems(self, hids: list[Any], mems: list[Any]) -> list[Any]:
        with torch.no_grad():
            return [torch.cat([m, h], dim=0)[-self.mem_len :].detach() for m, h in zip(mems, hids, strict=True)]

    def forward(self, data: Any, target: Any, *mems: Any) -> list[Any]:
        mems = list(mems) if mems else self.init_mems()
        qlen, mlen = data.size(0), mems[0].size(0) if mems[0].numel() else 0
        core = self.word_emb(data)
        mask = torch.triu(core.new_ones(qlen, mlen + qlen), diagonal=1 + mlen).bool()
        pos_seq = torch.arange(mlen + qlen - 1, -1, -1.0, device=core.device)
        sinusoid = torch.outer(pos_seq, self.inv_freq)
        pos_emb = torch.cat([sinusoid.sin(), sinusoid.cos()], dim=-1)[:, None, :]
        hids = [core]
        for i, layer in enumerate(self.layers):
            mems_i = mems[i] if mlen > 0 else None
            core = layer(core, pos_emb, self.r_w_bias, self.r_r_bias, dec_attn_mask=mask, mems=mems_i)
            hids.append(core)
        loss = F.cross_entropy(self.out_layer(core).flatten(0, 1), target.flatten(), reduction="none")
        new_mems = self._update_mems(hids, [m.view(-1, *core.shape[1:]) for m in mems])
        return [loss.view_as(target), new_mems]


@dataclass
class EncoderOutput:
    last_hidden_state: Any
    hidden_states: tuple[Any, ...] | None = None


class EncoderStack(nn.Module):
    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [nn.TransformerEncoderLayer(hidden_size, 2, hidden_size, batch_first=True) for _ in range(num_layers)]
        )

    def forward(self, x: Any, mask: Any, output_hidden_states: bool = False) -> EncoderOutput:
        all_hidden: tuple[Any, ...] = ()
        for module in self.layer:
            if output_hidden_states:
                all_hidden = (*all_hidden, x)
            x = module(x, src_key_padding_mask=mask)
        return EncoderOutput(x, (*all_hidden, x) if output_hidden_states else None)


class Backbone(nn.Module):
    def __init__(self, vocab: int = 20, hidden_size: int = 8, num_layers: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word": nn.Embedding(vocab, hidden_size), "norm": nn.LayerNorm(hidden_size)})
        self.encoder = EncoderStack(hidden_size, num_layers)

    def forward(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool = True) -> EncoderOutput:
        x = self.embeddings["norm"](self.embeddings["word"](input_ids))
        return self.encoder(x, attention_mask == 0, output_hidden_states=output_hidden_states)


class WeightedLayerPooling(nn.Module):
    def __init__(self, num_hidden_layers: int, layer_start: int) -> None:
        super().__init__()
        self.layer_start = layer_start
        self.layer_weights = nn.Parameter(torch.ones(num_hidden_layers + 1 - layer_start))

    def forward(self, hidden_states: Any) -> Any:
        stacked = torch.stack(hidden_states)[self.layer_start :]
        weights = self.layer_weights[:, None, None, None].expand(stacked.size())
        return (weights * stacked).sum(dim=0) / self.layer_weights.sum()


@right(
    "backbone.embeddings backbone.encoder.layer.0-2 fc",
    name="a competition's regressor: layers pooled with weights, dropout five times",
)
class CrossEncoder(nn.Module):
    def __init__(self, num_layers: int = 3, hidden_size: int = 8, target_size: int = 1) -> None:
        super().__init__()
        self.backbone = Backbone(num_layers=num_layers, hidden_size=hidden_size)
        self.fc = nn.Linear(hidden_size, target_size)
        self.pooler = WeightedLayerPooling(num_layers, layer_start=1)
        self.dropouts = nn.ModuleList([nn.Dropout(0.1 * (i + 1)) for i in range(5)])
        self._init_weights(self.fc)

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.02)
            if module.bias is not None:
                module.bias.data.zero_()

    def feature(self, inputs: dict[str, Any]) -> Any:
        for name in ("token_type_ids", "offset_mapping"):
            inputs.pop(name, None)
        outputs = self.backbone(**inputs)
        x = self.pooler(outputs.hidden_states)
        mask = inputs["attention_mask"].unsqueeze(-1).expand(x.size()).float()
        return torch.sum(x * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)

    def forward(self, inputs: dict[str, Any], labels: Any = None) -> Any:
        feature = self.feature(inputs)
        logits = torch.stack([self.fc(dropout(feature)) for dropout in self.dropouts]).mean(0)
        loss = F.smooth_l1_loss(logits, labels) if labels is not None else None
        return logits if loss is None else (loss, logits)


class BidirectionalLSTM(nn.Module):
    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(n_in, n_hidden, bidirectional=True)
        self.embedding = nn.Linear(n_hidden * 2, n_out)

    def forward(self, input: Any) -> Any:
        recurrent, _ = self.rnn(input)
        t, b, h = recurrent.size()
        return self.embedding(recurrent.view(t * b, h)).view(t, b, -1)


class CRNN(nn.Module):
    def __init__(self, height: int, nc: int, n_class: int, nh: int) -> None:
        super().__init__()
        if height % 16 != 0:
            raise ValueError("the height has to be a multiple of 16")
        ks, ps, nm = [3, 3, 2], [1, 1, 0], [4, 6, 6]
        cnn = nn.Sequential()

        def conv_relu(i: int, batch_normalization: bool = False) -> None:
            n_in = nc if i == 0 else nm[i - 1]
            cnn.add_module(f"conv{i}", nn.Conv2d(n_in, nm[i], ks[i], 1, ps[i]))
            if batch_normalization:
                cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(nm[i]))
            cnn.add_module(f"relu{i}", nn.ReLU(True))

        conv_relu(0)
        cnn.add_module("pooling0", nn.MaxPool2d(4, 4))
        conv_relu(1, batch_normalization=True)
        cnn.add_module("pooling1", nn.MaxPool2d((2, 2), (2, 1), (0, 1)))
        conv_relu(2)
        self.cnn = cnn
        self.rnn = nn.Sequential(
            OrderedDict(lower=BidirectionalLSTM(6, nh, nh), upper=BidirectionalLSTM(nh, nh, n_class))
        )

    def forward(self, input: Any) -> Any:
        conv = self.cnn(input)
        _b, _c, h, _w = conv.size()
        assert h == 1, "the height of conv must be 1"
        conv = conv.squeeze(2).permute(2, 0, 1)
        return self.rnn(conv)


@right(
    rising=(
        *strictly("cnn.conv0 cnn.conv1 cnn.conv2 rnn.lower rnn.upper"),
        *strictly("cnn.conv0 cnn.batchnorm1 cnn.conv2"),
    ),
    name="reading text in images: convolutions by name, then two recurrent layers",
)
def crnn() -> nn.Module:
    return CRNN(16, 1, 9, 5)
