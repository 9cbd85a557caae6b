"""Networks of speech, series, language, tables: the right orders were written before any code looked at them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tests.support.nets.collection import Layer, layers, lin, right


def conv(a: int = 4, b: int = 4, size: int = 3) -> nn.Conv1d:
    return nn.Conv1d(a, b, size, padding=size // 2)


class Kernel(nn.Module):
    """A residual block of convolutions in two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.convs1, self.convs2 = layers(2, conv), layers(2, conv)

    def forward(self, x: Tensor) -> Tensor:
        for c1, c2 in zip(self.convs1, self.convs2, strict=True):
            x = x + c2(c1(x.relu()).relu())
        return x


@right(
    rising=("conv_pre ups.0 resblocks.0 ups.1 resblocks.2 conv_post", "ups.0 resblocks.1 ups.1 resblocks.3 conv_post"),
    name="a vocoder: three residual blocks side by side after each upsampling",
)
class Vocoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_kernels, self.num_upsamples = 2, 2
        self.conv_pre, self.conv_post = conv(), conv(4, 1)
        self.ups = layers(2, lambda: nn.Sequential(nn.ConvTranspose1d(4, 4, 2, 2), nn.Conv1d(4, 4, 1)))
        self.resblocks = layers(4, Kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i in range(self.num_upsamples):
            x = self.ups[i](x.relu())
            xs = None
            for j in range(self.num_kernels):
                y = self.resblocks[i * self.num_kernels + j](x)
                xs = y if xs is None else xs + y
            assert xs is not None
            x = xs / self.num_kernels
        return torch.tanh(self.conv_post(x.relu()))


class VariancePredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_layer = nn.Sequential(lin(), nn.ReLU(), nn.LayerNorm(4), lin(), nn.ReLU(), nn.LayerNorm(4))
        self.linear_layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_layer(self.conv_layer(x)).squeeze(-1)
        return y


class VarianceAdaptor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.duration_predictor, self.pitch_predictor = VariancePredictor(), VariancePredictor()
        self.pitch_bins = nn.Parameter(torch.linspace(0, 1, 3), requires_grad=False)
        self.pitch_embedding = nn.Embedding(4, 4)

    def forward(self, x: Tensor, pitch_target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        log_duration = self.duration_predictor(x)
        pitch = self.pitch_predictor(x)
        x = x + self.pitch_embedding(torch.bucketize(pitch if pitch_target is None else pitch_target, self.pitch_bins))
        return x, pitch, log_duration


class Stack(nn.Module):
    def __init__(self, embeds: bool) -> None:
        super().__init__()
        if embeds:
            self.src_word_emb = nn.Embedding(9, 4)
        self.position_enc = nn.Parameter(torch.zeros(1, 9, 4), requires_grad=False)
        self.layer_stack = layers(2)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "src_word_emb"):
            x = self.src_word_emb(x)
        x = x + self.position_enc[:, : x.shape[1], :]
        for layer in self.layer_stack:
            x = layer(x)
        return x


@right(
    rising=(
        "encoder.src_word_emb encoder.layer_stack.0 encoder.layer_stack.1 variance_adaptor.pitch_embedding "
        "decoder.layer_stack.0 decoder.layer_stack.1 mel_linear postnet",
        "encoder.layer_stack.1 variance_adaptor.duration_predictor",
    ),
    name="FastSpeech 2",
)
class FastSpeech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.variance_adaptor, self.decoder = Stack(True), VarianceAdaptor(), Stack(False)
        self.mel_linear = lin()
        self.postnet = nn.Sequential(lin(), nn.Tanh(), lin())

    def forward(self, texts: Tensor, p_targets: Tensor | None = None) -> Any:
        output = self.encoder(texts)
        output, p, log_d = self.variance_adaptor(output, p_targets)
        output = self.mel_linear(self.decoder(output))
        return output, self.postnet(output) + output, p, log_d


class ConformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff1, self.attn, self.conv, self.ff2 = Layer(), nn.MultiheadAttention(4, 2), Layer(), Layer()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        x = x + self.conv(x)
        y: Tensor = self.norm(x + 0.5 * self.ff2(x))
        return y


@right(
    "encoder.conv_subsample|encoder.input_projection encoder.layers.0-2 fc",
    name="Conformer with CTC in a Lightning module",
)
class ConformerTask(LightningModule):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_subsample = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.ReLU(), nn.Conv2d(2, 2, 3, 2))
            self.input_projection = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
            self.layers = layers(3, ConformerBlock)

        def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self.conv_subsample(inputs.unsqueeze(1))
            batch, channels, time, dimension = outputs.size()
            outputs = outputs.permute(0, 2, 1, 3).contiguous().view(batch, time, channels * dimension)
            outputs = self.input_projection(outputs)
            for layer in self.layers:
                outputs = layer(outputs)
            return outputs, (lengths >> 2) - 1

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.encoder = nn.Linear(4, 9, bias=False), self.Encoder()
        self.criterion = nn.CTCLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets, input_lengths, target_lengths = batch
        outputs, lengths = self.encoder(inputs, input_lengths)
        log_probs = self.fc(outputs).log_softmax(-1)
        loss: Tensor = self.criterion(log_probs.transpose(0, 1), targets, lengths, target_lengths)
        self.log("loss", loss)
        return loss


