"""`GradientNoiseScale`: measure how large a batch the gradient's noise is worth."""

from __future__ import annotations

import math
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
from lightning_lr.batch_size import GradientNoiseEstimator, WindowContents
from lightning_lr.batch_size.gradient_noise import squared_norm
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock


class GradientNoiseScale(MethodCallback):
    r"""Log the simple noise scale :math:`B_\text{simple} = \text{tr}(\Sigma) / |G|^2`, in samples.

    Two batch sizes are compared at the same weights: the gradients of single micro-batches on single devices (their
    mean squared norm), and the gradient of the whole update. It takes more than one device or accumulation; where there
    is neither, it warns once and logs nothing. The learning rate is left alone.

    A window may be cut in any way: at the end of an epoch, with a short last micro-batch, by a ``BatchSizeRamp``, by a
    ``training_step`` that returns ``None``, with other sizes on every device. The two batch sizes are computed from the
    micro-batches that it really had, see :class:`~lightning_lr.batch_size.WindowContents`. The loss has to be a mean
    over the samples of its micro-batch. An update with a gradient that is not finite is left out.

    Norms are taken as each parameter's gradient appears in the backward, before DDP averages it, so that nothing is
    copied; there is one synchronisation with the device per measured update. Under ``ZeROStrategy`` the norm of the
    whole gradient is the one that the engine takes for clipping.

    Args:
        smoothing: what the averages of both norms keep at each measurement, in [0, 1).
        every: updates from one measurement to the next.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it; where it is
            given, it decides.

    Raises:
        MisconfigurationException: at setup under manual optimization, where a backward need not be a micro-batch.
        MisconfigurationException: at setup, where gradients are averaged over the devices before they come to the
            parameters (FSDP), or an engine hides what it does with them (Lightning's ``DeepSpeedStrategy``).

    Example::

        Trainer(accumulate_grad_batches=4, callbacks=[GradientNoiseScale()])

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.
    """

    name = "gradient_noise_scale"

    def __init__(self, smoothing: float = 0.95, every: int = 1, count_samples: CountSamples | None = None) -> None:
        super().__init__(count_samples)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"GradientNoiseScale: got every={every!r}; give a whole number of updates from 1")
        self.smoothing, self.every = smoothing, every
        self.estimator = GradientNoiseEstimator(smoothing)
        self._measured = False
        self._hooked: set[Tensor] = set()
        self._undo: list[Callable[[], None]] = []
        self._engine_has_it = False
        self._waiting: Tensor | None = None
        self._size: int | None = None
        """Samples of the present micro-batch on this device."""
        self._micro_batch = 0
        self._scale = 0.0
        """Makes a squared norm of the present backward that of the micro-batch's mean gradient."""
        self._squares: dict[Tensor, Tensor] = {}
        self._contents = WindowContents()
        self._warned = False

    # ------------------------------------------------------------------ what the method defines
    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        raise MisconfigurationException(
            "GradientNoiseScale: under manual optimization nothing tells which backwards are micro-batches of an "
            "update: they may be parts of its loss (a GAN's real and fake batch, two losses of one network); use "
            "automatic optimization, with several devices or accumulate_grad_batches"
        )

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
        changes = any(member.changes_batch for member in members_of(trainer)) or (
            self._run is not None and callable(self._run.clock.shape.accumulation)
        )
        if trainer.world_size == 1 and trainer.accumulate_grad_batches == 1 and not changes:
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
        run = self._run
        self._measured = run is not None and run.clock.updates % self.every == 0
        if run is not None and self._measured:
            self._micro_batch, self._size = batch_idx, run.samples_on_device(trainer, batch, batch_idx)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._forget()  # as the gradients are: a window that was left without an update counts no more

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self._measured or self._run is None:
            return
        if self._contents.count == 0:
            self._hook_parameters(pl_module)
        weight = self._run.loss_weight(trainer.current_epoch, self._micro_batch) / int(trainer.accumulate_grad_batches)
        if weight == 0:
            self._scale = 0.0
            return
        if not self._size:
            self._warn_of_unknown_size()
        self._scale = (weight * internals.gradient_scale(trainer)) ** -2
        self._contents.add(self._size or math.nan, weight)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._measured or self._run is None:
            return
        # one that is frozen now, or none of the optimizer's, whose gradient nobody clears; an engine keeps its own
        owned = {p for group in optimizer.param_groups for p in group["params"]}
        moving = [p for p in self._squares if self._engine_has_it or (p in owned and p.grad is not None)]
        squares = sum((self._squares[p] for p in moving), squared_norm([], pl_module.device))
        own = squares.new_tensor(self._contents.sums())
        sums = trainer.strategy.reduce(torch.cat([own, squares.reshape(1)]), reduce_op="mean")
        if self._engine_has_it:
            self._waiting = sums
        else:
            big = squared_norm([p.grad for p in moving if p.grad is not None], pl_module.device)
            *found, big_sq_norm = torch.cat([sums, big.reshape(1)]).tolist()
            self._estimate(found, big_sq_norm / internals.remaining_loss_scale(trainer, optimizer) ** 2)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.estimator.load_state_dict(state_dict["estimator"])

    def start_fresh(self) -> None:
        super().start_fresh()
        self.estimator = GradientNoiseEstimator(self.smoothing)

    # ------------------------------------------------------------------ inside
    def _hook_parameters(self, module: LightningModule) -> None:
        """See the gradient of every parameter; layers may have been frozen until now."""
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self._hooked:
                add = partial(self._add_squared_norm, parameter)
                self._undo.append(parameter.register_hook(add).remove)  # type: ignore[no-untyped-call]
                self._hooked.add(parameter)

    def _add_squared_norm(self, parameter: Tensor, gradient: Tensor) -> None:
        if self._measured and self._scale:
            squared = squared_norm([gradient], gradient.device) * self._scale
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
        sums, self._waiting = self._waiting.tolist(), None
        self._estimate(sums, norm**2)

    def _estimate(self, mean_sums: list[float], big_sq_norm: float) -> None:
        """Take an update into account; ``mean_sums`` are over the devices, of the contents and of squared norms."""
        assert self._run is not None
        *sums, squares = mean_sums
        contents = WindowContents.over_devices(sums, self._run.clock.shape.epoch.world_size)
        if contents.is_comparable:
            weight = contents.weight * self._run.gradient_correction()
            small_sq_norm, big_sq_norm = squares / contents.count, big_sq_norm / weight**2
            self.estimator.update(small_sq_norm, big_sq_norm, contents.small_batch, contents.big_batch)

    def _warn_of_unknown_size(self) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                "GradientNoiseScale: the sampler and the batch do not show how many samples a micro-batch has, and "
                "such updates are not measured; give count_samples, a function of the batch"
            )

    def _forget(self) -> None:
        self._squares, self._contents = {}, WindowContents()

    def _leave(self, trainer: Trainer) -> None:
        for undo in self._undo:
            undo()
        self._undo, self._waiting, self._hooked = [], None, set()
        self._forget()
        super()._leave(trainer)
