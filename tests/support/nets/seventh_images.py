"""Seventh sample, images: their right order written before the first run, by the rules of the card."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.nets.collection import right


# ---------------------------------------------------------------------- residual networks
class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes * self.expansion:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes * self.expansion)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


@right(
    "conv1|bn1 layer1.0-1 layer2.0-1 layer3.0 layer3.1 layer3.2 linear",
    name="ResNet for CIFAR with a list of block counts",
)
class ResNetCIFAR(nn.Module):
    def __init__(self, block=BasicBlock, num_blocks=(2, 2, 3), num_classes=10):
        super().__init__()
        self.in_planes = 4
        self.conv1 = nn.Conv2d(3, 4, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        for i, (width, count) in enumerate(zip((4, 8, 16), num_blocks, strict=True)):
            setattr(self, f"layer{i + 1}", self._make_layer(block, width, count, stride=1 if i == 0 else 2))
        self.linear = nn.Linear(16 * block.expansion, num_classes)

    def _make_layer(self, block, planes, num_blocks, stride):
        strides = [stride] + [1] * (num_blocks - 1)
        layers = []
        for stride in strides:
            layers.append(block(self.in_planes, planes, stride))
            self.in_planes = planes * block.expansion
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, 4):
            out = getattr(self, f"layer{i}")(out)
        out = F.avg_pool2d(out, out.size(-1))
        out = out.view(out.size(0), -1)
        return self.linear(out)


@right(
    "stem res2.0-1 res3.0-1 res4.0-1 laterals|classifier",
    name="semantic FPN that reads a dict and returns losses when there is a mask",
)
class SemanticFPN(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.classifier = nn.Conv2d(8, num_classes, 1)
        self.laterals = nn.ModuleList([nn.Conv2d(c, 8, 1) for c in (4, 8, 16)])
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.res2 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.res3 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8))
        self.res4 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.register_buffer("pixel_mean", torch.tensor([0.48, 0.45, 0.4]).view(1, 3, 1, 1))

    def forward(self, batch):
        x = batch["image"] - self.pixel_mean
        c2 = self.res2(self.stem(x))
        c3 = self.res3(c2)
        c4 = self.res4(c3)
        fused = 0
        for lateral, feature in zip(self.laterals, [c2, c3, c4], strict=True):
            fused = fused + F.interpolate(lateral(feature), size=c2.shape[-2:], mode="bilinear", align_corners=False)
        logits = F.interpolate(self.classifier(fused), scale_factor=2, mode="bilinear", align_corners=False)
        if "mask" in batch:
            return {"loss": F.cross_entropy(logits, batch["mask"], ignore_index=255)}
        return {"logits": logits}


class Bottleneck(nn.Module):
    """A layer of DenseNet."""

    def __init__(self, width, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat([out, x], 1)


@right(
    "conv_in dense0.0 dense0.1 trans0|dense1.0 dense1.1 trans1|dense2.0 dense2.1 bn|linear",
    name="DenseNet whose stages are set in a loop, with checkpoints",
)
class DenseNet(nn.Module):
    def __init__(self, growth=4, layout=(2, 2, 2), use_checkpoint=True):
        super().__init__()
        self.layout, self.use_checkpoint = layout, use_checkpoint
        width = 2 * growth
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for stage, count in enumerate(layout):
            blocks = []
            for _ in range(count):
                blocks.append(Bottleneck(width, growth))
                width += growth
            self.add_module(f"dense{stage}", nn.Sequential(*blocks))
            if stage + 1 < len(layout):
                trans = nn.Sequential(
                    nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2)
                )
                self.add_module(f"trans{stage}", trans)
                width //= 2
        self.bn, self.linear = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.conv_in(x)
        for stage in range(len(self.layout)):
            dense = getattr(self, f"dense{stage}")
            x = checkpoint(dense, x, use_reentrant=False) if self.use_checkpoint and self.training else dense(x)
            if hasattr(self, f"trans{stage}"):
                x = getattr(self, f"trans{stage}")(x)
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        return self.linear(x)


class IRBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x):
        return self.res_layer(x) + x


class ArcMargin(nn.Module):
    def __init__(self, width, classes, s=16.0, m=0.3):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, classes))
        self.s, self.cos_m, self.sin_m = s, math.cos(m), math.sin(m)

    def forward(self, embeddings, label):
        cos = (F.normalize(embeddings) @ F.normalize(self.kernel, dim=0)).clamp(-1 + 1e-6, 1 - 1e-6)
        sin = torch.sqrt(1 - cos**2)
        phi = cos * self.cos_m - sin * self.sin_m
        one_hot = torch.zeros_like(cos)
        one_hot.scatter_(1, label.view(-1, 1), 1)
        return self.s * torch.where(one_hot.bool(), phi, cos)


@right(
    "input_layer body.0-2 output_layer|margin.kernel",
    name="face recognition: a margin on top, no forward",
)
class ArcFace(LightningModule):
    def __init__(self, classes=7):
        super().__init__()
        self.margin = ArcMargin(8, classes)
        self.input_layer = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.PReLU(4))
        self.body = nn.Sequential(*[IRBlock(4) for _ in range(3)])
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(4), nn.Dropout(0.4), nn.Flatten(), nn.Linear(4 * 8 * 8, 8), nn.BatchNorm1d(8)
        )
        self.save_hyperparameters(ignore=["margin"])

    def embed(self, image):
        return self.output_layer(self.body(self.input_layer(image)))

    def training_step(self, batch, batch_idx):
        image, label = batch
        logits = self.margin(self.embed(image), label)
        loss = F.cross_entropy(logits, label)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        a, b, same = batch
        similarity = F.cosine_similarity(self.embed(a), self.embed(b))
        self.log("val/acc", ((similarity > 0.3) == same).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


# ---------------------------------------------------------------------- restoration and generation
class ResidualBlockNoBN(nn.Module):
    def __init__(self, num_feat=8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.conv2(self.relu(self.conv1(x))) * 0.2


class SRNet(nn.Module):
    def __init__(self, num_feat=8, num_block=3):
        super().__init__()
        self.conv_first = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlockNoBN(num_feat) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upconv = nn.Conv2d(num_feat, num_feat * 4, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        out = self.lrelu(self.pixel_shuffle(self.upconv(feat)))
        out = self.conv_last(out)
        return out + F.interpolate(x, scale_factor=2, mode="bicubic")


class DBlock(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv, self.norm = nn.utils.spectral_norm(nn.Conv2d(a, b, 3, 2, 1)), nn.GroupNorm(2, b)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.from_rgb = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([DBlock(4, 8), DBlock(8, 8), DBlock(8, 8)])
        self.fc = nn.Linear(8, 1)

    def forward(self, img):
        x = self.from_rgb(img)
        for b in self.blocks:
            x = b(x)
        return self.fc(x.mean(dim=(2, 3)))


@right(
    "net_g.conv_first net_g.body.0-2 net_g.conv_body|net_g.upconv|net_g.conv_last",
    "net_d.from_rgb net_d.blocks.0-2 net_d.fc",
    name="super-resolution with a critic and a perceptual loss, by hand optimized",
)
class SRGAN(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net_d = Critic()
        self.net_g = SRNet()
        self.vgg = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.vgg.requires_grad_(False)
        self.l1 = nn.L1Loss()

    def forward(self, lq):
        return self.net_g(lq).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        opt_g, opt_d = self.optimizers()
        lq, gt = batch["lq"], batch["gt"]
        sr = self.net_g(lq)
        loss_pix = self.l1(sr, gt)
        loss_percep = self.l1(self.vgg(sr), self.vgg(gt).detach())
        loss_gan = F.softplus(-self.net_d(sr)).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_pix + 0.1 * loss_percep + 5e-3 * loss_gan)
        opt_g.step()
        loss_d = F.softplus(-self.net_d(gt)).mean() + F.softplus(self.net_d(sr.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        self.log_dict({"l_pix": loss_pix, "l_d": loss_d})

    def configure_optimizers(self):
        adam = torch.optim.Adam
        return adam(self.net_g.parameters(), lr=1e-4), adam(self.net_d.parameters(), lr=1e-4)


class ResnetBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), nn.InstanceNorm2d(dim), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), nn.InstanceNorm2d(dim),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv_block(x)


class Translator(nn.Module):
    def __init__(self, dim=4, n=2):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, dim, 7, padding=3), nn.InstanceNorm2d(dim), nn.ReLU(True))
        self.transform = nn.Sequential(*[ResnetBlock(dim) for _ in range(n)])
        self.leave = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh())

    def forward(self, x):
        return self.leave(self.transform(self.enter(x)))


def patch_critic(dim=4):
    return nn.Sequential(
        nn.Conv2d(3, dim, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(dim, dim, 4, 2, 1), nn.InstanceNorm2d(dim),
        nn.LeakyReLU(0.2), nn.Conv2d(dim, 1, 3, padding=1),
    )  # fmt: skip


@right(
    "g_ab.enter g_ab.transform.0-1 g_ab.leave", "g_ba.enter g_ba.transform.0-1 g_ba.leave",
    rising=("d_a.0 d_a.2 d_a.5", "d_b.0 d_b.2 d_b.5"),
    name="CycleGAN: two translators, two patch critics",
)  # fmt: skip
class CycleGAN(LightningModule):
    def __init__(self, lambda_cycle=10.0):
        super().__init__()
        self.g_ab, self.g_ba = Translator(), Translator()
        self.d_a, self.d_b = patch_critic(), patch_critic()
        self.lambda_cycle = lambda_cycle
        self.automatic_optimization = False

    def generator_loss(self, real_a, real_b):
        fake_b, fake_a = self.g_ab(real_a), self.g_ba(real_b)
        pred_a, pred_b = self.d_a(fake_a), self.d_b(fake_b)
        adv = F.mse_loss(pred_a, torch.ones_like(pred_a)) + F.mse_loss(pred_b, torch.ones_like(pred_b))
        cycle = F.l1_loss(self.g_ba(fake_b), real_a) + F.l1_loss(self.g_ab(fake_a), real_b)
        identity = F.l1_loss(self.g_ba(real_a), real_a) + F.l1_loss(self.g_ab(real_b), real_b)
        return adv + self.lambda_cycle * (cycle + 0.5 * identity), fake_a, fake_b

    def training_step(self, batch, batch_idx):
        real_a, real_b = batch
        g_opt, d_opt = self.optimizers()
        self.toggle_optimizer(g_opt)
        g_loss, fake_a, fake_b = self.generator_loss(real_a, real_b)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.untoggle_optimizer(g_opt)
        self.toggle_optimizer(d_opt)
        d_loss = 0
        for net, real, fake in ((self.d_a, real_a, fake_a), (self.d_b, real_b, fake_b)):
            d_loss = d_loss + ((net(real) - 1) ** 2).mean() + (net(fake.detach()) ** 2).mean()
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()
        self.untoggle_optimizer(d_opt)
        self.log("g", g_loss)

    def configure_optimizers(self):
        g = torch.optim.Adam([*self.g_ab.parameters(), *self.g_ba.parameters()], lr=2e-4, betas=(0.5, 0.999))
        d = torch.optim.Adam([*self.d_a.parameters(), *self.d_b.parameters()], lr=2e-4, betas=(0.5, 0.999))
        return g, d


class VectorQuantizer(nn.Module):
    def __init__(self, n_e=16, dim=4, beta=0.25):
        super().__init__()
        self.embedding, self.n_e, self.beta = nn.Embedding(n_e, dim), n_e, beta

    def forward(self, z):
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        w = self.embedding.weight
        d = flat.pow(2).sum(1, keepdim=True) + w.pow(2).sum(1) - 2 * flat @ w.t()
        idx = torch.argmin(d, dim=1)
        z_q = self.embedding(idx).view(z.shape)
        loss = self.beta * ((z_q.detach() - z) ** 2).mean() + ((z_q - z.detach()) ** 2).mean()
        z_q = z + (z_q - z).detach()
        return z_q.permute(0, 3, 1, 2), loss, idx


@right(
    "dec_res.0-1 dec_out",
    rising=("enc_in enc_res.0-1 dec_res.0-1 dec_out",),
    name="VQ-VAE with a straight-through codebook",
)
class VQVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc_in = nn.Conv2d(3, 4, 4, 2, 1)
        self.enc_res = nn.ModuleList([ResidualBlockNoBN(4) for _ in range(2)])
        self.pre_quant = nn.Conv2d(4, 4, 1)
        self.vq = VectorQuantizer()
        self.dec_res = nn.ModuleList([ResidualBlockNoBN(4) for _ in range(2)])
        self.dec_out = nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def encode(self, x):
        h = self.enc_in(x)
        for block in self.enc_res:
            h = block(h)
        return self.pre_quant(h)

    def decode(self, z):
        for block in self.dec_res:
            z = block(z)
        return self.dec_out(z)

    def forward(self, x, return_codes=False):
        z_q, vq_loss, codes = self.vq(self.encode(x))
        recon = self.decode(z_q)
        loss = F.mse_loss(recon, x) + vq_loss
        return (recon, loss, codes) if return_codes else (recon, loss)


# ---------------------------------------------------------------------- diffusion
def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def timestep_embedding(t, dim, max_period=10000):
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class DiTBlock(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(approximate="tanh"), nn.Linear(2 * d, d))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x, c):
        s1, k1, g1, s2, k2, g2 = self.adaLN_modulation(c).chunk(6, dim=1)
        h = modulate(self.norm1(x), s1, k1)
        x = x + g1.unsqueeze(1) * self.attn(h, h, h, need_weights=False)[0]
        return x + g2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), s2, k2))


class DiT(nn.Module):
    def __init__(self, d=8, depth=3, classes=10, patch=2):
        super().__init__()
        self.patch, self.d = patch, d
        self.x_embedder = nn.Linear(3 * patch * patch, d)
        self.t_embedder = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.y_embedder = nn.Embedding(classes + 1, d)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, d), requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(d) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(d, elementwise_affine=False)
        self.final_mod, self.final = nn.Linear(d, 2 * d), nn.Linear(d, 3 * patch * patch)

    def forward(self, x, t, y):
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        x = self.x_embedder(x) + self.pos_embed
        c_ = self.t_embedder(timestep_embedding(t, self.d)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c_)
        shift, scale = self.final_mod(F.silu(c_)).chunk(2, dim=1)
        x = self.final(modulate(self.norm_final(x), shift, scale))
        x = x.reshape(b, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(b, c, h, w)


@right(
    "net.x_embedder|net.pos_embed|net.t_embedder|net.y_embedder net.blocks.0-2 net.final_mod|net.final",
    name="diffusion transformer in the preconditioning of EDM",
)
class EDMPrecond(nn.Module):
    def __init__(self, sigma_data=0.5, drop=0.1, **net_kwargs):
        super().__init__()
        self.net = DiT(**net_kwargs)
        self.sigma_data, self.drop = sigma_data, drop

    def denoise(self, x, sigma, y):
        sigma = sigma.view(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        f_x = self.net(c_in * x, sigma.log().flatten() / 4, y)
        return c_skip * x + c_out * f_x

    def forward(self, images, labels):
        sigma = (torch.randn(images.shape[0], device=images.device) * 1.2 - 1.2).exp()
        labels = torch.where(torch.rand_like(sigma) < self.drop, torch.full_like(labels, 10), labels)
        noise = torch.randn_like(images) * sigma.view(-1, 1, 1, 1)
        denoised = self.denoise(images + noise, sigma, labels)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return (weight.view(-1, 1, 1, 1) * (denoised - images) ** 2).mean()


class TimeRes(nn.Module):
    def __init__(self, a, b, emb=8):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, b))
        self.out_layers = nn.Sequential(nn.GroupNorm(2, b), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1))
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        return self.skip(x) + self.out_layers(h)


class TinyUNet(nn.Module):
    def __init__(self, c=4):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.conv_in = nn.Conv2d(3, c, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimeRes(c, c), TimeRes(c, 2 * c)])
        self.middle_block = TimeRes(2 * c, 2 * c)
        self.output_blocks = nn.ModuleList([TimeRes(4 * c, c), TimeRes(2 * c, c)])
        self.out = nn.Sequential(nn.GroupNorm(2, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    def forward(self, x, t, control=None):
        emb = self.time_embed(timestep_embedding(t, 8))
        h, hs = self.conv_in(x), []
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        if control is not None:
            h = h + control.pop()
        for module in self.output_blocks:
            skip = hs.pop()
            if control is not None:
                skip = skip + control.pop()
            h = module(torch.cat([h, skip], dim=1), emb)
        return self.out(h)


@right(
    "unet.conv_in|unet.time_embed unet.input_blocks.0-1 unet.middle_block unet.output_blocks.0-1 unet.out",
    rising=("hint input_blocks.0-1 middle_block unet.output_blocks.0-1 unet.out",),
    name="ControlNet: a locked U-Net and a trained copy of its encoder",
)
class ControlNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = TinyUNet().requires_grad_(False)
        self.time_embed = copy.deepcopy(self.unet.time_embed)
        self.conv_in = copy.deepcopy(self.unet.conv_in)
        self.input_blocks = copy.deepcopy(self.unet.input_blocks)
        self.middle_block = copy.deepcopy(self.unet.middle_block)
        self.hint = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), self.zero(nn.Conv2d(4, 4, 3, padding=1)))
        self.zero_convs = nn.ModuleList([self.zero(nn.Conv2d(c, c, 1)) for c in (4, 8)])
        self.middle_out = self.zero(nn.Conv2d(8, 8, 1))
        for name in ("time_embed", "conv_in", "input_blocks", "middle_block"):
            getattr(self, name).requires_grad_(True)

    @staticmethod
    def zero(module):
        for p in module.parameters():
            nn.init.zeros_(p)
        return module

    def control(self, x, t, hint):
        emb = self.time_embed(timestep_embedding(t, 8))
        outs, h = [], self.conv_in(x) + self.hint(hint)
        for module, zero_conv in zip(self.input_blocks, self.zero_convs, strict=True):
            h = module(h, emb)
            outs.append(zero_conv(h))
        outs.append(self.middle_out(self.middle_block(h, emb)))
        return outs

    def forward(self, x, t, hint, strength=1.0):
        control = [c * strength for c in self.control(x, t, hint)]
        return self.unet(x, t, control=control)


class Attend(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(1, dim)
        self.to_qkv, self.to_out = nn.Conv2d(dim, dim * 3, 1, bias=False), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        sim = torch.einsum("b h d i, b h d j -> b h i j", q * q.shape[2] ** -0.5, k)
        out = torch.einsum("b h i j, b h d j -> b h d i", sim.softmax(dim=-1), v)
        return self.to_out(out.reshape(b, c, h, w)) + x


@right(
    rising=("init_conv downs.0 downs.1 mid_block1 mid_attn mid_block2 ups.0 ups.1 final_res final_conv",),
    name="U-Net of levels that are lists of blocks, attention and resampling",
)
class LevelUnet(nn.Module):
    def __init__(self, dim=4, dim_mults=(1, 2), self_condition=True):
        super().__init__()
        self.self_condition = self_condition
        self.init_conv = nn.Conv2d(3 * (2 if self_condition else 1), dim, 7, padding=3)
        dims = [dim, *(dim * m for m in dim_mults)]
        in_out = list(pairwise(dims))
        self.time_mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.downs, self.ups = nn.ModuleList([]), nn.ModuleList([])
        for i, (a, b) in enumerate(in_out):
            down = nn.Conv2d(a, b, 4, 2, 1) if i < len(in_out) - 1 else nn.Conv2d(a, b, 3, padding=1)
            self.downs.append(nn.ModuleList([TimeRes(a, a), TimeRes(a, a), Attend(a), down]))
        self.mid_block1, self.mid_attn = TimeRes(dims[-1], dims[-1]), Attend(dims[-1])
        self.mid_block2 = TimeRes(dims[-1], dims[-1])
        for i, (a, b) in enumerate(reversed(in_out)):
            conv = nn.Conv2d(b, a, 3, padding=1)
            up = nn.Sequential(nn.Upsample(scale_factor=2), conv) if i < len(in_out) - 1 else conv
            self.ups.append(nn.ModuleList([TimeRes(a + b, b), TimeRes(a + b, b), Attend(b), up]))
        self.final_res, self.final_conv = TimeRes(dim * 2, dim), nn.Conv2d(dim, 3, 1)

    def forward(self, x, time, x_self_cond=None):
        if self.self_condition:
            x_self_cond = torch.zeros_like(x) if x_self_cond is None else x_self_cond
            x = torch.cat((x_self_cond, x), dim=1)
        x = self.init_conv(x)
        r = x.clone()
        t = self.time_mlp(timestep_embedding(time, 8))
        h = []
        for block1, block2, attn, downsample in self.downs:
            x = block1(x, t)
            h.append(x)
            x = attn(block2(x, t))
            h.append(x)
            x = downsample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, t)), t)
        for block1, block2, attn, upsample in self.ups:
            x = block1(torch.cat((x, h.pop()), dim=1), t)
            x = block2(torch.cat((x, h.pop()), dim=1), t)
            x = upsample(attn(x))
        return self.final_conv(self.final_res(torch.cat((x, r), dim=1), t))


# ---------------------------------------------------------------------- transformers
class ViTBlock(nn.Module):
    def __init__(self, dim, heads=2, init_values=1e-4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj, self.heads = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), heads
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma_1, self.gamma_2 = (nn.Parameter(init_values * torch.ones(dim)) for _ in range(2))

    def attend(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def forward(self, x):
        x = x + self.gamma_1 * self.attend(self.norm1(x))
        return x + self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


@right(
    "patch_embed|cls_token|dist_token|register_tokens|pos_embed blocks.0-2 norm|head|head_dist",
    name="distilled ViT with registers and two heads",
)
class DistilledViT(nn.Module):
    def __init__(self, dim=8, depth=3, registers=2, classes=10):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token, self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 16 + 2, dim) * 0.02)
        self.head, self.head_dist = nn.Linear(dim, classes), nn.Linear(dim, classes)
        self.blocks = nn.Sequential(*[ViTBlock(dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward_features(self, x):
        b = x.shape[0]
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(b, -1, -1), self.dist_token.expand(b, -1, -1), x), dim=1)
        x = x + self.pos_embed
        x = torch.cat((x[:, :2], self.register_tokens.expand(b, -1, -1), x[:, 2:]), dim=1)
        x = self.norm(self.blocks(x))
        return x[:, 0], x[:, 1]

    def forward(self, x):
        x, x_dist = self.forward_features(x)
        x, x_dist = self.head(x), self.head_dist(x_dist)
        return (x, x_dist) if self.training else (x + x_dist) / 2


class SmallViT(nn.Module):
    def __init__(self, dim=8, depth=2):
        super().__init__()
        self.proj, self.cls_token = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.zeros(1, 1, dim))
        self.layers, self.ln = nn.ModuleList(ViTBlock(dim) for _ in range(depth)), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.ln(x)[:, 0]


class DINOHead(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, 8))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(8, out, bias=False))

    def forward(self, x):
        return self.last(F.normalize(self.mlp(x), dim=-1))


@right(
    "backbone.proj|backbone.cls_token|t_backbone.proj|t_backbone.cls_token backbone.layers.0-1|t_backbone.layers.0-1 "
    "backbone.ln|t_backbone.ln|head|t_head",
    name="DINO: crops of two sizes, a momentum teacher, no forward",
)
class DINO(LightningModule):
    def __init__(self, out=12):
        super().__init__()
        self.backbone, self.head = SmallViT(), DINOHead(8, out)
        self.t_backbone, self.t_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        for p in [*self.t_backbone.parameters(), *self.t_head.parameters()]:
            p.requires_grad = False
        self.register_buffer("center", torch.zeros(1, out))

    def training_step(self, crops, batch_idx):
        global_crops, local_crops = crops[:2], crops[2:]
        with torch.no_grad():
            targets = [self.t_head(self.t_backbone(c)) for c in global_crops]
            probs = [((t - self.center) / 0.04).softmax(-1) for t in targets]
        outs = [self.head(self.backbone(c)) for c in [*global_crops, *local_crops]]
        loss, terms = 0, 0
        for i, p in enumerate(probs):
            for j, o in enumerate(outs):
                if i == j:
                    continue
                loss = loss + torch.sum(-p * F.log_softmax(o / 0.1, dim=-1), dim=-1).mean()
                terms += 1
        self.center.mul_(0.9).add_(torch.cat(targets).mean(0, keepdim=True), alpha=0.1)
        return loss / terms

    @torch.no_grad()
    def on_train_batch_end(self, *args):
        for a, b in ((self.backbone, self.t_backbone), (self.head, self.t_head)):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                q.mul_(0.996).add_(p, alpha=0.004)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@right(
    "to_patch|pos_embedding|space_token space.layers.0 space.layers.1|space.norm "
    "temporal.layers.0|temporal_token temporal.layers.1 temporal.norm|mlp_head",
    name="video transformer, first over space and then over time",
)
class FactorisedViViT(nn.Module):
    class Stack(nn.Module):
        def __init__(self, dim, depth):
            super().__init__()
            self.norm = nn.LayerNorm(dim)
            self.layers = nn.ModuleList([ViTBlock(dim) for _ in range(depth)])

        def forward(self, x):
            for block in self.layers:
                x = block(x)
            return self.norm(x)

    def __init__(self, dim=8, frames=4):
        super().__init__()
        self.to_patch = nn.Linear(3 * 4 * 4, dim)
        self.pos_embedding = nn.Parameter(torch.randn(1, frames, 5, dim))
        self.space_token, self.temporal_token = (
            nn.Parameter(torch.randn(1, 1, dim)),
            nn.Parameter(torch.randn(1, 1, dim)),
        )
        self.space, self.temporal = self.Stack(dim, 2), self.Stack(dim, 2)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 6))

    def forward(self, video):
        b, t, c, h, w = video.shape
        x = video.reshape(b, t, c, h // 4, 4, w // 4, 4).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, t, -1, c * 16)
        x = self.to_patch(x)
        cls_space = self.space_token.unsqueeze(1).expand(b, t, -1, -1)
        x = torch.cat((cls_space, x), dim=2)
        x += self.pos_embedding[:, :, : x.shape[2]]
        x = self.space(x.flatten(0, 1))[:, 0].reshape(b, t, -1)
        x = torch.cat((self.temporal_token.expand(b, -1, -1), x), dim=1)
        x = self.temporal(x)
        return self.mlp_head(x[:, 0])


class MixBlock(nn.Module):
    def __init__(self, dim, sr):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, sr, sr) if sr > 1 else None
        self.fc1, self.dwconv, self.fc2 = (
            nn.Linear(dim, dim),
            nn.Conv2d(dim, dim, 3, 1, 1, groups=dim),
            nn.Linear(dim, dim),
        )

    def forward(self, x, h, w):
        b, _, c = x.shape
        y = self.norm1(x)
        q, src = self.q(y), y
        if self.sr is not None:
            src = self.sr(y.transpose(1, 2).view(b, c, h, w)).flatten(2).transpose(1, 2)
        k, v = self.kv(src).chunk(2, dim=-1)
        x = x + self.proj((q @ k.transpose(1, 2) * c**-0.5).softmax(-1) @ v)
        y = self.fc1(self.norm2(x)).transpose(1, 2).reshape(b, c, h, w)
        return x + self.fc2(F.gelu(self.dwconv(y).flatten(2).transpose(1, 2)))


@right(
    "patch_embed1 block1.0 block1.1|norm1 patch_embed2|block2.0 block2.1 norm2|decode.linear_c|decode.fuse|decode.pred",
    name="SegFormer by hand: numbered stages and an all-MLP head",
)
class MiniSegFormer(nn.Module):
    class Head(nn.Module):
        def __init__(self, dims, dim, classes):
            super().__init__()
            self.linear_c = nn.ModuleList([nn.Linear(d, dim) for d in dims])
            self.fuse = nn.Conv2d(dim * len(dims), dim, 1, bias=False)
            self.pred = nn.Conv2d(dim, classes, 1)

        def forward(self, feats):
            outs = []
            for f, linear in zip(feats, self.linear_c, strict=True):
                b, _, h, w = f.shape
                y = linear(f.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, -1, h, w)
                outs.append(F.interpolate(y, size=feats[0].shape[2:], mode="bilinear"))
            return self.pred(F.relu(self.fuse(torch.cat(outs[::-1], dim=1))))

    def __init__(self, dims=(4, 8), classes=5):
        super().__init__()
        self.patch_embed1 = nn.Conv2d(3, dims[0], 7, 4, 3)
        self.patch_embed2 = nn.Conv2d(dims[0], dims[1], 3, 2, 1)
        self.block1 = nn.ModuleList([MixBlock(dims[0], 2) for _ in range(2)])
        self.norm1 = nn.LayerNorm(dims[0])
        self.block2 = nn.ModuleList([MixBlock(dims[1], 1) for _ in range(2)])
        self.norm2 = nn.LayerNorm(dims[1])
        self.decode = self.Head(dims, 8, classes)

    def forward_features(self, x):
        outs = []
        for i in (1, 2):
            x = getattr(self, f"patch_embed{i}")(x)
            b, _, h, w = x.shape
            x = x.flatten(2).transpose(1, 2)
            for blk in getattr(self, f"block{i}"):
                x = blk(x, h, w)
            x = getattr(self, f"norm{i}")(x)
            x = x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
            outs.append(x)
        return outs

    def forward(self, x):
        out = self.decode(self.forward_features(x))
        return F.interpolate(out, size=x.shape[2:], mode="bilinear")


@right(
    "mask_token|decoder_blocks.0 decoder_blocks.1 decoder_norm|decoder_pred",
    rising=("patch_embed blocks.0-2 decoder_blocks.0-1 decoder_pred", "cls_token blocks.0"),
    name="masked autoencoder with random masking",
)
class MAE(nn.Module):
    def __init__(self, dim=8, dec=4, mask_ratio=0.75):
        super().__init__()
        self.mask_ratio = mask_ratio
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList([ViTBlock(dim) for _ in range(3)])
        self.norm = nn.LayerNorm(dim)
        self.decoder_embed = nn.Linear(dim, dec)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec))
        self.decoder_blocks = nn.ModuleList([ViTBlock(dec) for _ in range(2)])
        self.decoder_norm, self.decoder_pred = nn.LayerNorm(dec), nn.Linear(dec, 48)
        self.register_buffer("pos", torch.randn(1, 16, dim))
        self.register_buffer("decoder_pos", torch.randn(1, 17, dec))

    def random_masking(self, x):
        b, n, d = x.shape
        keep = int(n * (1 - self.mask_ratio))
        noise = torch.rand(b, n, device=x.device)
        ids_shuffle = torch.argsort(noise, dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        x = torch.gather(x, 1, ids_shuffle[:, :keep].unsqueeze(-1).repeat(1, 1, d))
        mask = torch.ones([b, n], device=x.device)
        mask[:, :keep] = 0
        return x, torch.gather(mask, 1, ids_restore), ids_restore

    def forward_encoder(self, imgs):
        x = self.patch_embed(imgs).flatten(2).transpose(1, 2) + self.pos
        x, mask, ids_restore = self.random_masking(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x, ids_restore):
        x = self.decoder_embed(x)
        mask_tokens = self.mask_token.repeat(x.shape[0], ids_restore.shape[1] + 1 - x.shape[1], 1)
        x_ = torch.cat([x[:, 1:], mask_tokens], dim=1)
        x_ = torch.gather(x_, 1, ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], x_], dim=1) + self.decoder_pos
        for blk in self.decoder_blocks:
            x = blk(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward(self, imgs):
        latent, mask, ids_restore = self.forward_encoder(imgs)
        pred = self.forward_decoder(latent, ids_restore)
        target = F.unfold(imgs, 4, stride=4).transpose(1, 2)
        loss = ((pred - target) ** 2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum(), pred, mask


# ---------------------------------------------------------------------- detection, matching, geometry, video
class CrossLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d, 2, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(d, 2, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, tgt, query_pos, memory):
        q = tgt + query_pos
        tgt = self.norm1(tgt + self.self_attn(q, q, tgt)[0])
        tgt = self.norm2(tgt + self.cross_attn(tgt + query_pos, memory, memory)[0])
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class BoxHead(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d), nn.Linear(d, 4)])

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


@dataclass
class Detections:
    logits: torch.Tensor
    boxes: torch.Tensor
    aux: list[dict[str, torch.Tensor]] | None = None


def inverse_sigmoid(x, eps=1e-5):
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


@right(
    "decoder_layers.0-2 class_embed|bbox_embed",
    rising=("backbone.conv1 backbone.layer1.0-1 encoder_layers.0-1 decoder_layers.0-2 class_embed",),
    name="DETR whose boxes are refined after every block, a dataclass comes out",
)
class RefinedDETR(nn.Module):
    class Backbone(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, d, 7, 4, 3, bias=False), nn.BatchNorm2d(d)
            self.layer1 = nn.Sequential(BasicBlock(d, d), BasicBlock(d, d))

        def forward(self, x):
            return self.layer1(F.relu(self.bn1(self.conv1(x))))

    def __init__(self, d=8, queries=5, classes=4, aux_loss=True):
        super().__init__()
        self.aux_loss, self.d = aux_loss, d
        self.backbone = self.Backbone(d)
        self.input_proj = nn.Sequential(nn.Conv2d(d, d, 1), nn.GroupNorm(2, d))
        self.encoder_layers = nn.ModuleList([nn.TransformerEncoderLayer(d, 2, 16, batch_first=True) for _ in range(2)])
        self.decoder_layers = nn.ModuleList([CrossLayer(d) for _ in range(3)])
        self.query_embed, self.reference_points = nn.Embedding(queries, 2 * d), nn.Linear(d, 4)
        self.class_embed = nn.ModuleList([copy.deepcopy(nn.Linear(d, classes)) for _ in range(3)])
        self.bbox_embed = nn.ModuleList([BoxHead(d) for _ in range(3)])

    def forward(self, images):
        memory = self.input_proj(self.backbone(images)).flatten(2).transpose(1, 2)
        for layer in self.encoder_layers:
            memory = layer(memory)
        query_pos, tgt = self.query_embed.weight.unsqueeze(0).expand(len(images), -1, -1).split(self.d, dim=2)
        reference = self.reference_points(query_pos).sigmoid()
        outputs = []
        for lid, layer in enumerate(self.decoder_layers):
            tgt = layer(tgt, query_pos * reference.mean(-1, keepdim=True), memory)
            boxes = (self.bbox_embed[lid](tgt) + inverse_sigmoid(reference)).sigmoid()
            outputs.append({"logits": self.class_embed[lid](tgt), "boxes": boxes})
            reference = boxes.detach()
        out = Detections(**outputs[-1])
        if self.aux_loss:
            out.aux = outputs[:-1]
        return out


def mlp1d(channels):
    layers = []
    for i in range(1, len(channels)):
        layers.append(nn.Conv1d(channels[i - 1], channels[i], kernel_size=1))
        if i < len(channels) - 1:
            layers += [nn.BatchNorm1d(channels[i]), nn.ReLU()]
    return nn.Sequential(*layers)


class Propagation(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.heads, self.merge = heads, nn.Conv1d(d, d, 1)
        self.proj = nn.ModuleList([copy.deepcopy(self.merge) for _ in range(3)])
        self.mlp = mlp1d([d * 2, d * 2, d])

    def forward(self, x, source):
        b, d = x.size(0), x.size(1)
        q, k, v = (
            p(s).view(b, d // self.heads, self.heads, -1)
            for p, s in zip(self.proj, (x, source, source), strict=True)
        )  # fmt: skip
        prob = F.softmax(torch.einsum("bdhn,bdhm->bhnm", q, k) / (d // self.heads) ** 0.5, dim=-1)
        message = self.merge(torch.einsum("bhnm,bdhm->bdhn", prob, v).reshape(b, d, -1))
        return self.mlp(torch.cat([x, message], dim=1))


@right(
    "kenc gnn.layers.0-3 final_proj|bin_score",
    name="matching of keypoints: self and cross attention in turn, a dustbin",
)
class SuperGlueLike(nn.Module):
    class GNN(nn.Module):
        def __init__(self, d, names):
            super().__init__()
            self.layers = nn.ModuleList([Propagation(d) for _ in range(len(names))])
            self.names = names

        def forward(self, desc0, desc1):
            for layer, name in zip(self.layers, self.names, strict=True):
                src0, src1 = (desc1, desc0) if name == "cross" else (desc0, desc1)
                delta0, delta1 = layer(desc0, src0), layer(desc1, src1)
                desc0, desc1 = (desc0 + delta0), (desc1 + delta1)
            return desc0, desc1

    def __init__(self, config=None):
        super().__init__()
        self.config = {"dim": 8, "layers": ["self", "cross"] * 2, "iters": 3, **(config or {})}
        d = self.config["dim"]
        self.kenc = mlp1d([3, 8, d])
        self.gnn = self.GNN(d, self.config["layers"])
        self.final_proj = nn.Conv1d(d, d, kernel_size=1, bias=True)
        self.register_parameter("bin_score", nn.Parameter(torch.tensor(1.0)))

    def forward(self, data):
        desc = []
        for i in "01":
            points = torch.cat([data["keypoints" + i].transpose(1, 2), data["scores" + i].unsqueeze(1)], dim=1)
            desc.append(data["descriptors" + i] + self.kenc(points))
        desc0, desc1 = self.gnn(*desc)
        mdesc0, mdesc1 = self.final_proj(desc0), self.final_proj(desc1)
        scores = torch.einsum("bdn,bdm->bnm", mdesc0, mdesc1) / self.config["dim"] ** 0.5
        b, m, n = scores.shape
        alpha = self.bin_score
        scores = torch.cat([torch.cat([scores, alpha.expand(b, m, 1)], -1), alpha.expand(b, 1, n + 1)], 1)
        for _ in range(self.config["iters"]):
            scores = scores - torch.logsumexp(scores, dim=2, keepdim=True)
            scores = scores - torch.logsumexp(scores, dim=1, keepdim=True)
        return {"scores": scores, "matches0": scores[:, :-1, :-1].max(2).indices}


@right(
    rising=(
        "fnet.conv1 fnet.layer1.0-1 fnet.layer2.0-1 update.flow_head",
        "cnet.conv1 cnet.layer1.0-1 cnet.layer2.0-1 update.flow_head",
    ),
    name="RAFT: one update that is called over and over",
)  # fmt: skip
class MiniRAFT(nn.Module):
    class Encoder(nn.Module):
        def __init__(self, out):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 4, 7, 2, 3), nn.InstanceNorm2d(4)
            self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
            self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8))
            self.conv2 = nn.Conv2d(8, out, 1)

        def forward(self, x):
            is_list = isinstance(x, (tuple, list))
            if is_list:
                batch_dim = x[0].shape[0]
                x = torch.cat(x, dim=0)
            x = self.conv2(self.layer2(self.layer1(F.relu(self.norm1(self.conv1(x))))))
            return torch.split(x, [batch_dim, batch_dim], dim=0) if is_list else x

    class Update(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.convcorr, self.convflow = nn.Conv2d(1, d, 1), nn.Conv2d(2, d, 3, padding=1)
            self.convz, self.convq = nn.Conv2d(4 * d, d, 3, padding=1), nn.Conv2d(4 * d, d, 3, padding=1)
            self.flow_head = nn.Conv2d(d, 2, 3, padding=1)

        def forward(self, net, inp, corr, flow):
            x = torch.cat([inp, F.relu(self.convcorr(corr)), F.relu(self.convflow(flow))], dim=1)
            z = torch.sigmoid(self.convz(torch.cat([net, x], dim=1)))
            net = (1 - z) * net + z * torch.tanh(self.convq(torch.cat([z * net, x], dim=1)))
            return net, self.flow_head(net)

    def __init__(self, d=4, mixed_precision=False):
        super().__init__()
        self.mixed_precision, self.d = mixed_precision, d
        self.fnet, self.cnet, self.update = self.Encoder(8), self.Encoder(2 * d), self.Update(d)

    def warp(self, x, flow):
        _, _, h, w = x.shape
        ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([xs, ys], -1).to(flow) + flow.permute(0, 2, 3, 1)
        grid = 2 * grid / torch.tensor([w - 1, h - 1]).to(flow) - 1
        return F.grid_sample(x, grid, align_corners=True)

    def forward(self, image1, image2, iters=3, flow_init=None, test_mode=False):
        image1, image2 = 2 * (image1 / 255.0) - 1.0, 2 * (image2 / 255.0) - 1.0
        with torch.autocast("cpu", enabled=self.mixed_precision):
            fmap1, fmap2 = self.fnet([image1, image2])
            net, inp = torch.split(self.cnet(image1), [self.d, self.d], dim=1)
            net, inp = torch.tanh(net), torch.relu(inp)
        flow = torch.zeros_like(net[:, :2])
        if flow_init is not None:
            flow = flow + flow_init
        predictions = []
        for _ in range(iters):
            flow = flow.detach()
            corr = (fmap1 * self.warp(fmap2, flow)).sum(1, keepdim=True)
            net, delta = self.update(net, inp, corr, flow)
            flow = flow + delta
            predictions.append(4 * F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=True))
        return (flow, predictions[-1]) if test_mode else predictions


class ConvBlock(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.pad, self.conv, self.nonlin = nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3), nn.ELU(inplace=True)

    def forward(self, x):
        return self.nonlin(self.conv(self.pad(x)))


@right(
    rising=(
        "encoder.stem encoder.layer1.0-1 encoder.layer2.0-1 decoder.0 decoder.2 decoder.3 decoder.5",
        "pose.stem pose.layer1.0-1 pose.layer2.0-1 pose_head",
    ),
    name="depth without labels: a dict of convolutions by tuples, and the motion of the camera",
)
class MonoDepth(nn.Module):
    class Encoder(nn.Module):
        def __init__(self, frames):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3 * frames, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
            self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
            self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8))

        def forward(self, x):
            self.features = [self.stem((x - 0.45) / 0.225)]
            for name in ("layer1", "layer2"):
                self.features.append(getattr(self, name)(self.features[-1]))
            return self.features

    def __init__(self):
        super().__init__()
        self.encoder, self.pose = self.Encoder(1), self.Encoder(2)
        self.pose_head = nn.Conv2d(8, 6, 1)
        self.convs = {}
        for i, (a, skip, b) in ((1, (8, 4, 8)), (0, (8, 0, 4))):
            self.convs[("upconv", i, 0)] = ConvBlock(a, b)
            self.convs[("dispconv", i)] = nn.Conv2d(b, 1, 3, padding=1)
            self.convs[("upconv", i, 1)] = ConvBlock(b + skip, b)
        self.decoder = nn.ModuleList(list(self.convs.values()))

    def forward(self, target, source):
        feats = self.encoder(target)
        x, outputs = feats[-1], {}
        for i in (1, 0):
            x = self.convs[("upconv", i, 0)](x)
            x = [F.interpolate(x, scale_factor=2, mode="nearest")]
            if i > 0:
                x += [feats[i]]
            x = self.convs[("upconv", i, 1)](torch.cat(x, 1))
            outputs[("disp", i)] = torch.sigmoid(self.convs[("dispconv", i)](x))
        motion = self.pose_head(self.pose(torch.cat([target, source], 1))[-1]).mean((2, 3))
        outputs["axisangle"], outputs["translation"] = 0.01 * motion[:, :3], 0.01 * motion[:, 3:]
        return outputs


class ConvLSTMCell(nn.Module):
    def __init__(self, a, hidden):
        super().__init__()
        self.hidden, self.conv = hidden, nn.Conv2d(a + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x, state):
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def init_hidden(self, x):
        zeros = x.new_zeros(x.shape[0], self.hidden, *x.shape[-2:])
        return zeros, zeros


@right(
    "embed cell_list.0-2 out",
    name="forecast of frames: cells in a list, a loop over time in the loop over cells",
)
class ConvLSTM(nn.Module):
    def __init__(self, hidden=(4, 4, 4)):
        super().__init__()
        self.out = nn.Conv2d(hidden[-1], 1, 1)
        self.cell_list = nn.ModuleList(
            ConvLSTMCell(4 if i == 0 else hidden[i - 1], hidden[i]) for i in range(len(hidden))
        )
        self.embed = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, frames, hidden_state=None):
        current = [self.embed(frames[:, t]) for t in range(frames.size(1))]
        last_state_list = []
        for layer_idx, cell in enumerate(self.cell_list):
            h, c = cell.init_hidden(current[0]) if hidden_state is None else hidden_state[layer_idx]
            inner = []
            for x in current:
                h, c = cell(x, (h, c))
                inner.append(h)
            current = inner
            last_state_list.append((h, c))
        return self.out(current[-1]), last_state_list


@right(
    "backbone.stem backbone.stages.0-2 neck|rpn.template|rpn.search|rpn.cls|rpn.loc",
    name="Siamese tracker with a region proposal by depthwise correlation",
)
class SiamRPN(nn.Module):
    class Backbone(nn.Module):
        def __init__(self, c=4):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
            self.stages = nn.Sequential(BasicBlock(c, c), BasicBlock(c, 2 * c, 2), BasicBlock(2 * c, 2 * c))

        def forward(self, x):
            return self.stages(self.stem(x))

    class RPN(nn.Module):
        def __init__(self, c, anchors):
            super().__init__()
            self.template, self.search = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
            self.cls, self.loc = nn.Conv2d(c, 2 * anchors, 1), nn.Conv2d(c, 4 * anchors, 1)

        def forward(self, z, x):
            kernel, search = self.template(z), self.search(x)
            b, c, h, w = search.shape
            kernel = kernel.reshape(b * c, 1, *kernel.shape[2:])
            corr = F.conv2d(search.reshape(1, b * c, h, w), kernel, groups=b * c)
            corr = corr.view(b, c, *corr.shape[2:])
            return self.cls(corr), self.loc(corr)

    def __init__(self):
        super().__init__()
        self.rpn, self.neck, self.backbone = self.RPN(8, 3), nn.Conv2d(8, 8, 1), self.Backbone()
        self.zf = None

    def template(self, z):
        self.zf = self.neck(self.backbone(z))

    def track(self, x):
        return self.rpn(self.zf, self.neck(self.backbone(x)))

    def forward(self, data):
        zf = self.neck(self.backbone(data["template"]))
        xf = self.neck(self.backbone(data["search"]))
        cls, loc = self.rpn(zf, xf)
        outputs = {"cls": cls, "loc": loc}
        if self.training:
            outputs["cls_loss"] = F.cross_entropy(cls.unflatten(1, (2, -1)), data["label_cls"])
            outputs["total_loss"] = outputs["cls_loss"] + 1.2 * F.smooth_l1_loss(loc, data["label_loc"])
        return outputs


class StackedConvs(nn.Module):
    def __init__(self, a, b, stride=1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(a, b, 3, stride, 1), nn.InstanceNorm3d(b, affine=True)
        self.conv2, self.norm2 = nn.Conv3d(b, b, 3, 1, 1), nn.InstanceNorm3d(b, affine=True)

    def forward(self, x):
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.01)


class PlainEncoder(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.output_channels = features
        self.stages = nn.Sequential(
            *[StackedConvs(1 if i == 0 else features[i - 1], f, 1 if i == 0 else 2) for i, f in enumerate(features)]
        )

    def forward(self, x):
        ret = []
        for s in self.stages:
            x = s(x)
            ret.append(x)
        return ret


class PlainDecoder(nn.Module):
    def __init__(self, encoder, classes, deep_supervision):
        super().__init__()
        self.encoder, self.deep_supervision = encoder, deep_supervision
        stages, transpconvs, seg_layers = [], [], []
        for s in range(1, len(encoder.output_channels)):
            below, skip = encoder.output_channels[-s], encoder.output_channels[-(s + 1)]
            transpconvs.append(nn.ConvTranspose3d(below, skip, 2, 2))
            stages.append(StackedConvs(2 * skip, skip))
            seg_layers.append(nn.Conv3d(skip, classes, 1))
        self.stages, self.transpconvs = nn.ModuleList(stages), nn.ModuleList(transpconvs)
        self.seg_layers = nn.ModuleList(seg_layers)

    def forward(self, skips):
        lres_input, seg_outputs = skips[-1], []
        for s in range(len(self.stages)):
            x = self.transpconvs[s](lres_input)
            x = self.stages[s](torch.cat((x, skips[-(s + 2)]), 1))
            if self.deep_supervision:
                seg_outputs.append(self.seg_layers[s](x))
            elif s == (len(self.stages) - 1):
                seg_outputs.append(self.seg_layers[-1](x))
            lres_input = x
        seg_outputs = seg_outputs[::-1]
        return seg_outputs if self.deep_supervision else seg_outputs[0]


@right(
    "encoder.stages.0-2 decoder.transpconvs.0-1|decoder.stages.0-1 decoder.seg_layers",
    name="nnU-Net: deep supervision, and a decoder that holds the encoder",
)
class PlainConvUNet(nn.Module):
    def __init__(self, features=(4, 8, 8), classes=3, deep_supervision=True):
        super().__init__()
        self.encoder = PlainEncoder(features)
        self.decoder = PlainDecoder(self.encoder, classes, deep_supervision)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@right(
    rising=("pts_linears.0-3 rgb_linear", "pts_linears.0-3 alpha_linear"),
    name="NeRF: positional encoding, a skip, views late",
)
class NeRF(nn.Module):
    def __init__(self, depth=4, width=8, skips=(1,)):
        super().__init__()
        self.skips, inp, views = skips, 3 + 3 * 2 * 4, 3 + 3 * 2 * 2
        self.pts_linears = nn.ModuleList(
            [nn.Linear(inp, width)]
            + [nn.Linear(width + inp if i in skips else width, width) for i in range(depth - 1)]
        )  # fmt: skip
        self.views_linears = nn.ModuleList([nn.Linear(views + width, width // 2)])
        self.feature_linear, self.alpha_linear = nn.Linear(width, width), nn.Linear(width, 1)
        self.rgb_linear = nn.Linear(width // 2, 3)

    @staticmethod
    def encode(x, bands):
        freqs = 2.0 ** torch.arange(bands).to(x)
        xb = (x[..., None, :] * freqs[:, None]).flatten(-2)
        return torch.cat([x, xb.sin(), xb.cos()], -1)

    def query(self, pts, viewdirs):
        inp, views = self.encode(pts, 4), self.encode(viewdirs, 2)
        h = inp
        for i, _ in enumerate(self.pts_linears):
            h = F.relu(self.pts_linears[i](h))
            if i in self.skips:
                h = torch.cat([inp, h], -1)
        alpha, feature = self.alpha_linear(h), self.feature_linear(h)
        h = torch.cat([feature, views], -1)
        for linear in self.views_linears:
            h = F.relu(linear(h))
        return torch.cat([self.rgb_linear(h), alpha], -1)

    def forward(self, rays_o, rays_d, near=2.0, far=6.0, n=8, perturb=True):
        z = torch.linspace(near, far, n).to(rays_o).expand(rays_o.shape[0], n)
        if perturb:
            z = z + torch.rand_like(z) * (far - near) / n
        pts = rays_o[:, None] + rays_d[:, None] * z[..., None]
        raw = self.query(pts, F.normalize(rays_d, dim=-1)[:, None].expand_as(pts))
        dists = torch.cat([z[:, 1:] - z[:, :-1], torch.full_like(z[:, :1], 1e10)], -1)
        alpha = 1 - torch.exp(-F.relu(raw[..., 3]) * dists)
        trans = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], -1), -1)[:, :-1]
        weights = alpha * trans
        return (weights[..., None] * torch.sigmoid(raw[..., :3])).sum(1), weights