class TimeMix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_decay, self.time_first = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.key, self.value, self.receptance, self.output = lin(), lin(), lin(), lin()

    def forward(self, x: Tensor) -> Tensor:
        k, v, r = self.key(x), self.value(x), self.receptance(x)
        y: Tensor = self.output(torch.sigmoid(r) * (torch.exp(k) * v * self.time_decay + self.time_first))
        return y


class RwkvBlock(nn.Module):
    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.ln1, self.ln2 = nn.LayerNorm(4), nn.LayerNorm(4)
        if layer_id == 0:
            self.ln0 = nn.LayerNorm(4)
        self.att, self.ffn = TimeMix(), Layer()

    def forward(self, x: Tensor) -> Tensor:
        if self.layer_id == 0:
            x = self.ln0(x)
        x = x + self.att(self.ln1(x))
        y: Tensor = x + self.ffn(self.ln2(x))
        return y


@right("emb blocks.0-2 ln_out|head", name="RWKV")
class Rwkv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.ln_out = nn.Linear(4, 9, bias=False), nn.LayerNorm(4)
        self.emb = nn.Embedding(9, 4)
        self.blocks = nn.Sequential(*[RwkvBlock(i) for i in range(3)])

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.head(self.ln_out(self.blocks(self.emb(idx))))
        loss = None
        if targets is not None:
            loss = cross_entropy(x.view(-1, x.size(-1)), targets.view(-1))
        return x, loss


class S4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.D, self.log_A_real, self.C = (nn.Parameter(torch.zeros(4, 2)) for _ in range(3))
        self.output_linear = nn.Sequential(nn.Conv1d(4, 8, 1), nn.GLU(dim=-2))

    def forward(self, u: Tensor) -> tuple[Tensor, None]:
        kernel = (self.C * self.log_A_real.exp() + self.D).sum(-1)
        return self.output_linear(u * kernel[:, None]), None


@right("encoder s4_layers.0|norms.0 s4_layers.1|norms.1 s4_layers.2|norms.2 decoder", name="S4 with norms in a list")
class S4Model(nn.Module):
    def __init__(self, prenorm: bool = False) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.encoder = lin()
        self.s4_layers, self.norms, self.dropouts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            self.s4_layers.append(S4())
            self.norms.append(nn.LayerNorm(4))
            self.dropouts.append(nn.Dropout1d(0.1))
        self.decoder = lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x).transpose(-1, -2)
        for layer, norm, dropout in zip(self.s4_layers, self.norms, self.dropouts, strict=True):
            z = x
            if self.prenorm:
                z = norm(z.transpose(-1, -2)).transpose(-1, -2)
            z, _ = layer(z)
            x = dropout(z) + x
            if not self.prenorm:
                x = norm(x.transpose(-1, -2)).transpose(-1, -2)
        y: Tensor = self.decoder(x.transpose(-1, -2).mean(dim=1))
        return y


