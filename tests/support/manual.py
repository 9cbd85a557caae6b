"""Modules under manual optimization: one optimizer or two, in the ways in which people write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.support.toy import Toy

Optimizers = Callable[[LightningModule], Any]


class ManualToy(Toy):
    """The toy problem, its updates made by hand."""

    def __init__(self, configure: Any = None) -> None:
        super().__init__(configure)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


STYLES = ("plain", "toggled", "closure", "accumulated", "clipped", "twice", "raw")


def two_optimizers(module: LightningModule) -> Any:
    assert isinstance(module, Rivals)
    return [
        torch.optim.SGD(module.maker.parameters(), lr=0.05, momentum=0.9),
        torch.optim.AdamW(module.judge.parameters(), lr=0.01),
    ]


class Rivals(LightningModule):
    """Two networks with an optimizer each, one of which is trained against the other.

    Args:
        style: how the updates are made: see the methods.
        configure: makes the optimizers.
    """

    def __init__(self, style: str = "plain", configure: Optimizers = two_optimizers) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.maker = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
            self.judge = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))
        self.style, self._configure = style, configure

    def configure_optimizers(self) -> Any:
        return self._configure(self)

    def maker_loss(self, x: Tensor, y: Tensor) -> Tensor:
        made = self.maker(x)
        return nn.functional.mse_loss(made, y) - 0.01 * self.judge(torch.cat([x, made], 1)).mean()

    def judge_loss(self, x: Tensor, y: Tensor) -> Tensor:
        made = self.maker(x).detach()
        told = self.judge(torch.cat([x, made], 1)) - self.judge(torch.cat([x, y], 1))
        return nn.functional.softplus(told).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        losses = [self.maker_loss, self.judge_loss]
        total = x.new_zeros(())
        for optimizer, loss_of in zip(self.optimizers(), losses, strict=True):
            total = total + self._update(optimizer, lambda of=loss_of: of(x, y), batch_idx)
        self.log("maker/loss", total)
        return total

    def _update(self, optimizer: Any, loss_of: Callable[[], Tensor], batch_idx: int) -> Tensor:
        if self.style == "closure":
            found: list[Tensor] = []

            def closure() -> None:
                optimizer.zero_grad()
                found.append(loss_of())
                self.manual_backward(found[-1])

            optimizer.step(closure=closure)
            return found[-1].detach()
        if self.style == "toggled":
            with self.toggled_optimizer(optimizer) if hasattr(self, "toggled_optimizer") else _toggled(self, optimizer):
                return self._plainly(optimizer, loss_of)
        if self.style == "accumulated":
            loss = loss_of()
            self.manual_backward(loss / 2)
            if batch_idx % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
            return loss.detach()
        if self.style == "twice":
            self._plainly(optimizer, loss_of)
        return self._plainly(optimizer, loss_of)

    def _plainly(self, optimizer: Any, loss_of: Callable[[], Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        self.manual_backward(loss)
        if self.style == "clipped":
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        (optimizer.optimizer if self.style == "raw" else optimizer).step()
        return loss.detach()


def _toggled(module: LightningModule, optimizer: Any) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def toggled() -> Any:
        module.toggle_optimizer(optimizer)
        yield
        module.untoggle_optimizer(optimizer)

    return toggled()


class Steps(Callback):
    """At every step of every optimizer: its index, the batch, and some keys of its groups."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys or ("lr",)
        self.of: dict[int, list[list[Any]]] = {}
        self.batches: dict[int, list[int]] = {}
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.of = {index: [] for index in range(len(trainer.optimizers))}
        self.batches = {index: [] for index in self.of}
        for index, optimizer in enumerate(trainer.optimizers):

            def note(optimizer: Optimizer, args: Any, kwargs: Any, index: int = index) -> None:
                values = [[group.get(key) for key in self.keys] for group in optimizer.param_groups]
                self.of[index].append([v[0] for v in values] if len(self.keys) == 1 else values)
                self.batches[index].append(trainer.fit_loop.total_batch_idx)

            self._hooks.append(optimizer.register_step_post_hook(note))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def first(self, index: int) -> Sequence[Any]:
        """Of the first group of an optimizer."""
        return [values[0] for values in self.of[index]]
