"""A generative adversarial network: two optimizers under manual optimization, each trained against the other."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class GAN(LightningModule):
    """Generates images; logs generator/loss and discriminator/loss.

    Args:
        pixels: Pixels of an image.
        latent: Size of the generator's noise.
        width: Of both networks' hidden layers.
        lr: Learning rate of both Adams.
    """

    def __init__(self, pixels: int = 64, latent: int = 16, width: int = 128, lr: float = 2e-4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent, self.lr = latent, lr
        self.generator = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.generator(noise)
        return images

    def noise_for(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), self.latent, device=images.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        real = batch[0].flatten(1)
        generator, discriminator = self.optimizers()  # type: ignore[misc, attr-defined]
        noise = self.noise_for(real)

        self.toggle_optimizer(generator)
        generator_loss = F.softplus(-self.discriminator(self(noise))).mean()
        generator.zero_grad()
        self.manual_backward(generator_loss)
        generator.step()
        self.untoggle_optimizer(generator)

        self.toggle_optimizer(discriminator)
        fake = self(noise).detach()
        discriminator_loss = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()
        discriminator.zero_grad()
        self.manual_backward(discriminator_loss)
        self.clip_gradients(discriminator, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        discriminator.step()
        self.untoggle_optimizer(discriminator)

        self.log_dict({"generator/loss": generator_loss, "discriminator/loss": discriminator_loss})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        betas = (0.5, 0.999)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=betas),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=betas),
        ]