class Gated(nn.Module):
    """A gated residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate, self.norm = lin(), lin(), nn.Linear(4, 8), nn.LayerNorm(4)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        y = self.fc1(x)
        if context is not None:
            y = y + context
        z: Tensor = self.norm(x + nn.functional.glu(self.gate(self.fc2(y))))
        return z


class Selection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flattened_grn, self.single_variable_grns = Gated(), layers(3, Gated)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        weights = self.flattened_grn(x, context).softmax(-1)
        processed = torch.stack([grn(x[..., i]) for i, grn in enumerate(self.single_variable_grns)], -1)
        return (processed * weights).sum(-1)


@right(
    rising=(
        "embeddings encoder_vsn lstm_encoder post_lstm_norm static_enrichment attention post_attn_norm "
        "positionwise output_layer",
        "encoder_vsn.single_variable_grns lstm_encoder",
        "decoder_vsn.single_variable_grns lstm_decoder",
        "context_grns static_enrichment",
    ),
    name="Temporal Fusion Transformer",
)
class TemporalFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Linear(4, 3)
        self.embeddings = layers(2, lambda: nn.Embedding(9, 4))
        self.encoder_vsn, self.decoder_vsn, self.context_grns = Selection(), Selection(), layers(2, Gated)
        self.lstm_encoder, self.lstm_decoder = nn.LSTM(4, 4), nn.LSTM(4, 4)
        self.post_lstm_norm, self.post_attn_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.static_enrichment, self.positionwise = Gated(), Gated()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        static = torch.stack([e(x["static"][:, i]) for i, e in enumerate(self.embeddings)]).sum(0)
        selection, enrichment = (grn(static) for grn in self.context_grns)
        past = self.encoder_vsn(x["past"], selection)
        future = self.decoder_vsn(x["future"], selection)
        past, state = self.lstm_encoder(past)
        future, _ = self.lstm_decoder(future, state)
        y = self.post_lstm_norm(torch.cat([past, future]))
        y = self.static_enrichment(y, enrichment)
        z, _ = self.attention(y, y, y)
        out: Tensor = self.output_layer(self.positionwise(self.post_attn_norm(y + z)))
        return out


@right("model.W_P|model.W_pos model.layers.0-1 head", name="patches of a series")
class Patches(LightningModule):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers(2)
            self.W_P, self.W_pos = lin(), nn.Parameter(torch.zeros(3, 4))

        def forward(self, z: Tensor) -> Tensor:
            z = self.W_P(z.unfold(-1, 4, 4)) + self.W_pos
            for layer in self.layers:
                z = layer(z)
            return z

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(-2), nn.Linear(12, 2))
        self.model = self.Backbone()

    def forward(self, z: Tensor) -> Tensor:
        mean, std = z.mean(-1, keepdim=True), z.std(-1, keepdim=True)
        y: Tensor = self.head(self.model((z - mean) / std)) * std + mean
        return y

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self(x), y)


@right(
    rising=(
        "char_emb char_conv highway_linear0 highway_linear1 context_LSTM att_weight_c modeling_LSTM1 modeling_LSTM2 "
        "output_LSTM p2_weight_m",
        "highway_linear1 modeling_LSTM2 p1_weight_m",
        "word_emb highway_linear0",
    ),
    name="BiDAF",
)
class Bidaf(nn.Module):
    """Parts by getattr, a closure for each step, and outputs after two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.char_emb, self.word_emb = nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.char_conv = nn.Sequential(nn.Conv2d(1, 4, (4, 3)), nn.ReLU())
        for i in range(2):
            setattr(self, f"highway_linear{i}", nn.Sequential(lin(), nn.ReLU()))
            setattr(self, f"highway_gate{i}", nn.Sequential(lin(), nn.Sigmoid()))
        self.context_LSTM = nn.LSTM(4, 2, bidirectional=True)
        self.att_weight_c, self.att_weight_q, self.att_weight_cq = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)
        self.modeling_LSTM1, self.modeling_LSTM2 = (nn.LSTM(4, 2, bidirectional=True) for _ in range(2))
        self.p1_weight_g, self.p1_weight_m, self.p2_weight_m = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)
        self.output_LSTM = nn.LSTM(4, 2, bidirectional=True)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        def embed(chars: Tensor, words: Tensor) -> Tensor:
            x = self.char_conv(self.char_emb(chars).unsqueeze(1)).max(-1)[0] + self.word_emb(words)
            for i in range(2):
                h, g = getattr(self, f"highway_linear{i}")(x), getattr(self, f"highway_gate{i}")(x)
                x = g * h + (1 - g) * x
            return x

        c = self.context_LSTM(embed(batch.c_char, batch.c_word[0]))[0]
        q = self.context_LSTM(embed(batch.q_char, batch.q_word[0]))[0]
        s = self.att_weight_c(c) + self.att_weight_q(q) + self.att_weight_cq(c * q)
        g = c * torch.softmax(s, 1)
        m = self.modeling_LSTM2(self.modeling_LSTM1(g)[0])[0]
        p1 = self.p1_weight_g(g) + self.p1_weight_m(m)
        p2 = self.p2_weight_m(self.output_LSTM(m)[0])
        return p1, p2


