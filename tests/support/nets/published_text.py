"""Networks as their authors' repositories write them: text, sound, and text with pictures."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax, one_hot

from tests.support.nets.collection import Layer, layers, lin, right


class Encoder(nn.Module):
    """Layers and a norm over what is embedded already."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.layers, self.norm = layers(count), nn.LayerNorm(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm(x)
        return y


class Crossing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.src_attn, self.feed_forward = Layer(), Layer(), Layer()

    def forward(self, x: Tensor, memory: Tensor, src_mask: Any = None, tgt_mask: Any = None) -> Tensor:
        y: Tensor = self.feed_forward(self.src_attn(self.self_attn(x), memory))
        return y


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = layers(2, Crossing), nn.LayerNorm(4)

    def forward(self, x: Tensor, memory: Tensor, src_mask: Any = None, tgt_mask: Any = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory, src_mask, tgt_mask)
        y: Tensor = self.norm(x)
        return y


@right("src_embed encoder.layers.0-1 generator", "tgt_embed decoder.layers.0-1 generator", name="annotated transformer")
class Annotated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.src_embed, self.tgt_embed = nn.Sequential(nn.Embedding(9, 4)), nn.Sequential(nn.Embedding(9, 4))
        self.generator = lin()

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        memory = self.encode(src, src_mask)
        y: Tensor = self.generator(self.decode(memory, src_mask, tgt, tgt_mask))
        return y

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        return self.encoder(self.src_embed(src), src_mask)  # type: ignore[no-any-return]

    def decode(self, memory: Tensor, src_mask: Tensor, tgt: Tensor, tgt_mask: Tensor) -> Tensor:
        return self.decoder(self.tgt_embed(tgt), memory, src_mask, tgt_mask)  # type: ignore[no-any-return]


@right("encoder transformer_encoder.layers.0-1 decoder", name="a tutorial's language model")
class TutorialTransformer(nn.Module):
    """The embedding is called encoder, the linear layer on top decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.ninp, self.src_mask = lin(), 4, None
        self.transformer_encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2)
        self.encoder = nn.Embedding(9, 4)

    def forward(self, src: Tensor, has_mask: bool = True) -> Tensor:
        src = self.encoder(src) * 2.0
        output = self.transformer_encoder(src)
        return log_softmax(self.decoder(output), dim=-1)


@right("encoder rnn.weight_ih_l0 rnn.weight_ih_l1 decoder", name="a recurrent language model")
class WordModel(nn.Module):
    def __init__(self, tie: bool = False) -> None:
        super().__init__()
        self.drop, self.encoder = nn.Dropout(0.5), nn.Embedding(9, 4)
        self.rnn, self.decoder = nn.LSTM(4, 4, 2), nn.Linear(4, 9)
        if tie:
            self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        emb = self.drop(self.encoder(x))
        output, hidden = self.rnn(emb, hidden)
        decoded = self.decoder(self.drop(output)).view(-1, 9)
        return log_softmax(decoded, dim=1), hidden


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.fc = nn.Embedding(9, 4), nn.GRU(4, 4, 2), lin()

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor]:
        outputs, hidden = self.rnn(self.embedding(src))
        return outputs, self.fc(hidden[-1]).tanh()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.v = nn.Linear(8, 4), nn.Linear(4, 1, bias=False)

    def forward(self, hidden: Tensor, outputs: Tensor) -> Tensor:
        hidden = hidden.unsqueeze(0).repeat(outputs.shape[0], 1, 1)
        return self.v(self.attn(torch.cat((hidden, outputs), 2)).tanh()).squeeze(2).softmax(0)  # type: ignore[no-any-return]


class Speaker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.embedding = Attention(), nn.Embedding(9, 4)
        self.rnn, self.fc_out = nn.GRU(8, 4, 2), nn.Linear(4, 9)

    def forward(self, word: Tensor, hidden: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        a = self.attention(hidden, outputs)
        x = torch.cat((self.embedding(word), (a * outputs).sum(0)), 1).unsqueeze(0)
        output, hidden = self.rnn(x, hidden.unsqueeze(0))
        return self.fc_out(output.squeeze(0)), hidden.squeeze(0)


@right(
    "encoder.embedding encoder.rnn.weight_ih_l0 encoder.rnn.weight_ih_l1 decoder.fc_out",
    "decoder.embedding decoder.rnn.weight_ih_l0 decoder.rnn.weight_ih_l1 decoder.fc_out",
    name="sequence to sequence with attention and a teacher",
)
class Seq2Seq(nn.Module):
    """A loop over the length of the target, a coin for the teacher, an output that is filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = Speaker(), Reader()

    def forward(self, src: Tensor, trg: Tensor, teacher_forcing_ratio: float = 0.5) -> Tensor:
        length, size = trg.shape[0], trg.shape[1]
        outputs = torch.zeros(length, size, 9)
        read, hidden = self.encoder(src)
        word = trg[0]
        for t in range(1, length):
            output, hidden = self.decoder(word, hidden, read)
            outputs[t] = output
            word = trg[t] if random.random() < teacher_forcing_ratio else output.argmax(1)
        return outputs


class Prenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = layers(2, lin)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = one(x).relu()
        return x


class Acoustic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = layers(3, lambda: nn.Sequential(nn.Conv1d(4, 4, 5), nn.BatchNorm1d(4)))
        self.lstm = nn.LSTM(4, 2, 1, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for one in self.convolutions:
            x = one(x).relu()
        y: Tensor = self.lstm(x.transpose(1, 2))[0]
        return y


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prenet, self.attention_rnn, self.attention_layer = Prenet(), nn.LSTMCell(8, 4), lin()
        self.decoder_rnn, self.linear_projection, self.gate_layer = nn.LSTMCell(8, 4), lin(), lin()

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.attention_rnn(torch.cat((x, memory[:, 0]), -1))
        seen = self.attention_layer(h) * memory.mean(1)
        h, _ = self.decoder_rnn(torch.cat((h, seen), -1))
        return self.linear_projection(h), self.gate_layer(h)

    def forward(self, memory: Tensor, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.prenet(inputs)
        mels, gates = [], []
        while len(mels) < inputs.size(0) - 1:
            mel, gate = self.step(inputs[len(mels)], memory)
            mels += [mel]
            gates += [gate]
        return torch.stack(mels), torch.stack(gates)


@right(
    rising=(
        "embedding encoder.convolutions.0 encoder.convolutions.2 encoder.lstm decoder.decoder_rnn "
        "postnet.convolutions.0 postnet.convolutions.1",
        "encoder.convolutions.2 decoder.prenet decoder.linear_projection postnet.convolutions.1",
    ),
    name="Tacotron 2",
)
class TextToSpeech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.encoder, self.decoder, self.postnet = nn.Embedding(9, 4), Acoustic(), Frames(), nn.Module()
        self.postnet.convolutions = layers(2, lambda: nn.Sequential(nn.Conv1d(4, 4, 5), nn.BatchNorm1d(4)))

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        text, lengths, mels = inputs
        seen = self.encoder(self.embedding(text).transpose(1, 2), lengths)
        found, gates = self.decoder(seen, mels, lengths)
        post = found
        for one in self.postnet.convolutions:
            post = one(post).tanh()
        return found + post, gates


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = layers(3, lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.GroupNorm(1, 4), nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        for one in self.conv_layers:
            x = one(x)
        return x


class Context(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm, self.layers = nn.LayerNorm(4), layers()
        self.pos_conv = nn.Sequential(nn.Conv1d(4, 4, 3), nn.GELU())

    def forward(self, x: Tensor, padding_mask: Tensor | None = None, layer: int | None = None) -> tuple[Tensor, Any]:
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.layer_norm(x)
        kept = []
        for i, one in enumerate(self.layers):
            x = one(x)
            if layer is not None:
                kept.append(x)
            if i == layer:
                break
        return x, kept


@right(
    "feature_extractor.conv_layers.0-2 encoder.layers.0|post_extract_proj|mask_emb|encoder.pos_conv "
    "encoder.layers.1 final_proj|label_embs_concat",
    name="HuBERT",
)
class HiddenUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label_embs_concat, self.mask_emb = nn.Parameter(torch.zeros(9, 4)), nn.Parameter(torch.zeros(4))
        self.final_proj, self.encoder, self.feature_extractor = lin(), Context(), Waves()
        self.layer_norm, self.post_extract_proj = nn.LayerNorm(4), lin()
        self.mask_prob = 0.65

    def forward(self, source: Tensor, padding_mask: Tensor | None = None, mask: bool = True) -> Tensor:
        features = self.feature_extractor(source)
        features = self.post_extract_proj(self.layer_norm(features.transpose(1, 2)))
        if mask and self.mask_prob > 0:
            where = torch.rand(features.shape[0], features.shape[1], 1)
            x = torch.where(where < self.mask_prob, self.mask_emb, features)
        else:
            x = features
        x, _ = self.encoder(x, padding_mask=padding_mask)
        return torch.cosine_similarity(self.final_proj(x).unsqueeze(-2), self.label_embs_concat, dim=-1)


@right(rising=("encoder.0 encoder.1 lstm.weight_ih_l0 lstm.weight_ih_l1 decoder.0 decoder.1",), name="Demucs")
class Sources(nn.Module):
    """The decoder's list is filled from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.encoder.append(nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 8, 1), nn.GLU(1)))
            self.decoder.insert(0, nn.Sequential(nn.Conv1d(4, 8, 3), nn.GLU(1), nn.ConvTranspose1d(4, 4, 3)))
        self.lstm = nn.LSTM(4, 4, 2)

    def forward(self, mix: Tensor) -> Tensor:
        x, saved = mix, []
        for encode in self.encoder:
            x = encode(x)
            saved.append(x)
        x = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        for decode in self.decoder:
            x = decode(x + saved.pop(-1))
        return x


@right("bn0 conv_block1-3 fc1|fc_audioset", name="sounds of a set")
class Sounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from tests.support.nets.collection import Twice

        self.fc_audioset, self.fc1, self.bn0 = lin(), lin(), nn.BatchNorm2d(4)
        self.conv_block1, self.conv_block2, self.conv_block3 = Twice(), Twice(), Twice()

    def forward(self, x: Tensor, mixup_lambda: Any = None) -> dict[str, Tensor]:
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        if self.training and mixup_lambda is not None:
            x = x * mixup_lambda
        x = self.conv_block3(self.conv_block2(self.conv_block1(x)))
        x = torch.mean(x, dim=3)
        (x1, _), x2 = torch.max(x, dim=2), torch.mean(x, dim=2)
        x = self.fc1(x1 + x2).relu()
        return {"clipwise": self.fc_audioset(x).sigmoid(), "embedding": x}


@right(rising=("conv.0 rnns.0 rnns.1 fc.0",), name="DeepSpeech 2")
class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rnns = nn.Sequential(nn.LayerNorm(4), lin()), layers(2, lambda: nn.GRU(4, 4))
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Hardtanh())

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.cpu().int()
        x = self.conv(x)
        sizes = x.size()
        x = x.view(sizes[0], sizes[1] * sizes[2], sizes[3]).transpose(1, 2).transpose(0, 1).contiguous()
        for rnn in self.rnns:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths)
            x, _ = rnn(x)
            x, _ = nn.utils.rnn.pad_packed_sequence(x)
        y: Tensor = self.fc(x).transpose(0, 1)
        return y


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.attention, self.embedding = nn.GRU(4, 4), lin(), nn.Embedding(9, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        f, h = self.gru(self.embedding(x), h)
        return (self.attention(f).softmax(0) * f).sum(0, keepdim=True), h


@right(rising=("word_att.embedding word_att.gru sent_att.gru sent_att.fc",), name="words, then sentences")
class Hierarchical(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sent_att, self.word_att = nn.Module(), Words()
        self.sent_att.gru, self.sent_att.fc = nn.GRU(4, 4), lin()

    def forward(self, document: Tensor) -> Tensor:
        found, h = [], torch.zeros(1, 2, 4)
        for sentence in document.permute(1, 0, 2):
            output, h = self.word_att(sentence.permute(1, 0), h)
            found.append(output)
        x, _ = self.sent_att.gru(torch.cat(found, 0))
        y: Tensor = self.sent_att.fc(x[-1])
        return y


@right(
    rising=(
        "word_embed lstm.weight_ih_l0 lstm.weight_ih_l1 lstm.weight_ih_l2 mlp_arc_d arc_attn",
        "char_embed feat lstm.weight_ih_l0",
        "lstm.weight_ih_l2 mlp_rel_h rel_attn",
    ),
    name="a parser with biaffine attention",
)
class Parser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rel_attn, self.arc_attn = nn.Bilinear(4, 4, 4), nn.Bilinear(4, 4, 1)
        self.mlp_arc_d, self.mlp_arc_h, self.mlp_rel_d, self.mlp_rel_h = lin(), lin(), lin(), lin()
        self.word_embed, self.char_embed, self.feat = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.LSTM(4, 4)
        self.lstm = nn.LSTM(8, 2, 3, bidirectional=True)

    def forward(self, words: Tensor, feats: Tensor) -> tuple[Tensor, Tensor]:
        mask = words.ne(0)
        x = torch.cat((self.word_embed(words), self.feat(self.char_embed(feats))[0]), -1)
        x = self.lstm(x)[0] * mask.unsqueeze(-1)
        arc = self.arc_attn(self.mlp_arc_d(x), self.mlp_arc_h(x))
        return arc, self.rel_attn(self.mlp_rel_d(x), self.mlp_rel_h(x))


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings, self.LayerNorm = nn.Embedding(9, 4), nn.Embedding(9, 4), lin()

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(torch.arange(ids.size(1))))
        return y


class Exchange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual_attention, self.lang, self.visn = Layer(), Layer(), Layer()

    def forward(self, lang: Tensor, visn: Tensor) -> tuple[Tensor, Tensor]:
        return self.lang(self.visual_attention(lang, visn)), self.visn(self.visual_attention(visn, lang))


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visn_fc, self.layer, self.x_layers, self.r_layers = lin(), layers(3), layers(2, Exchange), layers(2)

    def forward(self, lang: Tensor, visn: Tensor) -> tuple[Tensor, Tensor]:
        visn = self.visn_fc(visn)
        for one in self.layer:
            lang = one(lang)
        for one in self.r_layers:
            visn = one(visn)
        for one in self.x_layers:
            lang, visn = one(lang, visn)
        return lang, visn


@right(
    "embeddings encoder.layer.0-2 encoder.x_layers.0-1 answer",
    "encoder.visn_fc encoder.r_layers.0-1 encoder.x_layers.0-1 pooler",
    name="two streams that exchange",
)
class CrossModal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer, self.pooler, self.encoder, self.embeddings = lin(), lin(), Streams(), Hidden()

    def forward(self, ids: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        lang, visn = self.encoder(self.embeddings(ids), boxes)
        return self.answer(lang[:, 0]), self.pooler(visn)


class GatedCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.alpha = Layer(), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Tensor) -> Tensor:
        y: Tensor = x + self.attn(x, media) * self.alpha.tanh()
        return y


@right(
    "layers.0|crossed.0 layers.1|crossed.1 norm|to_logits",
    rising=(
        "vision.layers.0 vision.layers.1 resampler.layers.0 resampler.layers.1 crossed.0 layers.1 to_logits",
        "resampler.layers.1 token_emb to_logits",
    ),
    name="gated cross attention in a language model",
)
class Flamingo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_logits, self.norm, self.token_emb = nn.Linear(4, 9, bias=False), nn.LayerNorm(4), nn.Embedding(9, 4)
        self.layers, self.crossed = layers(), layers(2, GatedCross)
        self.resampler, self.vision = Resampler(), Encoder()

    def forward(self, text: Tensor, images: Tensor | None = None) -> Tensor:
        media = self.resampler(self.vision(images))
        x = self.token_emb(text)
        for layer, cross in zip(self.layers, self.crossed, strict=True):
            x = layer(cross(x, media))
        y: Tensor = self.to_logits(self.norm(x))
        return y


class Resampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents, self.layers = nn.Parameter(torch.zeros(3, 4)), layers()

    def forward(self, media: Tensor) -> Tensor:
        x = self.latents.expand(media.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, media)
        return x


class Pool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding, self.q_proj, self.c_proj = nn.Parameter(torch.zeros(5, 4)), lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0) + self.positional_embedding[:, None, :]
        y: Tensor = self.c_proj(self.q_proj(x[:1])).squeeze(0)
        return y


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from tests.support.nets.collection import Twice

        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = nn.Sequential(Twice(), Twice()), nn.Sequential(Twice(), Twice())
        self.attnpool = Pool()

    def forward(self, x: Tensor) -> Tensor:
        x = x.type(self.conv1.weight.dtype)
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        y: Tensor = self.attnpool(x)
        return y


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(Layer(), Layer(), Layer())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.resblocks(x)
        return y


@right(
    "token_embedding|positional_embedding transformer.resblocks.0-2 ln_final|text_projection|logit_scale",
    rising=(
        "visual.conv1 visual.layer1.0 visual.layer1.1 visual.layer2.0 visual.layer2.1 visual.attnpool",
        "visual.conv1 visual.layer1.0 logit_scale",
    ),
    name="CLIP as its authors wrote it",
)
class Contrastive(nn.Module):
    """The text tower lies open in the root, next to the visual one."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer = Visual(), Text()
        self.token_embedding, self.ln_final = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.positional_embedding = nn.Parameter(torch.zeros(7, 4))
        self.text_projection = nn.Parameter(torch.zeros(4, 4))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)  # type: ignore[no-any-return]

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x)
        return x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection  # type: ignore[no-any-return]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.encode_image(image), self.encode_text(text)
        one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
        logits = self.logit_scale.exp() * one @ other.t()
        return logits, logits.t()


@right("transformer.wte|transformer.wpe transformer.h.0-2 transformer.ln_f", name="nanoGPT with a tied head")
class Nano(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(9, 4),
                "wpe": nn.Embedding(8, 4),
                "drop": nn.Dropout(0.1),
                "h": layers(3),
                "ln_f": nn.LayerNorm(4),
            }
        )
        self.lm_head = nn.Linear(4, 9, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        _, t = idx.size()
        assert t <= 8, f"cannot forward a sequence of length {t}"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            return logits, cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return self.lm_head(x[:, [-1], :]), None


@right(
    "item_emb|pos_emb attention_layers.0|attention_layernorms.0|forward_layers.0|forward_layernorms.0 "
    "attention_layers.1|attention_layernorms.1|forward_layers.1|forward_layernorms.1 last_layernorm",
    name="recommendations in sequence",
)
class Sequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item_emb, self.pos_emb = nn.Embedding(9, 4, padding_idx=0), nn.Embedding(9, 4)
        self.attention_layernorms, self.attention_layers = nn.ModuleList(), nn.ModuleList()
        self.forward_layernorms, self.forward_layers = nn.ModuleList(), nn.ModuleList()
        self.last_layernorm = nn.LayerNorm(4)
        for _ in range(2):
            self.attention_layernorms.append(nn.LayerNorm(4))
            self.attention_layers.append(nn.MultiheadAttention(4, 2))
            self.forward_layernorms.append(nn.LayerNorm(4))
            self.forward_layers.append(Layer())

    def log2feats(self, seqs: Tensor) -> Tensor:
        x = self.item_emb(seqs) * 2.0
        x = x + self.pos_emb(torch.arange(9))
        for i in range(len(self.attention_layers)):
            x = torch.transpose(x, 0, 1)
            q = self.attention_layernorms[i](x)
            y, _ = self.attention_layers[i](q, x, x)
            x = torch.transpose(q + y, 0, 1)
            x = self.forward_layers[i](self.forward_layernorms[i](x))
        return self.last_layernorm(x)  # type: ignore[no-any-return]

    def forward(self, seqs: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        x = self.log2feats(seqs)
        return (x * self.item_emb(pos)).sum(-1), (x * self.item_emb(neg)).sum(-1)


@right(
    "body.layers.0-1 body.norm|classifier",
    name="prefixes made by a network",
    rising=("prefix_encoder.embedding body.layers.0 body.layers.1 classifier", "embed body.layers.0 body.layers.1"),
)
class Prefix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.embed, self.classifier, self.prefix_encoder = Encoder(), nn.Embedding(9, 4), lin(), nn.Module()
        self.prefix_encoder.embedding, self.prefix_encoder.trans = nn.Embedding(3, 4), Layer()

    def forward(self, ids: Tensor) -> Tensor:
        prefix = self.prefix_encoder.trans(self.prefix_encoder.embedding(torch.arange(3)))
        x = torch.cat([prefix.expand(ids.shape[0], -1, -1), self.embed(ids)], 1)
        y: Tensor = self.classifier(self.body(x)[:, 0])
        return y


class Switch(nn.Module):
    """Tokens are sent to experts by index."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 3), nn.ModuleDict({f"expert_{i}": Layer() for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        probabilities = self.router(x).softmax(-1)
        chosen = one_hot(probabilities.argmax(-1), 3)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts.values()):
            where = chosen[..., i].bool()
            out[where] = expert(x[where])
        return out * probabilities.max(-1, keepdim=True).values


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Layer(), Switch()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.attention(x))
        return y


@right("embed_tokens block.0-3 final_layer_norm", name="every second layer with experts")
class SparseModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.final_layer_norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.block = nn.ModuleList([Layer(), Sparse(), Layer(), Sparse()])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for block in self.block:
            x = block(x)
        x = self.final_layer_norm(x)
        return linear(x, self.embed_tokens.weight)


@right("query.embed query.layers.0-1 scale", "passage.embed passage.layers.0-1 scale", name="retrieval of passages")
class Retrieval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from tests.support.nets.collection import Tower

        self.scale, self.passage, self.query = nn.Parameter(torch.ones(())), Tower(), Tower()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        q, p = self.query(batch["query"]).mean(1), self.passage(batch["passage"]).mean(1)
        scores = torch.einsum("bd,cd->bc", q, p) * self.scale
        return cross_entropy(scores, torch.arange(scores.size(0)))
