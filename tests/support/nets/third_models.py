"""Third sample, models: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn

from tests.support.nets.collection import Conv, Layer, Tower, Twice, layers, lin, right


class MatrixBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj_up, self.proj_down = nn.LayerNorm(4), nn.Linear(4, 8), lin()
        self.conv, self.igate = nn.Conv1d(4, 4, 4, padding=3, groups=4), nn.Linear(4, 1)

    def forward(self, x: Any) -> Any:
        a, z = self.proj_up(self.norm(x)).chunk(2, -1)
        a = F.silu(self.conv(a.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        return x + self.proj_down((a * self.igate(a).exp()).cumsum(1) * F.silu(z))


class ScalarBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell, self.ffn = nn.LayerNorm(4), nn.LSTMCell(4, 4), nn.Sequential(lin(), nn.GELU(), lin())

    def forward(self, x: Any) -> Any:
        y, state, outs = self.norm(x), None, []
        for t in range(y.size(1)):
            state = self.cell(y[:, t], state)
            outs.append(state[0])
        x = x + torch.stack(outs, 1)
        return x + self.ffn(x)


@right("emb blocks.0-4 norm|out", name="xLSTM: two kinds of blocks in one list")
class ExtendedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 4)
        self.blocks = nn.ModuleList([ScalarBlock() if i in (1, 3) else MatrixBlock() for i in range(5)])
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 30)

    def forward(self, ids: Any) -> Any:
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class HybridLayer(nn.Module):
    def __init__(self, index: int, shared: Any) -> None:
        super().__init__()
        self.mixer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.adapter = nn.Linear(8, 4) if index % 2 else None
        self.__dict__["shared"] = shared  # not registered here

    def forward(self, x: Any, first: Any, mask: Any = None) -> Any:
        if self.adapter is not None:
            x = x + self.adapter(self.shared(torch.cat([x, first], -1), mask))
        return x + self.mixer(self.norm(x))


class SharedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x: Any, mask: Any) -> Any:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@right(
    "embed layers.0-4 final_norm|lm_head",
    name="Zamba: an attention that every second layer shares",
)
class SharedHybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 4)
        self.shared = SharedAttention()
        self.layers = nn.ModuleList([HybridLayer(i, self.shared) for i in range(5)])
        self.final_norm, self.lm_head = nn.LayerNorm(4), nn.Linear(4, 30, bias=False)

    def forward(self, ids: Any, mask: Any = None) -> Any:
        x = first = self.embed(ids)
        for layer in self.layers:
            x = layer(x, first, mask=mask)
        return self.lm_head(self.final_norm(x))


class SlotAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slots_mu, self.slots_log_sigma = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.zeros(1, 1, 4))
        self.to_q, self.to_k, self.to_v, self.gru = lin(), lin(), lin(), nn.GRUCell(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.norm_input, self.norm_slots, self.norm_pre_ff = nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4)
        self.iters = 3

    def forward(self, inputs: Any, num_slots: Any = None) -> Any:
        b, _n, d = inputs.shape
        n_s = num_slots if num_slots is not None else 5
        mu, sigma = self.slots_mu.expand(b, n_s, -1), self.slots_log_sigma.exp().expand(b, n_s, -1)
        slots = mu + sigma * torch.randn(mu.shape)
        inputs = self.norm_input(inputs)
        k, v = self.to_k(inputs), self.to_v(inputs)
        for _ in range(self.iters):
            prev = slots
            q = self.to_q(self.norm_slots(slots))
            attn = torch.einsum("bid,bjd->bij", q, k).softmax(dim=1) + 1e-8
            attn = attn / attn.sum(dim=-1, keepdim=True)
            updates = torch.einsum("bjd,bij->bid", v, attn)
            slots = self.gru(updates.reshape(-1, d), prev.reshape(-1, d)).reshape(b, -1, d)
            slots = slots + self.mlp(self.norm_pre_ff(slots))
        return slots


@right(
    rising=(
        "conv1 conv2", "conv2 conv3", "conv3 fc1", "encoder_pos fc1", "fc1 fc2", "fc1 slot_attention",
        "slot_attention decoder_cnn", "decoder_pos decoder_cnn",
    ),
    name="slots that compete for features",
)  # fmt: skip
class Slots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.encoder_pos, self.decoder_pos = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fc1, self.fc2 = lin(), lin()
        self.slot_attention = SlotAttention()
        self.decoder_cnn = nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3))
        self.register_buffer("grid", torch.rand(1, 4, 4, 4))

    def forward(self, image: Any) -> Any:
        x = F.relu(self.conv1(image))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x)).permute(0, 2, 3, 1)
        x = torch.flatten(x + self.encoder_pos(self.grid), 1, 2)
        x = self.fc2(F.relu(self.fc1(x)))
        slots = self.slot_attention(x)
        y = slots.reshape(-1, 4)[:, None, None].repeat(1, 4, 4, 1) + self.decoder_pos(self.grid)
        y = self.decoder_cnn(y.permute(0, 3, 1, 2))
        recons, masks = y.reshape(image.shape[0], -1, *y.shape[1:]).split([3, 1], dim=2)
        return (recons * masks.softmax(1)).sum(1)


@right("stem up.0-2 down.2|top_prior down.1-0 out", name="a ladder: upwards, then the list downwards")
class Ladder(nn.Module):
    class TopDown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior, self.posterior, self.merge = nn.Linear(4, 8), nn.Linear(8, 8), lin()

        def forward(self, h: Any, below: Any = None) -> Any:
            p_mu, p_lv = self.prior(h).chunk(2, -1)
            q_mu, q_lv = self.posterior(torch.cat([h, below], -1)).chunk(2, -1) if below is not None else (p_mu, p_lv)
            z = q_mu + torch.randn_like(q_mu) * (0.5 * q_lv).exp()
            kl = 0.5 * (p_lv - q_lv + (q_lv.exp() + (q_mu - p_mu) ** 2) / p_lv.exp() - 1)
            return h + self.merge(z), kl.sum(-1)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(6, 4), layers(3), nn.ModuleList([Ladder.TopDown() for _ in range(3)])
        self.top_prior, self.out = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 6)

    def forward(self, x: Any) -> Any:
        h, kept = self.stem(x), []
        for layer in self.up:
            h = layer(h)
            kept.append(h)
        y, kl = self.top_prior.expand(x.shape[0], -1), 0
        for i in reversed(range(len(self.down))):
            y, one = self.down[i](y, kept[i])
            kl = kl + one
        return self.out(y), kl


class TimedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
        self.input_blocks = nn.ModuleList([Conv(4), Twice(), Twice()])
        self.middle_block = Twice()
        self.output_blocks = nn.ModuleList([Conv(8), Conv(8), Conv(8)])
        self.out = nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Any, timesteps: Any = None, context: Any = None) -> Any:
        emb, hs = self.time_embed(timesteps.cos()), []
        h = x
        for module in self.input_blocks:
            h = module(h) + emb[:, :, None, None]
            hs.append(h)
        h = self.middle_block(h) + context.mean(1)[:, :, None, None]
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1))
        return self.out(h)


class FirstStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.Sequential(Conv(3), Conv(), Conv()),
            nn.Sequential(Conv(), Conv(), nn.Conv2d(4, 3, 1)),
        )
        self.quant_conv, self.post_quant_conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def encode(self, x: Any) -> Any:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Any) -> Any:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Any) -> Any:
        return self.decode(self.encode(x))


@right(
    rising=(
        "first_stage_model.encoder.0 first_stage_model.encoder.1", "first_stage_model.encoder.2 model.out",
        "cond_stage_model.embed cond_stage_model.layers.0", "cond_stage_model.layers.0 cond_stage_model.layers.1",
        "cond_stage_model.layers.1 model.out", "model.input_blocks.0 model.input_blocks.1",
        "model.input_blocks.1 model.input_blocks.2", "model.input_blocks.2 model.middle_block",
        "model.middle_block model.output_blocks.0", "model.output_blocks.0 model.output_blocks.1",
        "model.output_blocks.2 model.out", "model.time_embed model.input_blocks.1",
    ),
    name="latent diffusion: a frozen first stage, a condition, a U-Net and its average",
)  # fmt: skip
class LatentDiffusion(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = TimedUNet()
        self.model_ema = copy.deepcopy(self.model)
        self.first_stage_model = FirstStage().eval()
        for param in self.first_stage_model.parameters():
            param.requires_grad = False
        self.cond_stage_model = Tower()
        self.register_buffer("alphas_cumprod", torch.linspace(1, 0.01, 10))
        self.num_timesteps, self.parameterization = 10, "eps"

    def get_input(self, batch: dict[str, Any]) -> Any:
        z = self.first_stage_model.encode(batch["image"]).detach()
        return z, self.cond_stage_model(batch["caption"])

    def q_sample(self, x_start: Any, t: Any, noise: Any) -> Any:
        a = self.alphas_cumprod[t][:, None, None, None]
        return a.sqrt() * x_start + (1 - a).sqrt() * noise

    def p_losses(self, x_start: Any, cond: Any, t: Any, noise: Any = None) -> Any:
        noise = torch.randn_like(x_start) if noise is None else noise
        output = self.model(self.q_sample(x_start, t, noise), timesteps=t[:, None].float().expand(-1, 4), context=cond)
        target = noise if self.parameterization == "eps" else x_start
        return F.mse_loss(output, target)

    def forward(self, x: Any, c: Any, *args: Any, **kwargs: Any) -> Any:
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=self.device).long()
        return self.p_losses(x, c, t, *args, **kwargs)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        x, c = self.get_input(batch)
        return self(x, c)

    def decode_first_stage(self, z: Any) -> Any:
        return self.first_stage_model.decode(z)


class MeshBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))
        self.node_mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))

    def forward(self, nodes: Any, edges: Any, senders: Any, receivers: Any) -> Any:
        messages = self.edge_mlp(torch.cat([nodes[senders], nodes[receivers], edges], -1))
        gathered = torch.zeros_like(nodes).index_add_(0, receivers, messages)
        return nodes + self.node_mlp(torch.cat([nodes, gathered], -1)), edges + messages


@right("node_encoder|edge_encoder processor.0-3 decoder", name="MeshGraphNets: encode, process, decode")
class MeshGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.node_encoder, self.edge_encoder = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), lin()), nn.Linear(3, 4)
        self.processor = nn.ModuleList([MeshBlock() for _ in range(4)])
        self.decoder = nn.Sequential(lin(), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, graph: Any) -> Any:
        nodes, edges = self.node_encoder(graph["nodes"]), self.edge_encoder(graph["edges"])
        for block in self.processor:
            nodes, edges = block(nodes, edges, graph["senders"], graph["receivers"])
        return self.decoder(nodes)


@right(
    rising=(
        "down_convs.0 down_convs.1", "down_convs.1 down_convs.2", "down_convs.2 down_convs.3",
        "down_convs.3 up_convs.0",
        "up_convs.0 up_convs.1", "up_convs.1 up_convs.2", "down_convs.0 pools.0 up_convs.2",
    ),
    name="a U-Net of graphs",
)  # fmt: skip
class GraphUNet(nn.Module):
    class Dense(nn.Module):
        def __init__(self, a: int = 4, b: int = 4) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(a, b)), nn.Parameter(torch.zeros(b))

        def forward(self, x: Any, adj: Any) -> Any:
            return adj @ (x @ self.weight) + self.bias

    class TopK(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(4, 1)

        def forward(self, x: Any, adj: Any) -> Any:
            score = torch.tanh(self.score(x)).squeeze(-1)
            perm = score.topk(max(1, x.size(0) // 2)).indices
            return x[perm] * score[perm].view(-1, 1), adj[perm][:, perm], perm

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.sum_res = 3, True
        self.down_convs, self.pools, self.up_convs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.down_convs.append(GraphUNet.Dense(5))
        for _ in range(self.depth):
            self.pools.append(GraphUNet.TopK())
            self.down_convs.append(GraphUNet.Dense())
        for i in range(self.depth):
            self.up_convs.append(GraphUNet.Dense(4, 4 if i < self.depth - 1 else 2))

    def forward(self, x: Any, adj: Any) -> Any:
        x = self.down_convs[0](x, adj).relu()
        xs, adjs, perms = [x], [adj], []
        for i in range(1, self.depth + 1):
            x, adj, perm = self.pools[i - 1](x, adj @ adj)
            x = self.down_convs[i](x, adj).relu()
            if i < self.depth:
                xs.append(x)
                adjs.append(adj)
            perms.append(perm)
        for i in range(self.depth):
            j = self.depth - 1 - i
            up = torch.zeros_like(xs[j])
            up[perms[j]] = x
            x = self.up_convs[i](xs[j] + up, adjs[j])
            x = x.relu() if i < self.depth - 1 else x
        return x


class Recurrent(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.rnn, self.embedding = nn.LSTM(a, 4, bidirectional=True), nn.Linear(8, b)

    def forward(self, x: Any) -> Any:
        recurrent, _ = self.rnn(x)
        t, b, h = recurrent.size()
        return self.embedding(recurrent.view(t * b, h)).view(t, b, -1)


@right(
    rising=("cnn.conv0 cnn.conv1 cnn.conv2 cnn.conv3 rnn.0", "cnn.conv0 rnn.0", "cnn.conv3 rnn.1", "rnn.0 rnn.1"),
    name="CRNN: convolutions by add_module, two recurrent layers",
)
class Crnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        cnn = nn.Sequential()
        for i in range(4):
            cnn.add_module(f"conv{i}", nn.Conv2d(1 if i == 0 else 4, 4, 3, 1, 1))
            if i in (1, 3):
                cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(4))
            cnn.add_module(f"relu{i}", nn.ReLU(True))
        self.cnn, self.rnn = cnn, nn.Sequential(Recurrent(4, 4), Recurrent(4, 30))

    def forward(self, x: Any) -> Any:
        conv = self.cnn(x)
        _b, _c, h, _w = conv.size()
        assert h == 1, "the height of conv must be 1"
        return self.rnn(conv.squeeze(2).permute(2, 0, 1))


class PeriodBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))
        self.k = 2

    def forward(self, x: Any) -> Any:
        b, t, n = x.size()
        amplitude = torch.fft.rfft(x, dim=1).abs().mean(0).mean(-1)
        amplitude[0] = 0
        _, top = torch.topk(amplitude, self.k)
        res = []
        for i in range(self.k):
            period = t // (int(top[i]) + 1)
            length = ((t // period) + 1) * period if t % period != 0 else t
            out = F.pad(x, (0, 0, 0, length - t)).reshape(b, length // period, period, n).permute(0, 3, 1, 2)
            res.append(self.conv(out).permute(0, 2, 3, 1).reshape(b, -1, n)[:, :t])
        return torch.stack(res, -1).mean(-1) + x


@right(
    "enc_embedding|predict_linear model.0-2 projection",
    name="TimesNet: one norm after each block",
)
class TimesNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([PeriodBlock() for _ in range(3)])
        self.enc_embedding, self.layer = nn.Linear(3, 4), 3
        self.layer_norm, self.predict_linear, self.projection = nn.LayerNorm(4), nn.Linear(8, 12), nn.Linear(4, 3)

    def forecast(self, x_enc: Any) -> Any:
        means = x_enc.mean(1, keepdim=True).detach()
        enc_out = self.predict_linear(self.enc_embedding(x_enc - means).permute(0, 2, 1)).permute(0, 2, 1)
        for i in range(self.layer):
            enc_out = self.layer_norm(self.model[i](enc_out))
        return self.projection(enc_out) + means

    def forward(self, x_enc: Any, x_mark_enc: Any, x_dec: Any, x_mark_dec: Any, mask: Any = None) -> Any:
        return self.forecast(x_enc)[:, -4:, :]


@right(
    rising=(
        "encoder post_net", "rnn_input cell", "cell prior_net", "cell post_net", "post_net decoder", "post_net reward",
    ),
    name="a latent model of the world, rolled out",
)  # fmt: skip
class Rssm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reward, self.decoder = nn.Sequential(nn.Linear(6, 4), nn.ELU(), nn.Linear(4, 1)), nn.Linear(6, 8)
        self.encoder = nn.Sequential(nn.Linear(8, 4), nn.ELU(), lin())
        self.rnn_input, self.cell = nn.Linear(4, 4), nn.GRUCell(4, 4)
        self.prior_net, self.post_net = nn.Linear(4, 4), nn.Linear(8, 4)

    def sample(self, stats: Any) -> Any:
        mean, std = stats.chunk(2, -1)
        return mean + F.softplus(std) * torch.randn_like(std)

    def forward(self, obs: Any, actions: Any) -> Any:
        embed = self.encoder(obs)
        h, z = torch.zeros(obs.shape[0], 4), torch.zeros(obs.shape[0], 2)
        feats, priors, posts = [], [], []
        for t in range(actions.shape[1]):
            h = self.cell(self.rnn_input(torch.cat([z, actions[:, t]], -1)), h)
            priors.append(self.prior_net(h))
            post = self.post_net(torch.cat([h, embed[:, t]], -1))
            z = self.sample(post)
            posts.append(post)
            feats.append(torch.cat([h, z], -1))
        feat = torch.stack(feats, 1)
        return self.decoder(feat), self.reward(feat), priors, posts


class Cascade(nn.Module):
    def __init__(self, transforms: Iterable[nn.Module]) -> None:
        super().__init__()
        self._transforms = nn.ModuleList(transforms)

    @staticmethod
    def _cascade(inputs: Any, funcs: Any, context: Any) -> Any:
        outputs, total = inputs, inputs.new_zeros(inputs.shape[0])
        for func in funcs:
            outputs, logabsdet = func(outputs, context)
            total = total + logabsdet
        return outputs, total

    def forward(self, inputs: Any, context: Any = None) -> Any:
        return self._cascade(inputs, self._transforms, context)

    def inverse(self, inputs: Any, context: Any = None) -> Any:
        return self._cascade(inputs, (t.inverse for t in self._transforms[::-1]), context)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Any, context: Any = None) -> Any:
        a, b = x.chunk(2, -1)
        s, t = self.net(torch.cat([a, context], -1)).chunk(2, -1)
        return torch.cat([a, b * s.exp() + t], -1), s.sum(-1)

    def inverse(self, y: Any, context: Any = None) -> Any:
        a, b = y.chunk(2, -1)
        s, t = self.net(torch.cat([a, context], -1)).chunk(2, -1)
        return torch.cat([a, (b - t) * (-s).exp()], -1), -s.sum(-1)


class StandardNormal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_log_z", torch.tensor(1.8))

    def log_prob(self, x: Any) -> Any:
        return -0.5 * x.pow(2).sum(-1) - self._log_z


@right("_embedding_net _transform._transforms.0-3", name="a distribution whose forward may not be called")
class FlowDistribution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._transform, self._distribution = Cascade(Affine() for _ in range(4)), StandardNormal()
        self._embedding_net = nn.Linear(5, 2)

    def forward(self, *args: Any) -> Any:
        raise RuntimeError("Forward method cannot be called for a Distribution object.")

    def log_prob(self, inputs: Any, context: Any = None) -> Any:
        inputs = torch.as_tensor(inputs)
        if context is not None:
            context = torch.as_tensor(context)
            if inputs.shape[0] != context.shape[0]:
                raise ValueError("Number of input items must be equal to number of context items.")
        return self._log_prob(inputs, context)

    def _log_prob(self, inputs: Any, context: Any) -> Any:
        embedded = self._embedding_net(context)
        noise, logabsdet = self._transform(inputs, context=embedded)
        return self._distribution.log_prob(noise) + logabsdet

    def sample(self, num_samples: int, context: Any = None) -> Any:
        noise = torch.randn(num_samples, 4)
        return self._transform.inverse(noise, context=self._embedding_net(context))[0]


@right(
    rising=(
        "deterministic.layers.0 deterministic.layers.1", "deterministic.layers.1 decoder",
        "latent.layers.0 latent.layers.1",
        "latent.layers.1 decoder",
    ),
    name="a neural process: two encoders of a context",
)  # fmt: skip
class NeuralProcess(nn.Module):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.layers, self.out = nn.Linear(3, 4), layers(2), lin()

        def forward(self, x: Any, y: Any) -> Any:
            h = self.inp(torch.cat([x, y], -1))
            for layer in self.layers:
                h = layer(h)
            return self.out(h.mean(1))

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        self.deterministic, self.latent = NeuralProcess.Encoder(), NeuralProcess.Encoder()

    def forward(self, context_x: Any, context_y: Any, target_x: Any, target_y: Any = None) -> Any:
        prior = self.latent(context_x, context_y)
        if target_y is not None:
            post = self.latent(target_x, target_y)
            mean, std = post.chunk(2, -1)
        else:
            post, (mean, std) = None, prior.chunk(2, -1)
        z = mean + F.softplus(std) * torch.randn_like(std)
        r = self.deterministic(context_x, context_y)
        n = target_x.shape[1]
        h = torch.cat([target_x, r[:, None].expand(-1, n, -1), z[:, None].expand(-1, n, -1)], -1)
        return self.decoder(h), prior, post


@right(
    rising=(
        "encoder.embedder encoder.rnn_layers.0", "encoder.rnn_layers.0 encoder.rnn_layers.1",
        "encoder.rnn_layers.1 encoder.rnn_layers.2", "encoder.rnn_layers.2 decoder.classifier",
        "decoder.embedder decoder.att_rnn decoder.rnn_layers.0", "decoder.att_rnn decoder.rnn_layers.1",
        "decoder.rnn_layers.0 decoder.rnn_layers.1", "decoder.rnn_layers.1 decoder.classifier",
    ),
    name="GNMT: recurrent layers in lists, attention in the first of the decoder",
)  # fmt: skip
class Gnmt(nn.Module):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedder, self.rnn_layers = nn.Embedding(30, 4), nn.ModuleList()
            self.rnn_layers.append(nn.LSTM(4, 4, bidirectional=True))
            self.rnn_layers.append(nn.LSTM(8, 4))
            self.rnn_layers.append(nn.LSTM(4, 4))

        def forward(self, inputs: Any, lengths: Any) -> Any:
            x = self.embedder(inputs)
            x = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu().numpy(), enforce_sorted=False)
            x, _ = self.rnn_layers[0](x)
            x, _ = nn.utils.rnn.pad_packed_sequence(x)
            x, _ = self.rnn_layers[1](x)
            for i in range(2, len(self.rnn_layers)):
                residual = x
                x, _ = self.rnn_layers[i](x)
                x = x + residual
            return x

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedder, self.att_rnn, self.attn = nn.Embedding(30, 4), nn.LSTM(4, 4), lin()
            self.rnn_layers = nn.ModuleList([nn.LSTM(8, 4), nn.LSTM(8, 4)])
            self.classifier = nn.Linear(4, 30)

        def forward(self, inputs: Any, enc_context: Any) -> Any:
            x, _ = self.att_rnn(self.embedder(inputs))
            attn = (self.attn(x).transpose(0, 1) @ enc_context.permute(1, 2, 0)).softmax(-1) @ enc_context.transpose(
                0, 1
            )
            attn = attn.transpose(0, 1)
            x, _ = self.rnn_layers[0](torch.cat((x, attn), dim=2))
            for i in range(1, len(self.rnn_layers)):
                residual = x
                x, _ = self.rnn_layers[i](torch.cat((x, attn), dim=2))
                x = x + residual
            return self.classifier(x)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Gnmt.Encoder(), Gnmt.Decoder()

    def forward(self, input_encoder: Any, input_enc_len: Any, input_decoder: Any) -> Any:
        return self.decoder(input_decoder, self.encoder(input_encoder, input_enc_len))


class ScalarMix(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.scalar_parameters = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(count)])
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, tensors: Any) -> Any:
        weights = torch.cat([*self.scalar_parameters]).softmax(0).split(1)
        return self.gamma * sum(w * t for w, t in zip(weights, tensors, strict=True))


@right(
    "tokens layers.0-2 mix|classifier",
    name="a mix of the outputs of all layers",
)
class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.classifier = ScalarMix(4), nn.Linear(4, 3)
        self.tokens, self.layers = nn.Embedding(30, 4), layers(3)

    def forward(self, ids: Any) -> Any:
        hidden = [self.tokens(ids)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return self.classifier(self.mix(hidden).mean(1))


@right(
    "text_embeddings|token_type_embeddings|patch_embed blocks.0-2 norm|pooler|mlm_score|itm_score",
    name="text and patches in one stack, losses by task",
)
class Vilt(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.text_embeddings, self.token_type_embeddings = nn.Embedding(30, 4), nn.Embedding(2, 4)
        self.patch_embed, self.blocks = nn.Linear(6, 4), layers(3)
        self.norm, self.pooler = nn.LayerNorm(4), nn.Sequential(lin(), nn.Tanh())
        self.mlm_score, self.itm_score = nn.Linear(4, 30), nn.Linear(4, 2)
        self.current_tasks = ["mlm", "itm"]

    def infer(self, batch: dict[str, Any], mask_text: bool = False) -> dict[str, Any]:
        ids = batch["text_ids_mlm" if mask_text else "text_ids"]
        text = self.text_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        image = self.patch_embed(batch["image"])
        image = image + self.token_type_embeddings(torch.full_like(batch["image_mask"], 1))
        x = torch.cat([text, image], dim=1)
        for blk in self.blocks:
            x = blk(x)
        x = self.norm(x)
        return {"text_feats": x[:, : ids.shape[1]], "cls_feats": self.pooler(x[:, 0])}

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        ret: dict[str, Any] = {}
        if len(self.current_tasks) == 0:
            ret.update(self.infer(batch))
            return ret
        if "mlm" in self.current_tasks:
            infer = self.infer(batch, mask_text=True)
            logits = self.mlm_score(infer["text_feats"])
            ret["mlm_loss"] = F.cross_entropy(logits.view(-1, 30), batch["labels"].view(-1), ignore_index=-100)
        if "itm" in self.current_tasks:
            ret["itm_loss"] = F.cross_entropy(self.itm_score(self.infer(batch)["cls_feats"]), batch["match"])
        return ret

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self(batch)
        return sum(v for k, v in output.items() if "loss" in k)


@right(
    "backbone.0 backbone.1 backbone.2 neck|rpn_conv|rpn_cls|rpn_reg|bbox_head",  # after the last block: the head
    name="a cascade of box heads, each on the boxes of the one before",
)
class CascadeDetector(nn.Module):
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lateral_convs = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(3)])
            self.fpn_convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])

        def forward(self, inputs: Any) -> Any:
            laterals = [conv(inputs[i]) for i, conv in enumerate(self.lateral_convs)]
            for i in range(2, 0, -1):
                laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], scale_factor=2)
            return tuple(self.fpn_convs[i](laterals[i]) for i in range(3))

    class BoxHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc_cls, self.fc_reg = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            x = F.relu(self.fc1(x))
            return self.fc_cls(x), self.fc_reg(x)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([Conv(3), Twice(), Twice()])
        self.neck = CascadeDetector.Neck()
        self.rpn_conv, self.rpn_cls, self.rpn_reg = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1)
        self.bbox_head = nn.ModuleList([CascadeDetector.BoxHead() for _ in range(3)])

    def roi_extract(self, feats: Any, boxes: Any) -> Any:
        return sum(f.mean([2, 3]) for f in feats) + boxes.detach().mean(1, keepdim=True)

    def forward(self, img: Any, gt: Any = None) -> Any:
        x, feats = img, []
        for stage in self.backbone:
            x = F.max_pool2d(stage(x), 2)
            feats.append(x)
        feats = self.neck(feats)
        rpn = [F.relu(self.rpn_conv(f)) for f in feats]
        scores = [self.rpn_cls(r) for r in rpn]
        boxes = torch.cat([self.rpn_reg(r).flatten(2) for r in rpn], 2).mean(2)
        losses = []
        for head in self.bbox_head:
            cls, reg = head(self.roi_extract(feats, boxes))
            losses.append((cls, reg))
            boxes = boxes.detach() + reg
        return losses, scores


@right("stem groups.0.0-1 groups.1.0-1 groups.2.0-1 head", name="groups of layers in lists in a list, each with a norm")
class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = lin(), lin()
        self.groups = nn.ModuleList([layers(2) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(4) for _ in range(3)])

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for group, norm in zip(self.groups, self.norms, strict=True):
            for layer in group:
                x = x + layer(x)
            x = norm(x)
        return self.head(x)


@right(
    "token_embed blocks.0-2 ln|head",
    rising=("token_embed pos_bias.0 head",),
    name="a bias table for each block beside it",
)
class BiasTables(nn.Module):
    """Each block is given its own table: the table is in the layer of that block."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_bias = nn.ParameterList([nn.Parameter(torch.zeros(8, 8)) for _ in range(3)])
        self.token_embed, self.blocks, self.ln, self.head = nn.Embedding(30, 4), layers(3), nn.LayerNorm(4), lin()

    def forward(self, ids: Any) -> Any:
        x = self.token_embed(ids)
        for block, bias in zip(self.blocks, self.pos_bias, strict=True):
            x = block(x, bias[: ids.shape[1], :4])
        return self.head(self.ln(x))


