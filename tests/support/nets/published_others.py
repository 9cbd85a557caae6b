"""Networks as their authors' repositories write them: graphs, games, molecules, series, tables, pairs of networks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, mse_loss

from tests.support.nets.collection import Conv, Layer, Tower, Twice, layers, lin, right


# ---------------------------------------------------------------------- graphs and molecules
class Aggregate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.lin_self = lin(), lin()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        src, dst = edge_index
        out = torch.zeros_like(x).index_add_(0, dst, self.lin(x)[src])
        y: Tensor = out + self.lin_self(x)
        return y


@right("convs.0|bns.0 convs.1|bns.1 convs.2", name="graph convolutions with norms between")
class GraphConvolutions(nn.Module):
    """The last layer has no norm and no head follows."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.bns = layers(3, Aggregate), layers(2, lambda: nn.BatchNorm1d(4))

    def forward(self, x: Tensor, adj_t: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs[:-1]):
            x = self.bns[i](conv(x, adj_t)).relu()
        x = self.convs[-1](x, adj_t)
        return x.log_softmax(dim=-1)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.a = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(8, 1))

    def forward(self, h: Tensor, adj: Tensor) -> Tensor:
        wh = torch.mm(h, self.W)
        e = torch.matmul(wh, self.a[:4, :]) + torch.matmul(wh, self.a[4:, :]).T
        return torch.matmul(torch.where(adj > 0, e, -9e15 * torch.ones_like(e)).softmax(1), wh)