@right(rising=("encoder rnns.0 rnns.1 rnns.2 decoder",), name="AWD-LSTM as its authors wrote it")
class AwdLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(9, 4)
        self.rnns: Any = nn.ModuleList([nn.LSTM(4, 4, 1, dropout=0) for _ in range(3)])
        self.decoder = nn.Linear(4, 9)

    def forward(self, input: Tensor, hidden: Any, return_h: bool = False) -> Any:
        raw_output, new_hidden, outputs = self.encoder(input), [], []
        for number, rnn in enumerate(self.rnns):
            raw_output, new_h = rnn(raw_output, hidden[number])
            new_hidden.append(new_h)
            if number != 2:
                raw_output = raw_output * 0.5
                outputs.append(raw_output)
        result = self.decoder(raw_output.view(-1, 4))
        return (result, new_hidden, outputs) if return_h else (result, new_hidden)


class FeatureStep(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.specific = shared, Layer()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.specific(self.shared(x))
        return y


@right(
    rising=(
        "initial_bn initial_splitter att_transformers.0 feat_transformers.0 final_mapping",
        "att_transformers.0 att_transformers.1 att_transformers.2 final_mapping",
    ),
    name="TabNet",
)
class TabNet(nn.Module):
    """Every step shares its first layers with all others."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sequential(lin(), nn.GLU(), nn.Linear(2, 4))
        self.initial_bn, self.initial_splitter = nn.BatchNorm1d(4), FeatureStep(shared)
        self.feat_transformers = layers(3, lambda: FeatureStep(shared))
        self.att_transformers = layers(3, Layer)
        self.final_mapping = lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_bn(x)
        prior, att, steps = torch.ones_like(x), self.initial_splitter(x), []
        for step in range(3):
            mask = self.att_transformers[step](prior * att).softmax(-1)
            prior = (1.3 - mask) * prior
            att = self.feat_transformers[step](mask * x)
            steps.append(att.relu())
        y: Tensor = self.final_mapping(torch.stack(steps).sum(0))
        return y


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(5, 4))
        self.category_embeddings = nn.Embedding(9, 4)

    def forward(self, x_num: Tensor, x_cat: Tensor | None) -> Tensor:
        x = self.weight[None] * x_num[:, :, None]
        if x_cat is not None:
            x = torch.cat([x, self.category_embeddings(x_cat)], 1)
        return x + self.bias[None]


@right("tokenizer layers.0-2 last_normalization|head", name="a transformer of columns with layers in dicts")
class FtTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokens()
        self.layers = nn.ModuleList()
        for i in range(3):
            layer = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear0": lin(), "linear1": lin()})
            if i:
                layer["norm0"] = nn.LayerNorm(4)
            layer["norm1"] = nn.LayerNorm(4)
            self.layers.append(layer)
        self.last_normalization, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x_num: Tensor, x_cat: Tensor | None) -> Tensor:
        x = self.tokenizer(x_num, x_cat)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleDict)
            y = layer["norm0"](x) if i else x
            x = x + layer["attention"](y, y, y)[0]
            x = x + layer["linear1"](layer["linear0"](layer["norm1"](x)).relu())
        return self.head(self.last_normalization(x[:, -1]).relu())  # type: ignore[no-any-return]


@right(
    rising=("embedding experts.0 towers.0", "experts.2 towers.1", "gates.0 towers.0", "embedding gates.1"),
    name="experts, a gate and a tower per task",
)
class Mmoe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.ModuleList(nn.Embedding(9, 4) for _ in range(2))
        self.towers = nn.ModuleList(nn.Sequential(lin(), nn.ReLU(), nn.Linear(4, 1)) for _ in range(2))
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)) for _ in range(2))
        self.experts = nn.ModuleList(nn.Sequential(lin(), nn.ReLU(), lin()) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.stack([e(x[:, i]) for i, e in enumerate(self.embedding)], 1).sum(1)
        outs = torch.stack([expert(x) for expert in self.experts], 1)
        ys = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            ys.append(torch.sigmoid(tower(torch.bmm(gate(x).unsqueeze(1), outs).squeeze(1))))
        return ys
