"""`GradientNoiseScale`: measure how large a batch the gradient's noise is worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
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
    copied; there is one synchronisation with the device per measured update. Under ``ZeROStrategy`` the norm of the
    whole gradient is the one that the engine takes for clipping.

    Args:
        smoothing: what the averages of both norms keep at each measurement, in [0, 1).
        every: updates from one measurement to the next.

    Raises:
        MisconfigurationException: at setup, where gradients are averaged over the devices before they come to the
            parameters (FSDP), or an engine does not tell what it does with them (Lightning's ``DeepSpeedStrategy``).

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
        self._hooked: set[Tensor] = set()
        self._squares: dict[Tensor, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        self._engine_has_it = False
        self._waiting: tuple[Tensor, int, int] | None = None
        self._micro_batches = 0
        self._samples = 0
        self._factor = 1.0

    # ------------------------------------------------------------------ what the method says
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        unseen = internals.why_no_micro_batch_gradients(trainer, module)
        if unseen is not None:
            raise MisconfigurationException(f"GradientNoiseScale: {unseen}")

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self._forget()

    def factor(self, clock: SampleClock) -> float:
        return 1.0

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        value = self.estimator.value
        return {} if value is None else {"noise/gradient": value}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        grows = any(member.changes_batch for member in members_of(trainer))
        if trainer.world_size == 1 and trainer.accumulate_grad_batches == 1 and not grows:
            rank_zero_warn(
                "GradientNoiseScale: with one device and no accumulation there is one gradient per update and nothing "
                "to compare it with; set accumulate_grad_batches to 2 or more (with a smaller micro-batch)"
            )
        from_engine = internals.with_gradient_norm(trainer, self._take_norm)
        self._engine_has_it = from_engine is not None
        if from_engine is not None:
            self._undo.append(from_engine)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        clock = self._run.clock if self._run is not None else None
        self._measured = clock is not None and clock.updates % self.every == 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._measured:
            if self._micro_batches == 0:  # layers may have been frozen until now
                for parameter in pl_module.parameters():
                    if parameter.requires_grad and parameter not in self._hooked:
                        add = partial(self._add_squared_norm, parameter)
                        self._undo.append(parameter.register_hook(add).remove)  # type: ignore[no-untyped-call]
                        self._hooked.add(parameter)
            # Lightning has divided the loss by the number of micro-batches
            self._factor = float(int(trainer.accumulate_grad_batches))
            self._micro_batches += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._measured or not self._squares or self._run is None:
            return
        samples = self._run.clock.batch_size
        micro = samples / (self._micro_batches * trainer.world_size)
        self._waiting = None
        if self._micro_batches * trainer.world_size > 1:
            # the gradient of a layer that is frozen now may have been dropped; an engine keeps its own elsewhere
            moving = [p for p in self._squares if self._engine_has_it or p.grad is not None]
            scale = (self._factor / internals.gradient_scale(trainer)) ** 2
            small = torch.stack([self._squares[p] for p in moving]).sum() * scale / self._micro_batches
            small = trainer.strategy.reduce(small, reduce_op="mean")
            if self._engine_has_it:
                self._waiting = (small, round(micro), samples)
            else:
                big = torch.stack(torch._foreach_norm([p.grad for p in moving if p.grad is not None])).square().sum()
                small_norm, big_norm = torch.stack([small, big.to(small)]).tolist()
                self.estimator.update(small_norm, big_norm, round(micro), samples)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.estimator.load_state_dict(state_dict["estimator"])

    # ------------------------------------------------------------------ inside
    def _add_squared_norm(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._measured:
            squared = gradient.detach().float().square().sum()
            before = self._squares.get(parameter)
            self._squares[parameter] = squared if before is None else before + squared

    def _take_norm(self, norm: float | None) -> None:
        """The engine has made the update, and has taken the norm of its gradient on the way."""
        if self._waiting is None:
            return
        if norm is None:
            raise MisconfigurationException(
                "GradientNoiseScale: the engine takes no norm of the gradient; set zero_optimization.compute_grad_norm "
                "to true"
            )
        small, micro, samples = self._waiting
        self._waiting = None
        self.estimator.update(float(small), norm**2, micro, samples)

    def _forget(self) -> None:
        self._squares, self._micro_batches = {}, 0

    def _leave(self, trainer: Trainer) -> None:
        for undo in self._undo:
            undo()
        self._undo, self._waiting, self._hooked = [], None, set()
        self._forget()
        super()._leave(trainer)
