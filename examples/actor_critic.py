"""Actor and critic: a policy and what it is worth, with an optimizer each, stepped in one backward under manual
optimization. The toy: an image is a state, its class the action that is rewarded."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ActorCritic(LightningModule):
    """Learns to act; logs reward, actor/loss and critic/loss.

    Args:
        pixels: Pixels of a state.
        actions: Number of actions.
        width: Of both networks' hidden layer.
        actor_lr: Learning rate of the policy.
        critic_lr: Learning rate of the value.
    """

    def __init__(
        self, pixels: int = 64, actions: int = 10, width: int = 64, actor_lr: float = 1e-3, critic_lr: float = 3e-3
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.actor = nn.Sequential(
            nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, actions)
        )
        self.critic = nn.Sequential(
            nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def act(self, logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(1), 1).squeeze(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        states, rewarded = batch[0].flatten(1), batch[1]
        actor, critic = self.optimizers()  # type: ignore[misc, attr-defined]
        logits, value = self.actor(states), self.critic(states).squeeze(1)
        actions = self.act(logits)
        reward = (actions == rewarded).to(value.dtype)
        advantage = (reward - value).detach()
        chosen = logits.log_softmax(1).gather(1, actions.unsqueeze(1)).squeeze(1)
        actor_loss, critic_loss = -(advantage * chosen).mean(), F.mse_loss(value, reward)
        loss = actor_loss + critic_loss
        actor.zero_grad()
        critic.zero_grad()
        self.manual_backward(loss)
        actor.step()
        critic.step()
        self.log_dict({"reward": reward.mean(), "actor/loss": actor_loss, "critic/loss": critic_loss})
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.actor.parameters(), lr=self.actor_lr),
            torch.optim.Adam(self.critic.parameters(), lr=self.critic_lr),
        ]