@right("attention_0|attention_1|attention_2 out_att", name="graph attention with heads counted through")
class GraphAttention(nn.Module):
    """Heads that stand side by side and are called attention_0, attention_1, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = [Attend() for _ in range(3)]
        for i, attention in enumerate(self.attentions):
            self.add_module(f"attention_{i}", attention)
        self.out_att = Attend()

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = torch.cat([att(x, adj) for att in self.attentions], dim=1)
        return self.out_att(x, adj).log_softmax(dim=1)  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linears, self.batch_norms = layers(2, lin), layers(1, lambda: nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch_norms[0](self.linears[0](x)).relu()
        y: Tensor = self.linears[1](x)
        return y


@right(
    "mlps.0|batch_norms.0 mlps.1|batch_norms.1 mlps.2|batch_norms.2 linears_prediction.0|linears_prediction.3",
    name="a prediction from every layer of a graph network",
)
class Isomorphism(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(3))
        self.mlps, self.batch_norms = layers(3, Perceptron), layers(3, lambda: nn.BatchNorm1d(4))
        self.linears_prediction = layers(4, lin)

    def forward(self, adj: Tensor, h: Tensor) -> Tensor:
        hidden = [h]
        for layer in range(3):
            pooled = torch.spmm(adj, h) + (1 + self.eps[layer]) * h
            h = self.batch_norms[layer](self.mlps[layer](pooled)).relu()
            hidden.append(h)
        score: Any = 0
        for layer, h in enumerate(hidden):
            score = score + self.linears_prediction[layer](torch.sum(h, 0))
        return score  # type: ignore[no-any-return]


class Interaction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters, self.atomwise = nn.Sequential(lin(), nn.Softplus(), lin()), lin()

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        y: Tensor = self.atomwise(x * self.filters(r).mean(1))
        return y


@right("embedding interactions.0-2 lin1|lin2", rising=("interactions.2 lin1 lin2",), name="interactions of atoms")
class Atoms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin2, self.lin1, self.interactions = nn.Linear(4, 1), lin(), layers(3, Interaction)
        self.embedding = nn.Embedding(9, 4)

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        distances = (pos[:, None] - pos[None]).norm(dim=-1, keepdim=True).expand(-1, -1, 4)
        h = self.embedding(z)
        for interaction in self.interactions:
            h = h + interaction(h, distances)
        h = self.lin2(self.lin1(h).relu())
        return torch.zeros(2, 1).index_add_(0, batch, h)


@right(
    "emb interaction_blocks.0-1 output_blocks.0",
    "output_blocks.1",
    "output_blocks.2",
    name="an output before the first block and after every one",
)
class Directional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_blocks, self.interaction_blocks, self.emb = layers(3), layers(2), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        total = self.output_blocks[0](x)
        for block, output in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            x = block(x)
            total = total + output(x)
        return total  # type: ignore[no-any-return]


class TwoTracks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.msa, self.outer, self.pair = Layer(), lin(), Layer()

    def forward(self, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        m = self.msa(m, z)
        return m, self.pair(z + self.outer(m))


@right(
    "msa_embed|pair_embed extra.0 extra.1 evoformer.0 evoformer.1 structure.0|single structure.1 angles|plddt",
    name="two tracks in every block, and recycling",
)
class Folding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plddt, self.angles, self.structure, self.single = lin(), lin(), layers(), lin()
        self.evoformer, self.extra = layers(2, TwoTracks), layers(2, TwoTracks)
        self.msa_embed, self.pair_embed = lin(), lin()

    def forward(self, msa: Tensor, pair: Tensor, cycles: int = 3) -> dict[str, Tensor]:
        before = torch.zeros(())
        for _ in range(cycles):
            m, z = self.msa_embed(msa) + before, self.pair_embed(pair)
            for block in self.extra:
                m, z = block(m, z)
            for block in self.evoformer:
                m, z = block(m, z)
            s = before = self.single(m)
        for layer in self.structure:
            s = layer(s, z)
        return {"angles": self.angles(s), "plddt": self.plddt(s)}


# ---------------------------------------------------------------------- pairs of networks
def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )


@right(
    rising=("G_AB.0 G_AB.3 G_AB.5", "G_BA.0 G_BA.3 G_BA.5", "D_A.0 D_A.3 D_A.5", "D_B.0 D_B.3 D_B.5"),
    name="two generators, two discriminators",
)
class Cycle(LightningModule):
    """Each network has a loss of its own, so each ends at the top."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.D_B, self.D_A, self.G_BA, self.G_AB = generator(), generator(), generator(), generator()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        a, b = batch
        g, d = self.optimizers()
        fake_b, fake_a = self.G_AB(a), self.G_BA(b)
        loss = mse_loss(self.D_B(fake_b), torch.ones_like(b)) + mse_loss(self.D_A(fake_a), torch.ones_like(a))
        loss = loss + mse_loss(self.G_BA(fake_b), a) + mse_loss(self.G_AB(fake_a), b)
        self.manual_backward(loss)
        g.step()
        loss = mse_loss(self.D_A(a), torch.ones_like(a)) + mse_loss(self.D_A(fake_a.detach()), torch.zeros_like(a))
        loss = loss + mse_loss(self.D_B(b), torch.ones_like(b)) + mse_loss(self.D_B(fake_b.detach()), b)
        self.manual_backward(loss)
        d.step()


@right(
    "online.embed online.layers.0-1 projector|predictor",
    "target.embed target.layers.0-1 predictor",
    name="bootstrap your own latent",
)
class Bootstrap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = Tower()
        self.projector, self.predictor = lin(), lin()
        self.target = copy.deepcopy(self.online)
        for p in self.target.parameters():
            p.requires_grad = False

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        a, b = self.predictor(self.projector(self.online(one))), self.predictor(self.projector(self.online(two)))
        with torch.no_grad():
            s, t = self.target(one), self.target(two)
        return -cosine_similarity(a, t.detach()).mean() - cosine_similarity(b, s.detach()).mean()


@right(
    "context.embed context.layers.0-1 predictor_embed|mask_token|context.norm|predictor.0 predictor.1 "
    "predictor_norm|predictor_proj",
    name="a predictor in the latent space",
    rising=("context.embed context.layers.1 predictor.0 predictor_proj",),
)
class JointEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predictor_proj, self.predictor_norm, self.predictor = lin(), nn.LayerNorm(4), layers()
        self.predictor_embed, self.mask_token, self.context = lin(), nn.Parameter(torch.zeros(1, 1, 4)), Tower()
        self.target_encoder = copy.deepcopy(self.context).requires_grad_(False)

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.target_encoder(x)
        z = self.predictor_embed(self.context(x))
        z = torch.cat([z, self.mask_token.repeat(z.size(0), 2, 1)], 1)
        for block in self.predictor:
            z = block(z)
        return mse_loss(self.predictor_proj(self.predictor_norm(z)), h)


