"""`BatchSizeRamp`: grow the batch instead of decaying the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import (
    AdaptiveRamp,
    EpochSampler,
    EpochWindows,
    Growth,
    LRRule,
    RampBatchSampler,
    RampPlan,
    RampSchedule,
)
from lightning_lr.batch_size.noise_scale import momentum_of, noise_scale
from lightning_lr.batch_size.ramped_run import RampedRun
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.gradient_noise_scale import GradientNoiseScale
from lightning_lr.callbacks.run import run_shape
from lightning_lr.curves import Phase
from lightning_lr.progress import RunShape, SampleClock

Begin = Literal["start", "after_warmup"]


class BatchSizeRamp(MethodCallback):
    r"""Let the noise scale :math:`g = \frac{\epsilon}{1-m}(\frac{N}{B} - 1)` fall by growing the batch B.

    The global batch (devices x micro-batch x accumulation) starts at the loader's ``batch_size`` times the devices and
    follows ``schedule``. The micro-batch grows to ``max_micro_batch_size``, then gradients are accumulated; past
    ``max_batch_size`` the learning rate falls instead, so that :math:`\epsilon N / (B (1-m))` stays on its path.
    Windows of any size, ragged ends and changes within an epoch have exact means; progress bar, validation interval
    and epoch ends are those of the grown batches; a run resumes with the samples that are left, also from a checkpoint
    inside a window (whose micro-batches are run again).

    A loader that shuffles is given an order that depends on ``torch.initial_seed()`` and the epoch alone, so that a
    resume repeats it. Under batch norm, a micro-batch that grows changes what is normalised over.

    Args:
        schedule: how far the noise scale has fallen, for example ``StepRamp([60, 120, 160])``. An ``AdaptiveRamp``
            needs ``GradientNoiseScale`` beside it and a run that ends by epochs; it decides on rank 0, for the first
            window of which nothing has been prefetched.
        max_batch_size: largest global batch, in samples; ``None``: a tenth of the training set, or the starting batch
            where that is larger.
        max_micro_batch_size: most samples per device and backward; ``None``: no limit.
        lr_rule: what the learning rate does for a batch that could not grow: ``"linear"`` (SGD), ``"sqrt"`` (Adam).

    Raises:
        MisconfigurationException: before training, beside another accumulation, with a batch sampler of one's own or
            iterable data, or where the schedule does not fit into the run.

    Source: Smith, Kindermans, Ying & Le 2018, arXiv 1711.00489.

    Example::

        Trainer(max_epochs=200, callbacks=[BatchSizeRamp(StepRamp([60, 120, 160]), max_micro_batch_size=512)])
    """

    name = "batch_size_ramp"

    def __init__(
        self,
        schedule: RampSchedule,
        max_batch_size: int | None = None,
        max_micro_batch_size: int | None = None,
        lr_rule: LRRule = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(schedule, RampSchedule):
            raise TypeError(
                f"BatchSizeRamp: got schedule={schedule!r}; give a RampSchedule, for example StepRamp([60, 120, 160])"
            )
        if lr_rule not in get_args(LRRule):
            raise ValueError(f"BatchSizeRamp: got lr_rule={lr_rule!r}; allowed are {get_args(LRRule)}")
        for argument, value in (("max_batch_size", max_batch_size), ("max_micro_batch_size", max_micro_batch_size)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"BatchSizeRamp: got {argument}={value!r}; a batch is a whole number from 1")
        self.schedule = schedule
        self.max_batch_size = max_batch_size
        self.max_micro_batch_size = max_micro_batch_size
        self.lr_rule = lr_rule
        self._sampler: RampBatchSampler | None = None
        self._placed_at: tuple[int, int] | None = None
        self._plan: RampPlan | None = None
        self._seed: int | None = None
        self._growths: tuple[Growth, ...] = ()
        self._micro_batch = 0
        self._undo: list[Callable[[], Any]] = []

    # ------------------------------------------------------------------ what the method says
    @property
    def decays(self) -> bool:
        return True

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        who = type(self).__name__
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"{who}: got Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}); the ramp decides "
                "about accumulation: leave it at 1 and give the largest micro-batch as max_micro_batch_size"
            )
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                f"{who}: GradientAccumulationScheduler is attached too, and both decide about accumulation; keep one"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise MisconfigurationException(
                f"{who}: {type(trainer.strategy).__name__} accumulates by itself with a fixed number of micro-batches; "
                "use DDP or one device"
            )
        if isinstance(self.schedule, AdaptiveRamp):
            self._check_adaptive(trainer)

    def reshape(self, shape: RunShape) -> RampedRun:
        plan = self._plan or self.plan_for(shape)
        return RampedRun.of(shape, plan)

    def plan_for(self, shape: RunShape, lr: float | None = None, momentum: float = 0.0) -> RampPlan:
        """The plan of this ramp for a run of a shape that a fixed batch would have."""
        epoch = shape.epoch
        if epoch.micro_batch_size is None or epoch.device_samples is None:
            raise MisconfigurationException(
                "BatchSizeRamp: the loader does not tell its samples and batch size (an iterable data set, or a batch "
                "sampler of its own); use a map-style data set with batch_size"
            )
        batches = -(-epoch.device_samples // epoch.micro_batch_size)
        limited = epoch.micro_batches is not None and epoch.micro_batches < batches
        device_samples = (epoch.micro_batches or 0) * epoch.micro_batch_size if limited else epoch.device_samples
        try:
            return RampPlan(
                self.schedule,
                dataset_size=device_samples * epoch.world_size,
                batch_size=epoch.micro_batch_size * epoch.world_size,
                world_size=epoch.world_size,
                max_epochs=shape.max_epochs,
                max_updates=shape.max_updates,
                max_batch_size=self.max_batch_size,
                max_micro_batch_size=self.max_micro_batch_size,
                lr_rule=self.lr_rule,
                lr=lr,
                momentum=momentum,
                device_samples=device_samples,
                growths=self._growths,
            )
        except ValueError as error:
            raise MisconfigurationException(f"BatchSizeRamp: {error}") from error

    def factor(self, clock: SampleClock) -> float:
        shape = clock.shape
        assert isinstance(shape, RampedRun)
        if clock.updates >= shape.total_updates:
            return float(self._last_factor(shape))
        return shape.lr_factor(clock.epoch, clock.micro_batch)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        assert isinstance(shape, RampedRun)
        epochs = shape.plan.epochs
        rows = [(f"batch {phase.batch_size}", phase.start_epoch / epochs) for phase in shape.plan.phases]
        ends = [start for _, start in rows[1:]] + [1.0]
        return tuple(Phase(name, start, end) for (name, start), end in zip(rows, ends, strict=True))

    def facts(self, shape: RunShape) -> dict[str, str]:
        assert isinstance(shape, RampedRun)
        plan = shape.plan
        return {
            "batch ramp": f"{self.schedule}: {plan.starting_batch_size} to at most {plan.largest_batch_size}",
            "updates": f"{plan.total_updates:,} against {plan.fixed_batch_updates:,} with a fixed batch",
        }

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        shape = clock.shape
        assert isinstance(shape, RampedRun)
        if not lr:  # an AMP scaler skipped the update
            return {}
        scale = noise_scale(lr[0], momentum_of(optimizer), clock.batch_size, shape.plan.dataset_size)
        return {"noise_scale": scale}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and hasattr(trainer, "strategy"):  # a plan has callbacks and no Trainer
            self._undo.append(internals.on_train_loader(trainer, lambda loader: self._take_over(trainer, loader)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is not None:
            self._run.clock.drop_open_window()
        epoch, micro_batch = internals.next_position(trainer)
        if self._placed_at != (epoch, micro_batch):  # the loader was made before the loops were restored
            self._place(trainer)
            internals.restart_iterator(trainer)
        internals.set_epoch_length(trainer, len(self._windows(epoch).micro_sizes))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        epoch = trainer.current_epoch
        assert self._sampler is not None
        if trainer.current_epoch > 0:  # the iterator of epoch 0 exists already; that of every other is made after this
            self._sampler.set_windows(self._windows(epoch))
            self._sampler.set_epoch(epoch)
        internals.set_epoch_length(trainer, len(self._windows(epoch).micro_sizes))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._micro_batch = batch_idx
        trainer.accumulate_grad_batches = self._windows(trainer.current_epoch).accumulation_at(batch_idx)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(self.schedule, AdaptiveRamp) and internals.update_ends(trainer):
            self._decide(trainer, self.schedule)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        weight = self._windows(trainer.current_epoch).weight_of(self._micro_batch)
        if weight != 1.0:  # in place: what this hook returns is not used
            loss.mul_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self._seed, "growths": [list(growth) for growth in self._growths]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._seed = state_dict["seed"]
        self._growths = tuple(Growth(*growth) for growth in state_dict["growths"])

    # ------------------------------------------------------------------ inside
    def _windows(self, epoch: int) -> EpochWindows:
        assert self._plan is not None
        return self._plan.windows(epoch)

    def _check_adaptive(self, trainer: Trainer) -> None:
        if not any(isinstance(member, GradientNoiseScale) for member in members_of(trainer)):
            raise MisconfigurationException(
                "BatchSizeRamp: AdaptiveRamp follows the measured gradient noise scale; attach GradientNoiseScale too"
            )
        if trainer.max_steps != -1:
            raise MisconfigurationException(
                f"BatchSizeRamp: got max_steps={trainer.max_steps} with an AdaptiveRamp, whose batches are not known "
                "ahead, so neither are the samples of the run; end it by max_epochs"
            )

    def _decide(self, trainer: Trainer, schedule: AdaptiveRamp) -> None:
        """Grow the batch from the first window on of which no micro-batch has been prefetched, if it is time to."""
        assert self._run is not None
        assert self._plan is not None
        assert self._sampler is not None
        clock, plan, epoch = self._run.clock, self._plan, trainer.current_epoch
        if clock.updates % schedule.check_every:
            return
        window = self._windows(epoch).next_window_from(self._sampler.given_out)
        place = (epoch, window.start) if window is not None else (epoch + 1, 0)
        last = self._growths[-1] if self._growths else None
        current = last.batch_size if last is not None else plan.starting_batch_size
        measured = next(m.estimator.value for m in members_of(trainer) if isinstance(m, GradientNoiseScale))
        wanted = schedule.next_batch_size(current, measured, plan.largest_batch_size)
        if place[0] >= (trainer.max_epochs or 0) or (last is not None and place <= (last.epoch, last.start)):
            wanted = current  # the run ends, or the decision before has not taken effect yet
        wanted, *place_of_all = trainer.strategy.broadcast((wanted, *place))
        if wanted == current:
            return
        self._plan = plan.grown(wanted, *place_of_all)
        self._growths = self._plan.growths
        clock.shape = RampedRun.of(clock.shape, self._plan)
        self._sampler.replan(self._windows(epoch))
        internals.set_epoch_length(trainer, len(self._windows(epoch).micro_sizes))
        journal = self._run.journal(self.name)
        if journal is not None:
            journal.append(clock.updates, "grow", batch_size=wanted, noise_scale=measured, epoch=place_of_all[0])

    @staticmethod
    def _last_factor(shape: RampedRun) -> float:
        return shape.plan.phases[-1].lr_factor

    def _take_over(self, trainer: Trainer, loader: Any) -> Any:
        """Put our batch sampler into the training loader, at the place where the run is."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise MisconfigurationException(
                f"BatchSizeRamp: got a {type(getattr(loader, 'dataset', loader)).__name__}, which is batched where we "
                "cannot see it; use a DataLoader over a map-style data set"
            )
        given = loader.batch_sampler
        if type(given) not in (BatchSampler, RampBatchSampler):
            raise MisconfigurationException(
                f"BatchSizeRamp: the train dataloader has a batch sampler of its own ({type(given).__name__}), which "
                "decides about the batch too; give the DataLoader a sampler and a batch_size"
            )
        assert isinstance(given, BatchSampler)
        sampler, size = given.sampler, len(loader.dataset)  # type: ignore[arg-type]
        if isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size:
            self._seed = trainer.strategy.broadcast(self._seed if self._seed is not None else torch.initial_seed())
            sampler = EpochSampler(size, seed=self._seed)
        batches = internals.limited_batches(trainer, -(-len(sampler) // given.batch_size))  # type: ignore[arg-type]
        shape = internals.loader_shape(loader, batches, trainer.world_size)
        self._plan = self.plan_for(run_shape(trainer, type(self).__name__, shape))
        if isinstance(self.schedule, AdaptiveRamp):
            self._check_comparable(trainer, given.batch_size)
        self._sampler = RampBatchSampler(sampler, given.batch_size, given.drop_last)
        self._place(trainer)
        self._undo.append(partial(internals.replace_batch_sampler, loader, given))
        internals.replace_batch_sampler(loader, self._sampler)
        internals.forget_loader_states(trainer)
        return loader

    def _place(self, trainer: Trainer) -> None:
        """Let the sampler begin where the loop will."""
        assert self._sampler is not None
        epoch, micro_batch = internals.next_position(trainer)
        windows = self._windows(epoch)
        if micro_batch not in windows.boundaries:  # inside a window: its gradient is lost, so run it again as a whole
            micro_batch = windows.first_of_window(micro_batch)
            internals.roll_back_to(trainer, micro_batch)
        trainer.accumulate_grad_batches = windows.accumulation_at(micro_batch)
        self._sampler.set_epoch(epoch)
        self._sampler.set_windows(windows, skip=micro_batch)
        self._placed_at = epoch, micro_batch

    def _check_comparable(self, trainer: Trainer, micro_batch_size: int) -> None:
        if trainer.world_size * len(self._windows(0)[0].micro_sizes) == 1:
            raise MisconfigurationException(
                "BatchSizeRamp: AdaptiveRamp compares two gradients per update; one device and one micro-batch "
                f"of {micro_batch_size} make one; give a max_micro_batch_size below {micro_batch_size}"
            )

    def _leave(self, trainer: Trainer) -> None:
        if self._undo:
            trainer.accumulate_grad_batches = 1
        for undo in self._undo:
            undo()
        self._undo = []
        self._plan = None
        super()._leave(trainer)