@right(
    "net.conv net.blocks.0-2 net.head",
    rising=("net.conv aux.0 aux.2", "net.blocks.0 aux.2"),
    name="an auxiliary loss on a middle block, taken by a hook",
)
class HookedLoss(LightningModule):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.blocks, self.head = Conv(3), nn.Sequential(Conv(), Conv(), Conv()), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(self.conv(x)).mean([2, 3]))

    def __init__(self) -> None:
        super().__init__()
        self.net = HookedLoss.Net()
        self.aux = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.taken: dict[str, Any] = {}
        self.net.blocks[1].register_forward_hook(lambda m, a, y: self.taken.__setitem__("middle", y))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.net(x)
        aux = self.aux(self.taken["middle"].mean([2, 3]))
        return F.cross_entropy(logits, y) + 0.4 * F.cross_entropy(aux, y)


@right("embed first.0-1 second.0-1 head", name="blocks of which a layer is a Layer in a dict of a block")
class DictBlocks(nn.Module):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"mix": Layer(), "ff": nn.Sequential(lin(), nn.GELU(), lin())})

        def forward(self, x: Any) -> Any:
            return self.parts["ff"](self.parts["mix"](x)) + x

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = layers(2, DictBlocks.Block), layers(2, DictBlocks.Block)
        self.embed, self.head = lin(), lin()

    def forward(self, x: Any) -> Any:
        h = self.embed(x)
        for block in [*self.first, *self.second]:
            h = block(h)
        return self.head(h)