@right(
    "generator.layer.0-1 generator_head",
    "discriminator.embeddings discriminator.layer.0-2 discriminator_head",
    name="replaced tokens",
)
class Electra(nn.Module):
    """Generator and discriminator share their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator_head, self.generator_head = nn.Linear(4, 1), nn.Linear(4, 9)
        self.discriminator, self.generator = Bert(3), Bert(2)
        self.discriminator.embeddings = self.generator.embeddings

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.generator_head(self.generator(ids))
        loss = cross_entropy(logits.view(-1, 9), labels.view(-1))
        sampled = torch.multinomial(logits.detach().softmax(-1).view(-1, 9), 1)
        found = self.discriminator_head(self.discriminator(sampled))
        return loss + 50 * binary_cross_entropy_with_logits(found, (sampled == labels).float())


class Bert(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.embeddings, self.layer = nn.Embedding(9, 4), layers(count)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embeddings(ids)
        for layer in self.layer:
            x = layer(x)
        return x


# ---------------------------------------------------------------------- games and control
@right("network.0 network.2 critic|actor", name="actor and critic")
class Agent(nn.Module):
    """One trunk, and no forward: the step calls methods."""

    def __init__(self) -> None:
        super().__init__()
        self.critic, self.actor = nn.Linear(4, 1), nn.Linear(4, 2)
        self.network = nn.Sequential(Twice(), nn.ReLU(), Twice(), nn.Flatten())

    def get_value(self, x: Tensor) -> Tensor:
        return self.critic(self.network(x / 255.0))  # type: ignore[no-any-return]

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> Any:
        hidden = self.network(x / 255.0)
        probabilities = torch.distributions.Categorical(logits=self.actor(hidden))
        if action is None:
            action = probabilities.sample()
        return action, probabilities.log_prob(action), probabilities.entropy(), self.critic(hidden)


@right("conv_block res_blocks.0-2 policy|value", name="policy and value over residual blocks")
class Board(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Sequential(Conv(), nn.Flatten(), lin(), nn.ReLU(), nn.Linear(4, 1))
        self.policy = nn.Sequential(Conv(), nn.Flatten(), lin())
        self.res_blocks, self.conv_block = layers(3, Twice), Conv(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_block(x)
        for block in self.res_blocks:
            x = block(x).relu()
        return self.policy(x), self.value(x).tanh()


@right(
    "state_embed|action_embed|time_embed|embed_ln transformer.layers.0-1 transformer.norm|predict_action|predict_state",
    name="decisions as a sequence",
)
class Decisions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predict_action, self.predict_state = nn.Sequential(lin(), nn.Tanh()), lin()
        self.embed_ln, self.transformer = nn.LayerNorm(4), Body()
        self.time_embed, self.action_embed, self.state_embed = nn.Embedding(9, 4), lin(), lin()

    def forward(self, states: Tensor, actions: Tensor, timesteps: Tensor, mask: Tensor | None = None) -> Any:
        b, t = states.shape[0], states.shape[1]
        if mask is None:
            mask = torch.ones((b, t), dtype=torch.long)
        when = self.time_embed(timesteps)
        s, a = self.state_embed(states) + when, self.action_embed(actions) + when
        x = torch.stack((s, a), dim=1).permute(0, 2, 1, 3).reshape(b, 2 * t, 4)
        x = self.transformer(self.embed_ln(x)).reshape(b, t, 2, 4).permute(0, 2, 1, 3)
        return self.predict_state(x[:, 1]), self.predict_action(x[:, 0])


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = layers(), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm(x)
        return y


@right(
    rising=("encoder.conv1 encoder.conv2 rnn decoder.fc decoder.deconv", "rnn reward.0 reward.2"),
    name="a model of the world",
)
class World(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.reward = Deconvolve(), nn.Sequential(lin(), nn.ELU(), nn.Linear(4, 1))
        self.rnn, self.encoder = nn.GRUCell(8, 4), Convolve()

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        states, h = [], torch.zeros(2, 4)
        for frame, action in zip(frames.unbind(1), actions.unbind(1), strict=False):
            h = self.rnn(torch.cat([self.encoder(frame), action], -1), h)
            states.append(h)
        x = torch.stack(states, 1)
        return self.decoder(x), self.reward(x)


class Convolve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu()).relu().mean((2, 3))  # type: ignore[no-any-return]


class Deconvolve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.deconv = lin(), nn.ConvTranspose2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.deconv(self.fc(x)[..., None, None])  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- series, tables, functions
class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.x_proj, self.dt_proj, self.out_proj = (
            nn.Linear(4, 8),
            nn.Linear(4, 9),
            nn.Linear(1, 4),
            lin(),
        )
        self.A_log, self.D = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        b, length, _ = x.shape
        u, gate = self.in_proj(x).chunk(2, -1)
        dt, B, C = torch.split(self.x_proj(u), [1, 4, 4], -1)  # noqa: N806
        dt = nn.functional.softplus(self.dt_proj(dt))
        state, ys = torch.zeros(b, 4, 4), []
        for t in range(length):
            state = state * (dt[:, t, :, None] * -self.A_log.exp()).exp() + (dt * u)[:, t, :, None] * B[:, t, None]
            ys.append((state * C[:, t, None]).sum(-1))
        y: Tensor = self.out_proj((torch.stack(ys, 1) + u * self.D) * gate.sigmoid())
        return y


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.norm = StateSpace(), nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mixer(self.norm(x)) + x
        return y


@right("lm_head layers.0-2 norm_f", name="Mamba in one file")
class SelectiveStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head, self.norm_f = nn.Linear(4, 9, bias=False), nn.RMSNorm(4)
        self.layers, self.embedding = layers(3, Residual), nn.Embedding(9, 4)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.lm_head(self.norm_f(x))
        return y


class ConvCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], 1)), 4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def init_hidden(self, size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(size, 4, 5, 5), torch.zeros(size, 4, 5, 5)


@right("cell_list.0-2 head", name="convolutional LSTM cells over time")
class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.cell_list = nn.Conv2d(4, 1, 1), layers(3, ConvCell)

    def forward(self, x: Tensor, hidden: Any = None) -> Tensor:
        b = x.size(0)
        hidden = [cell.init_hidden(b) for cell in self.cell_list]
        below = x
        for i in range(len(self.cell_list)):
            h, c = hidden[i]
            outputs = []
            for t in range(x.size(1)):
                h, c = self.cell_list[i](below[:, t], (h, c))
                outputs.append(h)
            below = torch.stack(outputs, dim=1)
        y: Tensor = self.head(below[:, -1])
        return y


class Temporal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, 4, 3, padding=2), nn.Conv1d(4, 4, 3, padding=2)
        self.net = nn.Sequential(self.conv1, nn.ReLU(), self.conv2, nn.ReLU())
        self.downsample = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x)[:, :, :-4] + self.downsample(x)).relu()  # type: ignore[no-any-return]


@right("tcn.network.0-2 linear", name="temporal convolutions")
class TemporalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tcn = lin(), nn.Module()
        self.tcn.network = nn.Sequential(Temporal(), Temporal(), Temporal())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.tcn.network(x)[:, :, -1])
        return y


class Distilling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_layers, self.conv_layers, self.norm = (
            layers(3),
            layers(2, lambda: nn.Conv1d(4, 4, 3)),
            nn.LayerNorm(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        for attn_layer, conv_layer in zip(self.attn_layers, self.conv_layers, strict=False):
            x = conv_layer(attn_layer(x).transpose(1, 2)).transpose(1, 2)
        x = self.attn_layers[-1](x)
        y: Tensor = self.norm(x)
        return y


@right(
    "enc_embedding encoder.attn_layers.0|encoder.conv_layers.0 encoder.attn_layers.1|encoder.conv_layers.1 "
    "encoder.attn_layers.2 projection|encoder.norm",
    "dec_embedding decoder.layers.0-1 projection",
    name="Informer",
)
class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from tests.support.nets.published_text import Decoder

        self.projection, self.decoder, self.encoder = lin(), Decoder(), Distilling()
        self.dec_embedding, self.enc_embedding, self.pred_len = lin(), lin(), 2

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor) -> Tensor:
        seen = self.encoder(self.enc_embedding(x_enc) + x_mark_enc)
        out = self.decoder(self.dec_embedding(x_dec) + x_mark_dec, seen)
        return self.projection(out)[:, -self.pred_len :, :]  # type: ignore[no-any-return]


@right(
    rising=("bot_l.0 bot_l.2 top_l.0 top_l.2", "emb_l.0 top_l.0", "emb_l.1 top_l.0"), name="sparse and dense features"
)
class Clicks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb_l = layers(2, lambda: nn.EmbeddingBag(9, 4, mode="sum"))
        self.top_l = nn.Sequential(lin(), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
        self.bot_l = nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU())

    def forward(self, dense: Tensor, offsets: list[Tensor], indices: list[Tensor]) -> Tensor:
        x, ly = self.bot_l(dense), []
        for k in range(len(self.emb_l)):
            ly.append(self.emb_l[k](indices[k], offsets[k]))
        t = torch.cat([x, *ly], dim=1).view(2, -1, 4)
        y: Tensor = self.top_l(torch.bmm(t, torch.transpose(t, 1, 2)).flatten(1))
        return y


@right(rising=("branch.0 branch.2 branch.4", "trunk.0 trunk.2 trunk.4"), name="an operator: branch and trunk")
class Operator(nn.Module):
    """Two networks whose product is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(lin(), nn.Tanh(), lin(), nn.Tanh(), lin())
        self.trunk = nn.Sequential(lin(), nn.Tanh(), lin(), nn.Tanh(), lin())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bi,ni->bn", self.branch(u), self.trunk(y)) + self.bias


