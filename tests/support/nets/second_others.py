"""Second sample, tables, graphs, agents, flows and training schemes: their right order written before the first run."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from tests.support.nets.collection import Conv, Layer, Tower, layers, lin, right


@right(
    "net.vars.0|net.vars.1 net.vars.2|net.vars.3 net.vars.4|net.vars.5 net.vars.6|net.vars.7",
    name="MAML: a configuration and a flat list of weights",
)
class Maml(nn.Module):
    class Learner(nn.Module):
        def __init__(self, config: list[Any]) -> None:
            super().__init__()
            self.config, self.vars = config, nn.ParameterList()
            for name, param in self.config:
                if name in ("conv2d", "linear"):
                    self.vars.append(nn.Parameter(torch.ones(*param[:4]) if name == "conv2d" else torch.ones(*param)))
                    self.vars.append(nn.Parameter(torch.zeros(param[0])))

        def forward(self, x: Any, weights: Any = None) -> Any:
            if weights is None:
                weights = self.vars
            idx = 0
            for name, param in self.config:
                if name == "conv2d":
                    w, b = weights[idx], weights[idx + 1]
                    x = F.conv2d(x, w, b, stride=param[4], padding=param[5])
                    idx += 2
                elif name == "linear":
                    x = F.linear(x, weights[idx], weights[idx + 1])
                    idx += 2
                elif name == "flatten":
                    x = x.view(x.size(0), -1)
                elif name == "relu":
                    x = F.relu(x)
                else:
                    raise NotImplementedError
            assert idx == len(weights)
            return x

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            return iter(self.vars)

    def __init__(self) -> None:
        super().__init__()
        self.update_lr, self.update_step = 0.01, 2
        self.net = Maml.Learner([
            ("conv2d", [4, 1, 3, 3, 2, 0]), ("relu", []), ("conv2d", [4, 4, 3, 3, 1, 0]), ("relu", []),
            ("conv2d", [4, 4, 2, 2, 1, 0]), ("relu", []), ("flatten", []), ("linear", [5, 4]),
        ])  # fmt: skip

    def forward(self, x_spt: Any, y_spt: Any, x_qry: Any, y_qry: Any) -> Any:
        losses = 0
        for i in range(x_spt.size(0)):
            loss = F.cross_entropy(self.net(x_spt[i], None), y_spt[i])
            grad = torch.autograd.grad(loss, list(self.net.parameters()))
            fast = [p - self.update_lr * g for g, p in zip(grad, self.net.parameters(), strict=True)]
            for _k in range(1, self.update_step):
                loss = F.cross_entropy(self.net(x_spt[i], fast), y_spt[i])
                grad = torch.autograd.grad(loss, fast)
                fast = [p - self.update_lr * g for g, p in zip(grad, fast, strict=True)]
            losses = losses + F.cross_entropy(self.net(x_qry[i], fast), y_qry[i])
        return losses / x_spt.size(0)


class QNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Any) -> Any:
        return self.net(x.float())


@right(
    rising=("net.net.0 net.net.2", "net.net.2 net.net.4", "target_net.net.0 target_net.net.2",
            "target_net.net.2 target_net.net.4"),
    name="DQN: a net and its target",
)  # fmt: skip
class DeepQ(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.target_net = QNet(), QNet()
        self.buffer: list[Any] = []

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def dqn_mse_loss(self, batch: Any) -> Any:
        states, actions, rewards, dones, next_states = batch
        values = self.net(states).gather(1, actions.long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_values = self.target_net(next_states).max(1)[0]
            next_values[dones] = 0.0
            next_values = next_values.detach()
        return nn.MSELoss()(values, next_values * 0.99 + rewards)

    def training_step(self, batch: Any, nb_batch: int) -> Any:
        loss = self.dqn_mse_loss(batch)
        if self.global_step % 10 == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        return loss


def mlp(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(a, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, b)
    )


class DoubleQ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q1, self.q2 = mlp(6, 1), mlp(6, 1)
        self.outputs: dict[str, Any] = {}

    def forward(self, obs: Any, action: Any) -> Any:
        assert obs.size(0) == action.size(0)
        obs_action = torch.cat([obs, action], dim=-1)
        q1, q2 = self.q1(obs_action), self.q2(obs_action)
        self.outputs["q1"], self.outputs["q2"] = q1, q2
        return q1, q2


class GaussActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(4, 4)

    def forward(self, obs: Any) -> Any:
        mu, log_std = self.trunk(obs).chunk(2, dim=-1)
        log_std = -5 + 0.5 * 7 * (torch.tanh(log_std) + 1)
        return torch.distributions.Normal(mu, log_std.exp())


_TRUNK = "{0}.0 {0}.2 {0}.4 log_alpha"  # a scale of the loss alone is the head


@right(
    _TRUNK.format("actor.trunk"), _TRUNK.format("critic.q1"), _TRUNK.format("critic.q2"),
    _TRUNK.format("critic_target.q1"), name="SAC: an actor, two critics and their target",
)  # fmt: skip
class SoftActorCritic(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = DoubleQ()
        self.critic_target = copy.deepcopy(self.critic)
        self.actor = GaussActor()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(0.1)))
        self.target_entropy = -2

    def training_step(self, batch: Any, batch_idx: int) -> None:
        obs, action, reward, next_obs, not_done = batch
        actor_opt, critic_opt, alpha_opt = self.optimizers()
        dist = self.actor(next_obs)
        next_action = dist.rsample()
        log_prob = dist.log_prob(next_action).sum(-1, keepdim=True)
        t1, t2 = self.critic_target(next_obs, next_action)
        target = (reward + not_done * 0.99 * (torch.min(t1, t2) - self.log_alpha.exp().detach() * log_prob)).detach()
        c1, c2 = self.critic(obs, action)
        critic_opt.zero_grad()
        self.manual_backward(F.mse_loss(c1, target) + F.mse_loss(c2, target))
        critic_opt.step()
        if batch_idx % 2 == 0:
            dist = self.actor(obs)
            act = dist.rsample()
            log_prob = dist.log_prob(act).sum(-1, keepdim=True)
            a1, a2 = self.critic(obs, act)
            actor_opt.zero_grad()
            self.manual_backward((self.log_alpha.exp().detach() * log_prob - torch.min(a1, a2)).mean())
            actor_opt.step()
            alpha_opt.zero_grad()
            self.manual_backward((self.log_alpha.exp() * (-log_prob - self.target_entropy).detach()).mean())
            alpha_opt.step()
            for p, t in zip(self.critic.parameters(), self.critic_target.parameters(), strict=True):
                t.data.copy_(0.005 * p.data + 0.995 * t.data)


@right(
    rising=(
        "feature.0 feature.2 feature.5 forward_net_1.0 residual.0", "forward_net_1.0 residual.0",
        "residual.0 residual.1", "residual.1 residual.2", "residual.2 residual.3", "residual.3 forward_net_2.0",
        "feature.5 inverse_net.0 inverse_net.2",
    ),
    name="curiosity: inverse and forward models above features",
)  # fmt: skip
class Curiosity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_size = 3
        self.feature = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.LeakyReLU(), nn.Conv2d(4, 4, 3, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(4, 4)
        )
        self.inverse_net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        residual = [nn.Sequential(nn.Linear(7, 4), nn.LeakyReLU(), lin()) for _ in range(4)]
        self.residual = nn.ModuleList(residual)
        self.forward_net_1 = nn.Sequential(nn.Linear(7, 4), nn.LeakyReLU())
        self.forward_net_2 = nn.Sequential(nn.Linear(7, 4))
        for p in self.modules():
            if isinstance(p, nn.Linear):
                nn.init.kaiming_uniform_(p.weight, a=1.0)
                p.bias.data.zero_()

    def forward(self, inputs: Any) -> Any:
        state, next_state, action = inputs
        encode_state, encode_next_state = self.feature(state), self.feature(next_state)
        pred_action = self.inverse_net(torch.cat((encode_state, encode_next_state), 1))
        pred = self.forward_net_1(torch.cat((encode_state, action), 1))
        for i in range(2):
            pred_orig = pred
            pred = self.residual[i * 2](torch.cat((pred, action), 1))
            pred = self.residual[i * 2 + 1](torch.cat((pred, action), 1)) + pred_orig
        return encode_next_state, self.forward_net_2(torch.cat((pred, action), 1)), pred_action


class CnnEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=1), nn.ReLU(), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=1), nn.ReLU())

    def forward(self, x: Any) -> Any:
        out = self.layer1(x)
        out = self.layer2(out)
        out = self.layer3(out)
        return self.layer4(out)


class RelationNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        out = self.layer2(self.layer1(x))
        out = F.relu(self.fc1(out.view(out.size(0), -1)))
        return torch.sigmoid(self.fc2(out))


@right(
    rising=(
        "feature_encoder.layer1 feature_encoder.layer2", "feature_encoder.layer2 feature_encoder.layer3",
        "feature_encoder.layer3 feature_encoder.layer4", "feature_encoder.layer4 relation_network.layer1",
        "relation_network.layer1 relation_network.layer2", "relation_network.layer2 relation_network.fc1",
        "relation_network.layer2 relation_network.fc1 relation_network.fc2",
    ),
    name="relations between samples and queries",
)  # fmt: skip
class RelationTask(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.relation_network, self.feature_encoder = RelationNetwork(), CnnEncoder()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        samples, queries, labels = batch
        sample_features = self.feature_encoder(samples)
        batch_features = self.feature_encoder(queries)
        n, q = 5, 10
        ext = sample_features.unsqueeze(0).repeat(q, 1, 1, 1, 1)
        other = torch.transpose(batch_features.unsqueeze(0).repeat(n, 1, 1, 1, 1), 0, 1)
        relations = self.relation_network(torch.cat((ext, other), 2).view(-1, 8, 4, 4)).view(-1, n)
        one_hot = torch.zeros(q, n).scatter_(1, labels.view(-1, 1), 1)
        return F.mse_loss(relations, one_hot)


class TabAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.to_out = nn.LayerNorm(4), nn.Linear(4, 12, bias=False), lin()

    def forward(self, x: Any) -> Any:
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        attn = torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(dim=-1)
        out = torch.einsum("b h i j, b h j d -> b h i d", attn, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


@right(
    rising=(
        "category_embed transformer.layers.0", "shared_category_embed transformer.layers.0",
        "transformer.layers.0 transformer.layers.1", "transformer.layers.1 transformer.layers.2",
        "transformer.layers.2 mlp.0", "transformer.layers.2 mlp.0 mlp.2 mlp.4",
    ),
    name="TabTransformer",
)  # fmt: skip
class TabTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("categories_offset", torch.tensor([0, 5]))
        self.num_continuous, self.num_categories = 3, 2
        self.category_embed = nn.Embedding(12, 3)
        self.shared_category_embed = nn.Parameter(torch.zeros(2, 1))
        self.register_buffer("continuous_mean_std", torch.ones(3, 2))
        self.norm = nn.LayerNorm(3)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList([])
        for _ in range(3):
            ff = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))
            self.transformer.layers.append(nn.ModuleList([TabAttention(), ff]))
        self.mlp = nn.Sequential(nn.Linear(11, 8), nn.SELU(), nn.Linear(8, 4), nn.SELU(), nn.Linear(4, 1))

    def forward(self, x_categ: Any, x_cont: Any) -> Any:
        xs = []
        assert x_categ.shape[-1] == self.num_categories, "you must pass all categories"
        if self.num_categories > 0:
            x_categ = x_categ + self.categories_offset
            x = self.category_embed(x_categ)
            shared = self.shared_category_embed.unsqueeze(0).expand(x.shape[0], -1, -1)
            x = torch.cat((x, shared), dim=-1)
            for attn, ff in self.transformer.layers:
                x = attn(x) + x
                x = ff(x) + x
            xs.append(x.flatten(1))
        assert x_cont.shape[1] == self.num_continuous, "you must pass all values"
        if self.num_continuous > 0:
            if self.continuous_mean_std is not None:
                mean, std = self.continuous_mean_std.unbind(dim=-1)
                x_cont = (x_cont - mean) / std
            xs.append(self.norm(x_cont))
        return self.mlp(torch.cat(xs, dim=-1))


class ObliviousTrees(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.feature_selection_logits = nn.Parameter(torch.rand(size, 3, 2))
        self.feature_thresholds, self.log_temperatures = (
            nn.Parameter(torch.zeros(3, 2)),
            nn.Parameter(torch.zeros(3, 2)),
        )
        self.response = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Any) -> Any:
        selected = torch.einsum("bi,ind->bnd", x, F.softmax(self.feature_selection_logits, dim=0))
        logits = (selected - self.feature_thresholds) * torch.exp(-self.log_temperatures)
        return (torch.clamp(0.5 * logits + 0.5, 0, 1) * self.response).sum(-1)


class DenseTrees(nn.Sequential):
    def __init__(self, count: int = 3) -> None:
        layers, size = [], 5
        for _ in range(count):
            layers.append(ObliviousTrees(size))
            size += 3
        super().__init__(*layers)
        self.num_layers, self.max_features = count, None

    def forward(self, x: Any) -> Any:
        initial = x.shape[-1]
        for layer in self:
            layer_inp = x
            if self.max_features is not None:
                tail = min(self.max_features, layer_inp.shape[-1]) - initial
                if tail != 0:
                    layer_inp = torch.cat([layer_inp[..., :initial], layer_inp[..., -tail:]], dim=-1)
            x = torch.cat([x, layer(layer_inp)], dim=-1)
        return x[..., initial:]


class Lambda(nn.Module):
    def __init__(self, func: Any) -> None:
        super().__init__()
        self.func = func

    def forward(self, *args: Any) -> Any:
        return self.func(*args)


@right(rising=("0.0 0.1", "0.1 0.2"), name="NODE: trees in a Sequential that concatenates")
def trees() -> nn.Module:
    return nn.Sequential(DenseTrees(), Lambda(lambda x: x.mean(-1)))


@right(
    rising=("dnn.linears.0 dnn.linears.1", "dnn.linears.1 dnn.linears.2", "dnn.linears.2 dnn_linear",
            "embedding_dict dnn.linears.0"),
    name="DeepFM: embeddings in a ModuleDict by feature, a deep part of two lists",
)  # fmt: skip
class DeepFm(nn.Module):
    class Dnn(nn.Module):
        def __init__(self, units: list[int]) -> None:
            super().__init__()
            self.use_bn, self.dropout = True, nn.Dropout(0.1)
            self.linears = nn.ModuleList([nn.Linear(units[i], units[i + 1]) for i in range(len(units) - 1)])
            self.bn = nn.ModuleList([nn.BatchNorm1d(units[i + 1]) for i in range(len(units) - 1)])

        def forward(self, inputs: Any) -> Any:
            deep_input = inputs
            for i in range(len(self.linears)):
                fc = self.linears[i](deep_input)
                if self.use_bn:
                    fc = self.bn[i](fc)
                deep_input = self.dropout(F.relu(fc))
            return deep_input

    def __init__(self) -> None:
        super().__init__()
        self.features = ["user", "item", "genre"]
        self.embedding_dict = nn.ModuleDict({name: nn.Embedding(10, 4) for name in self.features})
        self.linear_dict = nn.ModuleDict({name: nn.Embedding(10, 1) for name in self.features})
        self.dnn = DeepFm.Dnn([12, 8, 8, 8])
        self.dnn_linear, self.bias = nn.Linear(8, 1, bias=False), nn.Parameter(torch.zeros(1))

    def forward(self, x: dict[str, Any]) -> Any:
        embedded = torch.stack([self.embedding_dict[name](x[name]) for name in self.features], 1)
        logit = sum(self.linear_dict[name](x[name]) for name in self.features)
        square, squares = embedded.sum(1).pow(2), embedded.pow(2).sum(1)
        logit = logit + 0.5 * (square - squares).sum(1, keepdim=True)
        logit = logit + self.dnn_linear(self.dnn(embedded.flatten(1)))
        return torch.sigmoid(logit + self.bias)


class CrossNet(nn.Module):
    def __init__(self, size: int, layer_num: int) -> None:
        super().__init__()
        self.layer_num = layer_num
        self.kernels = nn.ParameterList(
            [nn.Parameter(nn.init.xavier_normal_(torch.empty(size, size))) for _ in range(layer_num)]
        )
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(size, 1)) for _ in range(layer_num)])

    def forward(self, inputs: Any) -> Any:
        x_0 = inputs.unsqueeze(2)
        x_l = x_0
        for i in range(self.layer_num):
            dot_ = torch.matmul(self.kernels[i], x_l) + self.bias[i]
            x_l = x_0 * dot_ + x_l
        return torch.squeeze(x_l, dim=2)


@right(
    rising=("emb crossnet.kernels.0", "crossnet.kernels.0 crossnet.kernels.1", "crossnet.kernels.1 crossnet.kernels.2",
            "crossnet.kernels.2 final", "emb dnn.0", "dnn.0 dnn.3", "dnn.3 final"),
    name="DCN: crosses in a ParameterList beside a deep part",
)  # fmt: skip
class DeepCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.ModuleList([nn.Embedding(10, 2) for _ in range(3)])
        self.crossnet = CrossNet(6, 3)
        self.dnn = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.final = nn.Linear(14, 1)

    def forward(self, x: Any) -> Any:
        x = torch.cat([e(x[:, i]) for i, e in enumerate(self.emb)], dim=1)
        return torch.sigmoid(self.final(torch.cat([self.crossnet(x), self.dnn(x)], dim=1))).squeeze(1)


class Dice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.alpha = nn.BatchNorm1d(8, affine=False), nn.Parameter(torch.zeros(8))

    def forward(self, x: Any) -> Any:
        p = torch.sigmoid(self.bn(x))
        return p * x + (1 - p) * self.alpha * x


@right(
    rising=(
        "item_embedding attention.0",
        "attention.0 attention.2",
        "attention.2 fc.0 fc.2 fc.4",
        "user_embedding fc.0",
    ),
    name="interests: attention over a history",
)
class Interests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user_embedding, self.item_embedding = nn.Embedding(10, 4), nn.Embedding(20, 4)
        self.attention = nn.Sequential(nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 1))
        self.fc = nn.Sequential(nn.Linear(12, 8), Dice(), nn.Linear(8, 8), Dice(), nn.Linear(8, 1))

    def forward(self, user: Any, item: Any, history: Any, length: Any) -> Any:
        q, keys = self.item_embedding(item), self.item_embedding(history)
        queries = q.unsqueeze(1).expand(-1, keys.shape[1], -1)
        score = self.attention(torch.cat([queries, keys, queries - keys, queries * keys], -1)).squeeze(-1)
        mask = torch.arange(keys.shape[1])[None, :] < length[:, None]
        score = torch.where(mask, score, torch.full_like(score, -(2**32) + 1))
        interest = (score.softmax(-1).unsqueeze(1) @ keys).squeeze(1)
        return self.fc(torch.cat([self.user_embedding(user), q, interest], dim=-1))


class Extraction(nn.Module):
    """A level of experts: of each task, and shared; each task has a gate,
    the shared experts too if it is not the last.
    """

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.task_experts = nn.ModuleList([nn.ModuleList([lin(), lin()]) for _ in range(2)])
        self.shared_experts = nn.ModuleList([lin(), lin()])
        self.gates = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.shared_gate = None if last else nn.Linear(4, 6)

    def forward(self, xs: Any) -> Any:
        shared = [e(xs[-1]).relu() for e in self.shared_experts]
        outs, everyone = [], list(shared)
        for t in range(2):
            own = [e(xs[t]).relu() for e in self.task_experts[t]]
            everyone += own
            w = self.gates[t](xs[t]).softmax(-1).unsqueeze(1)
            outs.append((w @ torch.stack(own + shared, 1)).squeeze(1))
        if self.shared_gate is not None:
            w = self.shared_gate(xs[-1]).softmax(-1).unsqueeze(1)
            outs.append((w @ torch.stack(everyone, 1)).squeeze(1))
        return outs


@right(
    "embed levels.0-2 towers",
    name="progressive layered extraction",
)
class LayeredExtraction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(20, 4)
        self.levels = nn.ModuleList([Extraction(i == 2) for i in range(3)])
        self.towers = nn.ModuleList([nn.Linear(4, 1) for _ in range(2)])

    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        xs = [x, x, x]
        for level in self.levels:
            xs = level(xs)
        return [torch.sigmoid(tower(h)) for tower, h in zip(self.towers, xs, strict=True)]


class Dispatcher:
    """Rows of a batch to the experts that their gates chose, and back."""

    def __init__(self, gates: Any) -> None:
        self.gates = gates

    def dispatch(self, x: Any) -> list[Any]:
        return [x[self.gates[:, i] > 0] for i in range(self.gates.shape[1])]

    def combine(self, outs: list[Any]) -> Any:
        y = torch.zeros(self.gates.size(0), outs[0].size(1))
        for i, out in enumerate(outs):
            rows = (self.gates[:, i] > 0).nonzero().squeeze(1)
            y = y.index_add(0, rows, out * self.gates[rows, i : i + 1])
        return y


class NoisyMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.k = 4, 2
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(4)])
        self.w_gate, self.w_noise = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Any, loss_coef: float = 1e-2) -> Any:
        logits = x @ self.w_gate
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(x @ self.w_noise)
        top, index = logits.topk(self.k, dim=1)
        gates = torch.zeros_like(logits).scatter(1, index, F.softmax(top, 1))
        dispatcher = Dispatcher(gates)
        inputs = dispatcher.dispatch(x)
        outs = [self.experts[i](inputs[i]) for i in range(self.num_experts)]
        importance = gates.sum(0)
        return dispatcher.combine(outs), loss_coef * importance.var() / (importance.mean() ** 2 + 1e-10)


@right("inp blocks.0-2 out", name="mixtures that send rows to experts")
class StackOfMixtures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 4)
        self.blocks = nn.ModuleList([NoisyMixture() for _ in range(3)])
        self.out = nn.Linear(4, 2)

    def forward(self, x: Any, y: Any = None) -> Any:
        x, aux = self.inp(x), 0.0
        for block in self.blocks:
            h, loss = block(x)
            x, aux = x + h, aux + loss
        logits = self.out(x)
        return logits if y is None else F.cross_entropy(logits, y) + aux


class DenseSage(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.lin_rel, self.lin_root = nn.Linear(a, b), nn.Linear(a, b)

    def forward(self, x: Any, adj: Any, mask: Any = None) -> Any:
        out = self.lin_rel(adj @ x / adj.sum(-1, keepdim=True).clamp(min=1)) + self.lin_root(x)
        return out if mask is None else out * mask.view(-1, x.shape[1], 1).to(x.dtype)


class PoolNet(nn.Module):
    def __init__(self, a: int, b: int, lin: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = DenseSage(a, 4), nn.BatchNorm1d(4)
        self.conv2, self.bn2 = DenseSage(4, b), nn.BatchNorm1d(b)
        self.lin = nn.Linear(4 + b, b) if lin else None

    def bn(self, i: int, x: Any) -> Any:
        batch_size, num_nodes, num_channels = x.size()
        x = getattr(self, f"bn{i}")(x.view(-1, num_channels))
        return x.view(batch_size, num_nodes, num_channels)

    def forward(self, x: Any, adj: Any, mask: Any = None) -> Any:
        x1 = self.bn(1, self.conv1(x, adj, mask).relu())
        x2 = self.bn(2, self.conv2(x1, adj, mask).relu())
        x = torch.cat([x1, x2], dim=-1)
        return self.lin(x).relu() if self.lin is not None else x


class GraphBatch(NamedTuple):
    x: Any
    adj: Any
    mask: Any
    y: Any


@right(
    rising=(  # what stands between two networks belongs to the first layer after it
        "gnn1_pool.conv1 gnn1_pool.conv2", "gnn1_pool.conv2 gnn2_embed.conv1", "gnn1_embed.conv2 gnn2_pool.conv1",
        "gnn2_embed.conv1 gnn2_embed.conv2", "gnn2_pool.conv2 gnn3_embed.conv1", "gnn3_embed.conv1 gnn3_embed.conv2",
        "gnn3_embed.conv2 lin1 lin2",
    ),
    name="graphs that are pooled twice",
)  # fmt: skip
class DiffPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gnn1_pool, self.gnn1_embed = PoolNet(3, 6), PoolNet(3, 4, lin=False)
        self.gnn2_pool, self.gnn2_embed = PoolNet(8, 3), PoolNet(8, 4, lin=False)
        self.gnn3_embed = PoolNet(8, 4, lin=False)
        self.lin1, self.lin2 = nn.Linear(8, 4), nn.Linear(4, 2)

    def pool(self, x: Any, adj: Any, s: Any) -> Any:
        s = s.softmax(-1)
        return s.transpose(1, 2) @ x, s.transpose(1, 2) @ adj @ s

    def forward(self, data: GraphBatch) -> Any:
        x, adj = self.pool(
            self.gnn1_embed(data.x, data.adj, data.mask), data.adj, self.gnn1_pool(data.x, data.adj, data.mask)
        )
        x, adj = self.pool(self.gnn2_embed(x, adj), adj, self.gnn2_pool(x, adj))
        x = self.gnn3_embed(x, adj).mean(dim=1)
        return F.log_softmax(self.lin2(self.lin1(x).relu()), dim=-1)


class BiasedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.ffn = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True), Layer()

    def forward(self, x: Any, attn_bias: Any = None) -> Any:
        y = self.norm(x)
        y, _ = self.attn(y, y, y, attn_mask=attn_bias)
        return self.ffn(x + y)


@right(
    "atom_encoder|in_degree_encoder|edge_encoder|rel_pos_encoder|graph_token layers.0-2 final_ln|out_proj",
    name="a graph transformer with biases of its edges",
)
class Graphormer(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.atom_encoder, self.edge_encoder = nn.Embedding(20, 4, padding_idx=0), nn.Embedding(10, 1)
        self.rel_pos_encoder, self.in_degree_encoder = nn.Embedding(20, 1), nn.Embedding(8, 4)
        self.layers = nn.ModuleList([BiasedLayer() for _ in range(3)])
        self.final_ln, self.out_proj = nn.LayerNorm(4), nn.Linear(4, 1)
        self.graph_token = nn.Embedding(1, 4)
        self.automatic_optimization = True

    def forward(self, batched_data: Any, perturb: Any = None) -> Any:
        x, in_degree, rel_pos = batched_data.x, batched_data.in_degree, batched_data.rel_pos
        n_graph, _n_node = x.size()[:2]
        bias = self.rel_pos_encoder(rel_pos).squeeze(-1) + self.edge_encoder(batched_data.edge).squeeze(-1)
        node_feature = self.atom_encoder(x).sum(dim=-2)
        if perturb is not None:
            node_feature = node_feature + perturb
        node_feature = node_feature + self.in_degree_encoder(in_degree)
        token = self.graph_token.weight.unsqueeze(0).repeat(n_graph, 1, 1)
        output = torch.cat([token, node_feature], dim=1)
        for enc_layer in self.layers:
            output = enc_layer(output, F.pad(bias, (1, 0, 1, 0)).repeat_interleave(2, 0))
        return self.out_proj(self.final_ln(output)[:, 0, :])

    def training_step(self, batched_data: Any, batch_idx: int) -> Any:
        y_hat = self(batched_data).view(-1)
        return nn.L1Loss()(y_hat, batched_data.y.view(-1))


@right(
    "s.3|t.3 s.2|t.2 s.1|t.1 s.0|t.0",
    name="RealNVP: two lists of networks, run backwards on data",
)
class RealNvp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 2))
        self.t = nn.ModuleList([nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Linear(8, 2)) for _ in range(4)])
        self.s = nn.ModuleList(
            [nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Linear(8, 2), nn.Tanh()) for _ in range(4)]
        )

    def g(self, z: Any) -> Any:
        x = z
        for i in range(len(self.t)):
            x_ = x * self.mask[i]
            s, t = self.s[i](x_) * (1 - self.mask[i]), self.t[i](x_) * (1 - self.mask[i])
            x = x_ + (1 - self.mask[i]) * (x * torch.exp(s) + t)
        return x

    def f(self, x: Any) -> Any:
        log_det_j, z = x.new_zeros(x.shape[0]), x
        for i in reversed(range(len(self.t))):
            z_ = self.mask[i] * z
            s, t = self.s[i](z_) * (1 - self.mask[i]), self.t[i](z_) * (1 - self.mask[i])
            z = (1 - self.mask[i]) * (z - t) * torch.exp(-s) + z_
            log_det_j = log_det_j - s.sum(dim=1)
        return z, log_det_j

    def forward(self, x: Any) -> Any:
        z, logp = self.f(x)
        return -(z.pow(2).sum(1) / 2) + logp


class AdditiveCoupling(nn.Module):
    def __init__(self, mask_config: int) -> None:
        super().__init__()
        self.mask_config = mask_config
        self.in_block = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.mid_block = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)])
        self.out_block = nn.Linear(8, 4)

    def forward(self, x: Any, reverse: bool = False) -> Any:
        batch, w = x.size()
        x = x.reshape((batch, w // 2, 2))
        on, off = (x[:, :, 0], x[:, :, 1]) if self.mask_config else (x[:, :, 1], x[:, :, 0])
        off_ = self.in_block(off)
        for i in range(len(self.mid_block)):
            off_ = self.mid_block[i](off_)
        shift = self.out_block(off_)
        on = on - shift if reverse else on + shift
        x = torch.stack((on, off), dim=2) if self.mask_config else torch.stack((off, on), dim=2)
        return x.reshape((batch, w))


@right(
    rising=("coupling.0 coupling.1", "coupling.1 coupling.2", "coupling.2 coupling.3 scaling", "coupling.0 scaling"),
    name="NICE: additive couplings with a way back",
)
class Nice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.coupling = nn.ModuleList([AdditiveCoupling((1 + i) % 2) for i in range(4)])
        self.scaling = nn.Module()
        self.scaling.scale = nn.Parameter(torch.zeros((1, 8)))

    def g(self, z: Any) -> Any:
        x = z * torch.exp(-self.scaling.scale)
        for i in reversed(range(len(self.coupling))):
            x = self.coupling[i](x, reverse=True)
        return x

    def f(self, x: Any) -> Any:
        for i in range(len(self.coupling)):
            x = self.coupling[i](x)
        return x * torch.exp(self.scaling.scale), torch.sum(self.scaling.scale)

    def log_prob(self, x: Any) -> Any:
        z, log_det_j = self.f(x)
        return torch.sum(-(F.softplus(z) + F.softplus(-z)), dim=1) + log_det_j

    def sample(self, size: int) -> Any:
        return self.g(torch.randn(size, 8))

    def forward(self, x: Any) -> Any:
        return self.log_prob(x)


def resnet(classes: int = 4) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.layer1 = Conv(3), nn.Sequential(Conv(), Conv())
            self.layer2, self.fc = nn.Sequential(Conv(), Conv()), nn.Linear(4, classes)

        def forward(self, x: Any) -> Any:
            return self.fc(self.layer2(self.layer1(self.conv1(x))).mean([2, 3]))

    return Net()


_RESNET = "{0}.conv1 {0}.layer1.0-1 {0}.layer2.0-1 {0}.fc"


@right(_RESNET.format("encoder_q"), _RESNET.format("encoder_k"), name="MoCo: a queue and an encoder of momentum")
class Moco(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = resnet(), resnet()
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data.copy_(q.data)
            k.requires_grad = False
        self.encoder_q.fc = nn.Sequential(lin(), nn.ReLU(), self.encoder_q.fc)
        self.encoder_k.fc = nn.Sequential(lin(), nn.ReLU(), self.encoder_k.fc)
        self.register_buffer("queue", F.normalize(torch.randn(4, 16), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update_key_encoder(self) -> None:
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * 0.999 + q.data * 0.001

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Any) -> None:
        batch_size, ptr = keys.shape[0], int(self.queue_ptr)
        assert 16 % batch_size == 0
        self.queue[:, ptr : ptr + batch_size] = keys.T
        self.queue_ptr[0] = (ptr + batch_size) % 16

    def forward(self, img_q: Any, img_k: Any) -> Any:
        q = F.normalize(self.encoder_q(img_q), dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            idx = torch.randperm(img_k.shape[0])
            k = F.normalize(self.encoder_k(img_k[idx]), dim=1)[torch.argsort(idx)]
        l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([l_pos, l_neg], dim=1) / 0.07
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(logits.shape[0], dtype=torch.long)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (img_1, img_2), _ = batch
        output, target = self(img_q=img_1, img_k=img_2)
        return F.cross_entropy(output.float(), target.long())


class MultiPrototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nmb_heads = 2
        for i in range(2):
            self.add_module("prototypes" + str(i), nn.Linear(4, 6, bias=False))

    def forward(self, x: Any) -> Any:
        return [getattr(self, "prototypes" + str(i))(x) for i in range(self.nmb_heads)]


@right(
    rising=(
        "conv1 layer1.0", "layer1.0 layer1.1", "layer1.1 layer2.0", "layer2.0 layer2.1", "layer2.1 projection_head.0",
        "layer2.1 projection_head.0 projection_head.3", "layer2.1 prototypes.prototypes0",
        "layer2.1 projection_head.3 prototypes.prototypes1",
    ),
    name="SwAV: crops of many sizes, several sets of prototypes",
)  # fmt: skip
class Swav(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv(3)
        self.layer1, self.layer2 = nn.Sequential(Conv(), Conv()), nn.Sequential(Conv(), Conv())
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.projection_head = nn.Sequential(lin(), nn.BatchNorm1d(4), nn.ReLU(inplace=True), lin())
        self.prototypes: Any = MultiPrototypes()
        self.l2norm = True

    def forward_backbone(self, x: Any) -> Any:
        x = self.layer2(self.layer1(self.conv1(x)))
        return torch.flatten(self.avgpool(x), 1)

    def forward_head(self, x: Any) -> Any:
        if self.projection_head is not None:
            x = self.projection_head(x)
        if self.l2norm:
            x = nn.functional.normalize(x, dim=1, p=2)
        if self.prototypes is not None:
            return x, self.prototypes(x)
        return x

    def forward(self, inputs: Any) -> Any:
        if not isinstance(inputs, list):
            inputs = [inputs]
        sizes = torch.tensor([inp.shape[-1] for inp in inputs])
        idx_crops = torch.cumsum(torch.unique_consecutive(sizes, return_counts=True)[1], 0)
        start_idx, output = 0, None
        for end_idx in idx_crops:
            _out = self.forward_backbone(torch.cat(inputs[start_idx:end_idx]))
            output = _out if start_idx == 0 else torch.cat((output, _out))
            start_idx = end_idx
        return self.forward_head(output)


@right(
    "encoder.embed encoder.layers.0-2 classifier",
    name="an auxiliary decoder that runs every second step",
    rising=("encoder.layers.2 auxiliary",),
)
class EverySecond(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(lin(), nn.ReLU(), lin())
        self.classifier, self.encoder = nn.Linear(4, 2), Tower(3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        h = self.encoder(x)
        if self.global_step % 2 == 0:
            return F.mse_loss(self.auxiliary(h), x)
        return F.cross_entropy(self.classifier(h.mean(1)), y)


class StepQuantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s, self.init_yet = nn.Parameter(torch.ones(1)), False

    def forward(self, x: Any) -> Any:
        if self.training and not self.init_yet:
            self.s.data = x.detach().abs().mean() * 2 / 7**0.5
            self.init_yet = True
        scale = (self.s - self.s * 0.1).detach() + self.s * 0.1
        x = torch.clamp(x / scale, -8, 7)
        return ((x.round() - x).detach() + x) * scale


class QuantConv(nn.Conv2d):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
        self.quan_w_fn, self.quan_a_fn = StepQuantizer(), StepQuantizer()
        self.weight = nn.Parameter(conv.weight.detach())

    def forward(self, x: Any) -> Any:
        return self._conv_forward(self.quan_a_fn(x), self.quan_w_fn(self.weight), self.bias)


@right("conv1 layer1.0-1 layer2.0-1 fc", name="convolutions replaced by quantized ones with learned steps")
def quantized() -> nn.Module:
    model = resnet()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d:
                setattr(module, name, QuantConv(child))
    return model


class Decomposition(nn.Module):
    def __init__(self, kernel_size: int = 5) -> None:
        super().__init__()
        self.kernel_size, self.avg = kernel_size, nn.AvgPool1d(kernel_size, stride=1)

    def forward(self, x: Any) -> Any:
        front = x[:, 0:1, :].repeat(1, (self.kernel_size - 1) // 2, 1)
        end = x[:, -1:, :].repeat(1, (self.kernel_size - 1) // 2, 1)
        trend = self.avg(torch.cat([front, x, end], dim=1).permute(0, 2, 1)).permute(0, 2, 1)
        return x - trend, trend


@right("Linear_Seasonal.0|Linear_Seasonal.1|Linear_Seasonal.2|Linear_Trend.0|Linear_Trend.1|Linear_Trend.2",
       name="DLinear: one layer of everything, per channel")  # fmt: skip
class DLinear(nn.Module):
    def __init__(self, individual: bool = True) -> None:
        super().__init__()
        self.decompsition, self.individual, self.channels, self.pred_len = Decomposition(), individual, 3, 4
        self.Linear_Seasonal, self.Linear_Trend = nn.ModuleList(), nn.ModuleList()
        for _ in range(self.channels):
            self.Linear_Seasonal.append(nn.Linear(8, 4))
            self.Linear_Trend.append(nn.Linear(8, 4))

    def forward(self, x: Any) -> Any:
        seasonal_init, trend_init = self.decompsition(x)
        seasonal_init, trend_init = seasonal_init.permute(0, 2, 1), trend_init.permute(0, 2, 1)
        seasonal = torch.zeros([seasonal_init.size(0), seasonal_init.size(1), self.pred_len])
        trend = torch.zeros([trend_init.size(0), trend_init.size(1), self.pred_len])
        for i in range(self.channels):
            seasonal[:, i, :] = self.Linear_Seasonal[i](seasonal_init[:, i, :])
            trend[:, i, :] = self.Linear_Trend[i](trend_init[:, i, :])
        return (seasonal + trend).permute(0, 2, 1)


class RevIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.affine_weight, self.affine_bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Any, mode: str) -> Any:
        if mode == "norm":
            self.mean = torch.mean(x, dim=1, keepdim=True).detach()
            self.stdev = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
            return (x - self.mean) / self.stdev * self.affine_weight + self.affine_bias
        if mode == "denorm":
            return (x - self.affine_bias) / (self.affine_weight + 1e-10) * self.stdev + self.mean
        raise NotImplementedError


class SeriesLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.norm_attn, self.ff, self.norm_ffn = lin(), nn.BatchNorm1d(4), lin(), nn.BatchNorm1d(4)

    def forward(self, src: Any, prev: Any = None) -> Any:
        scores = src @ src.transpose(1, 2) + (0 if prev is None else prev)
        src = src + self.self_attn(scores.softmax(-1) @ src)
        src = self.norm_attn(src.transpose(1, 2)).transpose(1, 2)
        src = src + self.ff(src)
        return self.norm_ffn(src.transpose(1, 2)).transpose(1, 2), scores


@right(
    "model.backbone.W_P|model.backbone.W_pos model.backbone.encoder.0-2 model.head",
    rising=("revin_layer model.head",),
    name="PatchTST: a norm that is undone at the end",
)
class PatchTst(nn.Module):
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_P, self.W_pos = lin(), nn.Parameter(torch.zeros(2, 4))
            self.encoder, self.res_attention = nn.ModuleList([SeriesLayer() for _ in range(3)]), True

        def forward(self, x: Any) -> Any:
            n_vars = x.shape[1]
            x = self.W_P(x.unfold(dimension=-1, size=4, step=4))
            u = torch.reshape(x, (x.shape[0] * x.shape[1], x.shape[2], x.shape[3])) + self.W_pos
            scores = None
            if self.res_attention:
                for mod in self.encoder:
                    u, scores = mod(u, prev=scores)
            else:
                for mod in self.encoder:
                    u, _ = mod(u)
            return torch.reshape(u, (-1, n_vars, u.shape[-2], u.shape[-1])).permute(0, 1, 3, 2)

    def __init__(self) -> None:
        super().__init__()
        self.revin_layer = RevIn()
        self.model = nn.Module()
        self.model.backbone = PatchTst.Backbone()
        self.model.head = nn.Sequential(nn.Flatten(start_dim=-2), nn.Linear(8, 4))

    def forward(self, x: Any) -> Any:
        z = self.revin_layer(x, "norm").permute(0, 2, 1)
        z = self.model.head(self.model.backbone(z)).permute(0, 2, 1)
        return self.revin_layer(z, "denorm")


@right(
    rising=("encoder.W_i encoder.W_h", "encoder.W_h encoder.W_o", "encoder.W_o ffn.1", "ffn.1 ffn.4"),
    name="messages along bonds, one weight at every depth",
)
class Molecules(nn.Module):
    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cached_zero_vector = nn.Parameter(torch.zeros(4), requires_grad=False)
            self.W_i, self.W_h, self.W_o = nn.Linear(5, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(7, 4)
            self.depth, self.dropout_layer = 3, nn.Dropout(0.1)

        def forward(self, mol_graph: Any) -> Any:
            f_atoms, f_bonds, a2b, b2a, b2revb, a_scope = mol_graph
            inputs = self.W_i(f_bonds)
            message = F.relu(inputs)
            for _ in range(self.depth - 1):
                a_message = message[a2b].sum(dim=1)
                message = self.W_h(a_message[b2a] - message[b2revb])
                message = self.dropout_layer(F.relu(inputs + message))
            a_input = torch.cat([f_atoms, message[a2b].sum(dim=1)], dim=1)
            hiddens = self.dropout_layer(F.relu(self.W_o(a_input)))
            vecs = []
            for a_start, a_size in a_scope:
                if a_size == 0:
                    vecs.append(self.cached_zero_vector)
                else:
                    vecs.append(hiddens.narrow(0, a_start, a_size).sum(dim=0) / a_size)
            return torch.stack(vecs, dim=0)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Molecules.Messages()
        self.ffn = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, batch: Any) -> Any:
        return self.ffn(self.encoder(batch))


class CombinedExtractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        extractors: dict[str, nn.Module] = {}
        for key in ("image", "vector", "goal"):
            if key == "image":
                extractors[key] = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
            else:
                extractors[key] = nn.Flatten() if key == "goal" else nn.Linear(6, 4)
        self.extractors = nn.ModuleDict(extractors)

    def forward(self, observations: dict[str, Any]) -> Any:
        encoded = []
        for key, extractor in self.extractors.items():
            encoded.append(extractor(observations[key]))
        return torch.cat(encoded, dim=1)


@right(
    "features_extractor policy_net.0|value_net.0 policy_net.2|value_net.2 action_net|value_out|log_std",
    name="an agent that sees several things",
)
class MultiInputPolicy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features_extractor = CombinedExtractor()
        self.policy_net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.value_net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.action_net, self.value_out = nn.Linear(8, 2), nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, obs: dict[str, Any], deterministic: bool = False) -> Any:
        features = self.features_extractor(obs)
        latent_pi, latent_vf = self.policy_net(features), self.value_net(features)
        mean = self.action_net(latent_pi)
        distribution = torch.distributions.Normal(mean, torch.ones_like(mean) * self.log_std.exp())
        actions = distribution.mode if deterministic else distribution.rsample()
        return actions, self.value_out(latent_vf), distribution.log_prob(actions).sum(dim=1)


@right(
    rising=("encoder.0 encoder.2", "generator.0 generator.2", "disc_x.0 joint.0 joint.2", "disc_z.0 joint.0 joint.2"),
    name="BiGAN: pairs of images and codes are told apart",
)  # fmt: skip
class BiGan(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.disc_x, self.disc_z = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Sequential(nn.Linear(3, 8), nn.ReLU())
        self.joint = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        self.automatic_optimization = False

    def discriminate(self, x: Any, z: Any) -> Any:
        return self.joint(torch.cat([self.disc_x(x), self.disc_z(z)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        z = torch.randn(x.size(0), 3).type_as(x)
        opt_ge, opt_d = self.optimizers()
        real, fake = self.discriminate(x, self.encoder(x)), self.discriminate(self.generator(z), z)
        loss_d = F.softplus(-real).mean() + F.softplus(fake).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d, retain_graph=True)
        opt_d.step()
        opt_ge.zero_grad()
        self.manual_backward(F.softplus(real).mean() + F.softplus(-fake).mean())
        opt_ge.step()


class FilmedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_proj, self.conv1 = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Any, gammas: Any, betas: Any) -> Any:
        out = F.relu(self.input_proj(x))
        y = self.bn1(self.conv1(out))
        y = gammas[:, :, None, None] * y + betas[:, :, None, None]
        return out + F.relu(y)


@right(
    "film_gen|filmed_net.stem filmed_net.res_blocks_0 filmed_net.res_blocks_1 filmed_net.res_blocks_2 "
    "filmed_net.classifier",
    name="FiLM: a question sets the scales of residual blocks",
)
class Film(nn.Module):
    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder_embed, self.encoder_rnn = nn.Embedding(30, 4), nn.GRU(4, 4, batch_first=True)
            self.decoder_linear = nn.Linear(4, 24)

        def forward(self, question: Any) -> Any:
            _, h = self.encoder_rnn(self.encoder_embed(question))
            return self.decoder_linear(h.squeeze(0)).view(-1, 3, 8)

    class Filmed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_modules = 3
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.res_blocks = {}
            for fn_num in range(self.num_modules):
                mod = FilmedBlock()
                self.add_module(f"res_blocks_{fn_num}", mod)
                self.res_blocks[fn_num] = mod
            self.classifier = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x: Any, film: Any) -> Any:
            b, _, h, w = x.shape
            coords = torch.stack(torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"))
            feats = self.stem(x)
            gammas, betas = torch.split(film[:, :, :], 4, dim=-1)
            for fn_num in range(self.num_modules):
                layer_output = torch.cat([feats, coords.unsqueeze(0).expand(b, -1, -1, -1)], 1)
                feats = self.res_blocks[fn_num](layer_output, gammas[:, fn_num, :], betas[:, fn_num, :])
            return self.classifier(feats.amax((2, 3)))

    def __init__(self) -> None:
        super().__init__()
        self.film_gen, self.filmed_net = Film.Generator(), Film.Filmed()

    def forward(self, questions: Any, image: Any) -> Any:
        return self.filmed_net(image, self.film_gen(questions))


@dataclass
class Scene:
    points: Any
    weights: Any
    label: Any = None


@right(
    rising=("phi.0 phi.2", "phi.2 rho.0", "rho.0 rho.2", "phi.0 rho.2"),
    name="deep sets in a dataclass, spectral norms",
)
class DeepSets(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rho = nn.Sequential(spectral_norm(lin()), nn.ELU(), spectral_norm(nn.Linear(4, 2)))
        self.phi = nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.ELU(), spectral_norm(lin()))

    def forward(self, scene: Scene) -> Any:
        h = self.phi(scene.points)
        return self.rho((h * scene.weights[..., None]).sum(1) / scene.weights.sum(1, keepdim=True))

    def training_step(self, batch: Scene, batch_idx: int) -> Any:
        logits = self(batch)
        assert batch.label is not None
        return F.cross_entropy(logits, batch.label)


class FilmSine(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.layer = nn.Linear(a, b)

    def forward(self, x: Any, freq: Any, phase_shift: Any) -> Any:
        x = self.layer(x)
        return torch.sin(freq.unsqueeze(1).expand_as(x) * x + phase_shift.unsqueeze(1).expand_as(x))


@right(
    "mapping_network net.0-3 final_layer|color_layer_sine|color_layer_linear",
    name="pi-GAN: sines whose frequencies a mapping sets",
)
class SineRadiance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([FilmSine(3, 4), FilmSine(4, 4), FilmSine(4, 4), FilmSine(4, 4)])
        self.final_layer = nn.Linear(4, 1)
        self.color_layer_sine = FilmSine(7, 4)
        self.color_layer_linear = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
        self.mapping_network = nn.Module()
        self.mapping_network.network = nn.Sequential(
            nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 40)
        )

    def forward(self, inp: Any, z: Any, ray_directions: Any, **kwargs: Any) -> Any:
        out = self.mapping_network.network(z)
        frequencies, phase_shifts = out[..., :20], out[..., 20:]
        return self.forward_with_frequencies_phase_shifts(inp, frequencies, phase_shifts, ray_directions)

    def forward_with_frequencies_phase_shifts(self, inp: Any, frequencies: Any, phase_shifts: Any, rays: Any) -> Any:
        frequencies = frequencies * 15 + 30
        x = inp
        for index, layer in enumerate(self.net):
            start, end = index * 4, (index + 1) * 4
            x = layer(x, frequencies[..., start:end], phase_shifts[..., start:end])
        sigma = self.final_layer(x)
        rgb = self.color_layer_sine(torch.cat([rays, x], dim=-1), frequencies[..., -4:], phase_shifts[..., -4:])
        return torch.cat([self.color_layer_linear(rgb), sigma], dim=-1)


class DilatedBlock(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv1d(4, 4, 3, padding=2 * dilation, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(4, 4, 3, padding=2 * dilation, dilation=dilation))
        self.chomp = 2 * dilation

    def forward(self, x: Any) -> Any:
        y = self.conv1(x)[..., : -self.chomp].relu()
        return (x + self.conv2(y)[..., : -self.chomp]).relu()


@right(
    "encoder word_tcn.0-2 head",
    name="temporal blocks with norms of their weights",
)
class TiedTcn(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(30, 4)
        self.word_tcn = nn.Sequential(*[DilatedBlock(2**i) for i in range(3)])
        self.head = nn.Linear(4, 30)
        self.drop = nn.Dropout(0.45)

    def forward(self, inp: Any) -> Any:
        emb = self.drop(self.encoder(inp))
        return self.head(self.word_tcn(emb.transpose(1, 2)).transpose(1, 2)).contiguous()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        data, targets = batch
        output = self(data)
        eff = data.size(1) - random.randint(0, 2)
        return F.cross_entropy(output[:, -eff:].reshape(-1, 30), targets[:, -eff:].reshape(-1))


@right(
    rising=("encoder.0 encoder.2", "encoder.2 decoder.0", "decoder.0 decoder.2"),
    name="an autoencoder whose forward is its encoder alone",
)
class LitAutoEncoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28, 8), nn.ReLU(), nn.Linear(8, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 28))

    def forward(self, x: Any) -> Any:
        return self.encoder(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, _ = batch
        x = x.view(x.size(0), -1)
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("train_loss", loss)
        return loss


@right(
    "student.embed student.layers.0-2 student_head",
    "teacher.embed teacher.layers.0-3 teacher_head",
    name="a frozen, deeper teacher of other shapes",
)
class Distil(LightningModule):
    """Each is counted as it would be alone; the teacher's head is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.teacher_head = Tower(4), nn.Linear(4, 5)
        for p in (*self.teacher.parameters(), *self.teacher_head.parameters()):
            p.requires_grad_(False)
        self.teacher.eval()
        self.student, self.student_head = Tower(3), nn.Linear(4, 5)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        with torch.no_grad():
            t_logits = self.teacher_head(self.teacher(x).mean(1))
        s_logits = self.student_head(self.student(x).mean(1))
        kd = F.kl_div(F.log_softmax(s_logits / 2, -1), F.softmax(t_logits / 2, -1), reduction="batchmean") * 4
        return 0.5 * kd + 0.5 * F.cross_entropy(s_logits, y)


@right("wte|prompt h.0-2 ln_f", name="prompt tuning: a soft prompt before frozen blocks")
class SoftPrompt(nn.Module):
    """The prompt enters the blocks beside the embedding: the stem. The head is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.prompt = nn.Embedding(30, 4), nn.Parameter(torch.randn(3, 4))
        self.h, self.ln_f = layers(3), nn.LayerNorm(4)
        for p in (*self.wte.parameters(), *self.h.parameters()):
            p.requires_grad_(False)

    def forward(self, ids: Any) -> Any:
        x = torch.cat([self.prompt.expand(ids.shape[0], -1, -1), self.wte(ids)], 1)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)
