"""`GradientNoiseScale`: measure how large a batch the gradient's noise is worth."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import GradientNoiseEstimator
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock


class GradientNoiseScale(MethodCallback):
    r"""Log the simple noise scale :math:`B_\text{simple} = \text{tr}(\Sigma) / |G|^2`, in samples.

    Two batch sizes are compared at the same weights: the gradients of single micro-batches on single devices (their
    mean squared norm), and the gradient of the whole update. It takes more than one device or accumulation; where there
    is neither, it says so once and logs nothing. The learning rate is left alone.

    Norms are taken as each parameter's gradient appears in the backward, before DDP averages it, so that nothing is
    copied; there is one synchronisation with the device per measured update.

    Args:
        smoothing: what the averages of both norms keep at each measurement, in [0, 1).
        every: updates from one measurement to the next.

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.
    """

    name = "gradient_noise_scale"

    def __init__(self, smoothing: float = 0.95, every: int = 1) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"GradientNoiseScale: got every={every!r}; give a whole number of updates from 1")
        self.smoothing, self.every = smoothing, every
        self.estimator = GradientNoiseEstimator(smoothing)
        self._measured = False
        self._hooks: list[Any] = []
        self._micro_sum: Tensor | None = None
        self._micro_batches = 0
        self._samples = 0
        self._factor = 1.0

    # ------------------------------------------------------------------ what the method says
    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self._forget()

    def factor(self, clock: SampleClock) -> float:
        return 1.0

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        value = self.estimator.value
        return {} if value is None else {"gradient_noise_scale": value}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        grows = any(member.name == "batch_size_ramp" for member in members_of(trainer))
        if trainer.world_size == 1 and trainer.accumulate_grad_batches == 1 and not grows:
            rank_zero_warn(
                "GradientNoiseScale: with one device and no accumulation there is one gradient per update and nothing "
                "to compare it with; set accumulate_grad_batches to 2 or more (with a smaller micro-batch)"
            )
        for parameter in pl_module.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._add_squared_norm))  # type: ignore[no-untyped-call]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        clock = self._run.clock if self._run is not None else None
        self._measured = clock is not None and clock.updates % self.every == 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._measured:
            # Lightning has divided the loss by the number of micro-batches
            self._factor = float(int(trainer.accumulate_grad_batches))
            self._micro_batches += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._measured or self._micro_sum is None or self._run is None:
            return
        samples = self._run.clock.batch_size
        micro = samples / (self._micro_batches * trainer.world_size)
        if self._micro_batches * trainer.world_size > 1:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            big = torch.stack(torch._foreach_norm(gradients)).square().sum()
            small = self._micro_sum * (self._factor / internals.loss_scale(trainer)) ** 2 / self._micro_batches
            small = trainer.strategy.reduce(small, reduce_op="mean")
            small_norm, big_norm = torch.stack([small, big.to(small)]).tolist()
            self.estimator.update(small_norm, big_norm, round(micro), samples)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.estimator.load_state_dict(state_dict["estimator"])

    # ------------------------------------------------------------------ inside
    def _add_squared_norm(self, gradient: Tensor) -> None:
        if self._measured:
            squared = gradient.detach().float().square().sum()
            self._micro_sum = squared if self._micro_sum is None else self._micro_sum + squared

    def _forget(self) -> None:
        self._micro_sum, self._micro_batches = None, 0

    def _leave(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._forget()
        super()._leave(trainer)