@right(
    rising=("user_mlp MLP_layers.0 MLP_layers.2 predict_layer", "item_gmf predict_layer"),
    name="two ways to match users and items",
)
class Matching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user_gmf, self.item_gmf, self.user_mlp, self.item_mlp = (nn.Embedding(9, 4) for _ in range(4))
        self.MLP_layers = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), lin(), nn.ReLU())
        self.predict_layer = nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        gmf = self.user_gmf(user) * self.item_gmf(item)
        mlp = self.MLP_layers(torch.cat((self.user_mlp(user), self.item_mlp(item)), -1))
        return self.predict_layer(torch.cat((gmf, mlp), -1)).view(-1)  # type: ignore[no-any-return]


@right(rising=("fc1 fc21 fc3 fc4", "fc1 fc22 fc3"), name="a variational autoencoder of five layers")
class FiveLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22, self.fc3, self.fc4 = lin(), lin(), lin(), lin(), lin()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc1(x).relu()
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x.view(-1, 4))
        z = self.reparameterize(mu, logvar)
        return self.fc4(self.fc3(z).relu()).sigmoid(), mu, logvar


@right(
    rising=("enc_b enc_t quantize_conv_t dec_t quantize_conv_b dec", "quantize_t dec_t", "quantize_b dec"),
    name="two levels of codes",
)
class TwoLevels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc_b, self.enc_t = Twice(), Twice()
        self.quantize_conv_t, self.quantize_t, self.dec_t = nn.Conv2d(4, 4, 1), nn.Embedding(8, 4), Twice()
        self.quantize_conv_b, self.quantize_b = nn.Conv2d(8, 4, 1), nn.Embedding(8, 4)
        self.upsample_t, self.dec = nn.ConvTranspose2d(4, 4, 4), Twice()

    def quantize(self, table: nn.Embedding, x: Tensor) -> Tensor:
        index = torch.cdist(x.permute(0, 2, 3, 1).flatten(1, 2), table.weight).argmin(-1)
        return table(index)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        b = self.enc_b(x)
        t = self.enc_t(b)
        qt = self.quantize(self.quantize_t, self.quantize_conv_t(t))
        b = torch.cat([self.dec_t(qt), b], 1)
        qb = self.quantize(self.quantize_b, self.quantize_conv_b(b))
        y: Tensor = self.dec(torch.cat([self.upsample_t(qt), qb], 1))
        return y


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_layers, self.emb_layers = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 1)), lin()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y: Tensor = x + self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return y


