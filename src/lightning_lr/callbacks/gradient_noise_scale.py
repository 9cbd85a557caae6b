"""`GradientNoiseScale`: measure how large a batch the gradient's noise is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import GradientNoiseEstimator, WindowContents
from lightning_lr.batch_size.squared_norms import SquaredNorms, squared_norm
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.noise_by_hand import WindowByHand
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.checks import is_real, require
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import INDEX, later


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
    copied; there is one synchronisation with the device per measured update, and nothing is done in an update of one
    micro-batch on one device, which has nothing to be compared with. Under ``ZeROStrategy`` the norm of the
    whole gradient is the one that the engine takes for clipping.

    Under manual optimization it measures one optimizer, ``optimizers=[index]`` where there are several. All backwards
    of a batch are one micro-batch; batches whose gradients the module accumulates by hand are micro-batches of equal
    weight. It takes several devices, or accumulation over batches; the last backward before a step has to be
    ``manual_backward``. A measured update costs a copy of the optimizer's gradients.

    Args:
        smoothing: what the averages of both norms keep at each measurement, in [0, 1).
        every: updates from one measurement to the next.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it; where it is
            given, it decides.
        optimizers: the index of the one optimizer that is measured, in a list; ``None`` where there is only one.

    Raises:
        MisconfigurationException: at setup, where there are several optimizers and not one is named.
        MisconfigurationException: at setup, where gradients are averaged over the devices before they come to the
            parameters (FSDP), or an engine hides what it does with them (Lightning's ``DeepSpeedStrategy``).

    Example::

        Trainer(accumulate_grad_batches=4, callbacks=[GradientNoiseScale()])

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.
    """

    name = "gradient_noise_scale"
    saves: ClassVar = {"estimator": GradientNoiseEstimator.SAVED, "steps_by_hand": later(INDEX)}

    def __init__(
        self,
        smoothing: float = 0.95,
        every: int = 1,
        count_samples: CountSamples | None = None,
        optimizers: Indices = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"GradientNoiseScale: got every={every!r}; give a whole number of updates from 1")
        require(
            is_real(smoothing) and 0 <= smoothing < 1,
            "GradientNoiseScale",
            "smoothing",
            smoothing,
            "a number in [0, 1)",
        )
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
        """Makes a squared norm of the present backward that of the micro-batch's mean gradient; 0 outside of one, where
        a gradient that appears is of ``torch.autograd.grad``, and of no update."""
        self._squares: SquaredNorms | None = None
        """Of the gradients of this update; ``None`` before the first."""
        self._contents = WindowContents()
        self._big: Tensor | None = None
        self._warned = False
        self._by_hand: WindowByHand | None = None
        self._steps_by_hand = 0

    # ------------------------------------------------------------------ what the method defines
    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        super().check_optimizers(optimizers, schedulers)
        if len(self.chosen(optimizers)) != 1:
            raise MisconfigurationException(
                f"GradientNoiseScale: configure_optimizers returned {len(optimizers)} optimizers, and a noise scale is "
                "that of one loss and its parameters; name the one to measure, such as optimizers=[0]"
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
        if not pl_module.automatic_optimization:
            self._begin_by_hand(trainer, pl_module)
            return
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
        if self._by_hand is not None:
            self._by_hand.begin_batch(None if run is None else run.samples_on_device(trainer, batch, batch_idx))
            return
        self._measured = run is not None and run.clock.updates % self.every == 0
        if run is not None and self._measured:
            self._micro_batch, self._size = batch_idx, run.samples_on_device(trainer, batch, batch_idx)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._forget()  # as the gradients are: a window that was left without an update counts no more

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self._measured or self._run is None:
            return
        if self._squares is None:
            if trainer.world_size == 1 and internals.update_ends(trainer):
                return  # the only micro-batch of its update: nothing to compare with
            self._squares = SquaredNorms(pl_module.device)
            self._hook_parameters(pl_module)
        weight = self._run.loss_weight(trainer.current_epoch, self._micro_batch) / int(trainer.accumulate_grad_batches)
        if weight == 0:
            return
        if not self._size:
            self._warn_of_unknown_size()
        self._scale = (weight * internals.gradient_scale(trainer)) ** -2
        self._contents.add(self._size or math.nan, weight)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._measured or self._run is None or self._by_hand is not None or self._squares is None:
            return
        moving = self._moving(optimizer)
        squares = self._squares.total(moving)
        own = squares.new_tensor(self._contents.sums())
        sums = trainer.strategy.reduce(torch.cat([own, squares.reshape(1)]), reduce_op="mean")
        if self._engine_has_it:
            self._waiting = sums
        else:
            big = self._big
            if big is None:  # the last micro-batch had no backward
                big = squared_norm([p.grad for p in moving if p.grad is not None], pl_module.device)
                big = big / (internals.remaining_loss_scale(trainer, optimizer) * self._run.gradient_correction()) ** 2
            *found, big_sq_norm = torch.cat([sums, big.reshape(1)]).tolist()
            self._estimate(found, big_sq_norm)
        self._forget()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_backward()
        if self._by_hand is not None:
            self._by_hand.after_backward()
        elif self._squares is not None and not self._engine_has_it and internals.update_ends(trainer):
            assert self._run is not None
            # before a hook of the user's clips it; still scaled
            gradients = [p.grad for p in self._moving(trainer.optimizers[0]) if p.grad is not None]
            scale = internals.gradient_scale(trainer) * self._run.gradient_correction()
            self._big = squared_norm(gradients, pl_module.device) / scale**2

    def state_dict(self) -> dict[str, Any]:
        by_hand = self._steps_by_hand if self._by_hand is None else self._by_hand.steps
        return {**super().state_dict(), "estimator": self.estimator.state_dict(), "steps_by_hand": by_hand}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.estimator.load_state_dict(state_dict["estimator"])
        self._steps_by_hand = state_dict.get("steps_by_hand", 0)

    def start_fresh(self) -> None:
        super().start_fresh()
        self.estimator = GradientNoiseEstimator(self.smoothing)
        self._steps_by_hand = 0

    # ------------------------------------------------------------------ inside
    def _begin_by_hand(self, trainer: Trainer, module: LightningModule) -> None:
        index = 0 if self.optimizers is None else self.optimizers[0]
        self._by_hand = WindowByHand(
            trainer, module, index, self._estimate_by_hand, lambda step: step % self.every == 0
        )
        self._by_hand.steps = self._steps_by_hand

    def _estimate_by_hand(self, mean_sums: list[float], big_sq_norm: float) -> None:
        assert self._run is not None
        assert self._by_hand is not None
        contents = WindowContents.over_devices(mean_sums[:-1], self._run.clock.shape.epoch.world_size)
        self._estimate(mean_sums, big_sq_norm)
        told = None
        if not self._size_is_known(contents):
            self._warn_of_unknown_size()
        elif self._by_hand.missed:
            told = (
                "the last backward before the step was not manual_backward, after which alone the gradient is whole "
                "and not clipped yet, or a gradient was changed between two backwards; such updates are not measured. "
                "Call self.manual_backward(loss), and clip after the last one"
            )
        elif not contents.is_comparable:
            told = (
                "with one device and one batch in an update there is one gradient and nothing to compare it with; "
                "accumulate the gradients of several batches"
            )
        if told is not None:
            self._warn_once(told)

    @staticmethod
    def _size_is_known(contents: WindowContents) -> bool:
        return not math.isnan(contents.inverse_sizes)

    def _moving(self, optimizer: Optimizer) -> list[Tensor]:
        """Whose gradients were seen, but what is frozen now, and what no group has, whose gradient nobody clears."""
        seen = {} if self._squares is None else {id(p): p for p in self._squares.parameters}
        if self._engine_has_it:
            return list(seen.values())
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [p for place, p in seen.items() if place in owned and p.grad is not None]

    def _hook_parameters(self, module: LightningModule) -> None:
        """See the gradient of every parameter; layers may have been frozen until now."""
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self._hooked:
                hook = self._hook_of(parameter)
                self._undo.append(parameter.register_hook(hook).remove)  # type: ignore[no-untyped-call]
                self._hooked.add(parameter)

    def _hook_of(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def seen(gradient: Tensor) -> None:  # once for every tensor of every backward
            if self._squares is not None and self._scale:
                self._squares.add(parameter, gradient)

        return seen

    def _close_backward(self) -> None:
        if self._squares is not None and self._scale and not self._squares.close(self._scale):
            self._contents.add(math.nan, 0.0)
            self._warn_once(
                "the gradient of a parameter comes in parts, as where reentrant checkpointing calls a layer twice; "
                "such updates are not measured. Set use_reentrant=False"
            )
        self._scale = 0.0

    def _take_norm(self, norm: float | None) -> None:
        """The engine has made the update, and has taken the norm of its gradient on the way."""
        if self._waiting is None:
            return
        if norm is None:
            raise MisconfigurationException(
                "GradientNoiseScale: the engine takes no norm of the gradient; set zero_optimization.compute_grad_norm "
                "to true"
            )
        assert self._run is not None
        sums, self._waiting = self._waiting.tolist(), None
        self._estimate(sums, (norm / self._run.gradient_correction()) ** 2)

    def _estimate(self, mean_sums: list[float], big_sq_norm: float) -> None:
        """Take an update into account; ``mean_sums`` are over the devices, of the contents and of squared norms."""
        assert self._run is not None
        *sums, squares = mean_sums
        contents = WindowContents.over_devices(sums, self._run.clock.shape.epoch.world_size)
        if contents.is_comparable:
            small_sq_norm, big_sq_norm = squares / contents.count, big_sq_norm / contents.weight**2
            self.estimator.update(small_sq_norm, big_sq_norm, contents.small_batch, contents.big_batch)

    def _warn_of_unknown_size(self) -> None:
        self._warn_once(
            "the sampler and the batch do not show how many samples a micro-batch has, and such updates are not "
            "measured; give count_samples, a function of the batch"
        )

    def _warn_once(self, words: str) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(f"GradientNoiseScale: {words}")

    def _forget(self) -> None:
        self._squares, self._contents, self._big = None, WindowContents(), None
        self._scale = 0.0

    def _leave(self, trainer: Trainer) -> None:
        for undo in self._undo:
            undo()
        if self._by_hand is not None:
            self._steps_by_hand = self._by_hand.steps
            self._by_hand.detach()
            self._by_hand = None
        self._undo, self._waiting, self._hooked = [], None, set()
        self._forget()
        super()._leave(trainer)