class WithEmbedding(nn.Sequential):
    """Passes the embedding of time to those of its parts that take it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, Timed) else layer(x)
        return x


@right(
    rising=(
        "input_blocks.0 input_blocks.1 input_blocks.2 middle_block output_blocks.0 output_blocks.1 output_blocks.2 out",
        "time_embed.0 time_embed.2 input_blocks.1",
    ),
    name="guided diffusion",
)
class Guided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(lin(), nn.SiLU(), lin())
        self.input_blocks = nn.ModuleList(
            [WithEmbedding(nn.Conv2d(3, 4, 1)), WithEmbedding(Timed(), nn.Conv2d(4, 4, 1)), WithEmbedding(Timed())]
        )
        self.middle_block = WithEmbedding(Timed(), nn.Conv2d(4, 4, 1), Timed())
        self.output_blocks = nn.ModuleList([WithEmbedding(nn.Conv2d(8, 4, 1), Timed()) for _ in range(3)])
        self.out = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None, "not class-conditional"
        hs, emb = [], self.time_embed(timesteps)
        h = x.type(torch.float32)
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb)
        out: Tensor = self.out(h)
        return out


class Modulated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.adaLN_modulation = Layer(), Layer(), nn.Sequential(nn.SiLU(), nn.Linear(4, 8))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        y: Tensor = self.mlp(self.attn(x * (1 + scale) + shift))
        return y


@right("x_embedder|t_embedder|y_embedder|pos_embed blocks.0-2 final_layer", name="a diffusion transformer")
class DiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.final_layer, self.blocks = Modulated(), layers(3, Modulated)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 4), requires_grad=False)
        self.y_embedder, self.t_embedder = nn.Embedding(9, 4), nn.Sequential(lin(), nn.SiLU(), lin())
        self.x_embedder = lin()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        out: Tensor = self.final_layer(x, c)
        h = w = int(4**0.5)
        return out.reshape(out.shape[0], h, w, 4)


class Coupling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actnorm, self.invconv, self.net = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4, 4)), lin()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ((x + self.actnorm) @ self.invconv).chunk(2, -1)
        b = b + self.net(a)
        return torch.cat([a, b], -1), b.sum()


class Level(nn.Module):
    def __init__(self, split: bool) -> None:
        super().__init__()
        self.flows, self.split, self.prior = layers(2, Coupling), split, lin()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total: Any = 0
        for flow in self.flows:
            x, det = flow(x)
            total = total + det
        if self.split:
            x, z = x.chunk(2, -1)
            return x, total, self.prior(z).sum()
        return x, total, self.prior(torch.zeros_like(x)).sum()


@right(
    rising=("blocks.0.flows.0 blocks.0.flows.1 blocks.1.flows.0 blocks.1.flows.1 blocks.2.flows.1",),
    name="Glow, level by level",
)
class Glow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Level(True), Level(True), Level(False)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet, log_p = 0.0, 0.0
        for block in self.blocks:
            x, det, p = block(x)
            logdet, log_p = logdet + det, log_p + p
        return log_p, logdet  # type: ignore[return-value]


@right(
    rising=(
        "text.word_embed text.rnn.weight_ih_l0 text.rnn.weight_ih_l1 attention.q",
        "text.rnn.weight_ih_l1 classifier.0",
    ),
    name="questions about pictures",
)
class Questions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 9))
        self.attention, self.text = nn.Module(), nn.Module()
        self.attention.v, self.attention.q, self.attention.x = nn.Conv2d(4, 4, 1), lin(), nn.Conv2d(4, 1, 1)
        self.text.word_embed, self.text.rnn = nn.Embedding(9, 4), nn.LSTM(4, 4, 2)

    def forward(self, v: Tensor, q: Tensor, q_len: Tensor) -> Tensor:
        _, (_, c) = self.text.rnn(self.text.word_embed(q).tanh())
        v = v / (v.norm(p=2, dim=1, keepdim=True) + 1e-8)
        a = self.attention.x((self.attention.v(v) + self.attention.q(c[-1])[:, :, None, None]).relu()).softmax(-1)
        y: Tensor = self.classifier(torch.cat([(a * v).sum((2, 3)), c[-1]], 1))
        return y
