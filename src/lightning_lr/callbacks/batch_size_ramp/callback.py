"""`BatchSizeRamp`: grow the batch instead of decaying the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import AdaptiveRamp, LRRule, RampPlan, RampSchedule, has_plain_batch_norm
from lightning_lr.batch_size.critical import CriticalBatch
from lightning_lr.batch_size.noise_scale import momentum_of, noise_scale
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.batch_size.streamed_shape import StreamedShape, is_streamed
from lightning_lr.callbacks import resume_checks
from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.batch_size_ramp.after_warmup import Begin, warmup_before
from lightning_lr.callbacks.batch_size_ramp.auto_micro_batch import largest_micro_batch
from lightning_lr.callbacks.batch_size_ramp.counting import WindowCount
from lightning_lr.callbacks.batch_size_ramp.growth import RampGrowth
from lightning_lr.callbacks.batch_size_ramp.loader import RampedLoader
from lightning_lr.callbacks.batch_size_ramp.settings import Decided, RampSettings
from lightning_lr.callbacks.compatibility import AVERAGING_SETS_THE_END, Clash
from lightning_lr.callbacks.critical_batch import check_branches
from lightning_lr.callbacks.module_scheduler import ModuleScheduler, check_module_scheduler
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.curves import Phase
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import INDEX, later, optional, record_of, row, several


class BatchSizeRamp(MethodCallback):
    r"""Let the noise scale :math:`g = \frac{\epsilon}{1-m}(\frac{N}{B} - 1)` fall by growing the batch B.

    The global batch (devices x micro-batch x accumulation) starts at the loader's ``batch_size`` times the devices and
    follows ``schedule``. The micro-batch grows to ``max_micro_batch_size``, then gradients are accumulated; past
    ``max_batch_size`` the learning rate falls instead, so that :math:`\epsilon N / (B (1-m))` stays on its path.
    Windows of any size, ragged ends and changes within an epoch have exact means; progress bar, validation interval
    and epoch ends are those of the grown batches; a run resumes with the samples that are left, also from a checkpoint
    inside a window (whose micro-batches are run again).

    A loader that shuffles is given an order that depends on ``torch.initial_seed()`` and the epoch alone, so that a
    resume repeats it. Iterable data keep the loader's micro-batch, and accumulation grows; they need a whole number as
    ``limit_train_batches``, or ``max_steps`` with a ``CurveRamp``. Under batch norm, a micro-batch that grows changes
    what is normalised over.

    Args:
        schedule: how far the noise scale has fallen, for example ``StepRamp([60, 120, 160])``. An ``AdaptiveRamp``
            needs a run that ends by epochs, and the ``GradientNoiseScale`` callback where that is what it measures; it
            decides on rank 0, for the first window of which nothing has been prefetched.
        max_batch_size: largest global batch, in samples; ``None``: a tenth of the training set, or the starting batch
            where that is larger.
        max_micro_batch_size: most samples per device and backward; ``None``: no limit; ``"auto"``: what fits on every
            device, found before training by halving on out-of-memory from the largest that the plan would use. It is
            in the checkpoint, and a resumed run does not try again.
        lr_rule: what the learning rate does for a batch that could not grow: ``"linear"`` (SGD), ``"sqrt"`` (Adam).
        begin: ``"after_warmup"``: with ``AdaptiveWarmup(decay=Constant())``, at the first window after its switch of
            which nothing has been prefetched. A curve runs from there to the end of the run, milestones stay where they
            are, and passed ones take effect there.
        module_scheduler: what becomes of an LR scheduler that ``configure_optimizers`` returns. ``"refuse"`` stops
            before training; ``"replace"`` leaves it without effect and starts from the rate that it rises to, while it
            goes on and is in the checkpoint, so that the run can go on without us; ``"multiply"`` applies both.
        count_samples: of a micro-batch, what its loss is a mean over, where that is not its samples (the tokens that
            are not padding): a window's gradient is then the exact mean over all of them, on all devices.

    Raises:
        MisconfigurationException: before training, with another accumulation or a batch sampler of one's own, or
            where the schedule does not fit into the run or ``begin`` to the
            other callbacks or the data.

    Source: Smith, Kindermans, Ying & Le 2018, arXiv 1711.00489.

    Example::

        Trainer(max_epochs=200, callbacks=[BatchSizeRamp(StepRamp([60, 120, 160]), max_micro_batch_size=512)])
    """

    name = "batch_size_ramp"
    saves: ClassVar = {
        "seed": optional(INDEX),
        "growths": several(row(INDEX, INDEX, INDEX)),
        "begin_samples": later(optional(INDEX)),
        "measured": later(several(record_of(CriticalBatch))),
        "micro_batch_size": later(optional(INDEX)),
    }
    changes_batch = True
    refuses = (
        AVERAGING_SETS_THE_END,
        Clash(GradientAccumulationScheduler, "both decide about accumulation", "keep one"),
        Clash(
            BatchSizeFinder,
            "both decide about the batch",
            'remove it and set max_micro_batch_size="auto", which finds what fits',
        ),
    )

    def __init__(
        self,
        schedule: RampSchedule,
        max_batch_size: int | None = None,
        max_micro_batch_size: int | Literal["auto"] | None = None,
        lr_rule: LRRule = "linear",
        begin: Begin = "start",
        module_scheduler: ModuleScheduler = "refuse",
        count_samples: CountSamples | None = None,
    ) -> None:
        super().__init__(count_samples)
        check_module_scheduler("BatchSizeRamp", module_scheduler)
        self.module_scheduler = module_scheduler
        self.settings = RampSettings(schedule, max_batch_size, max_micro_batch_size, lr_rule, begin)
        self._warmup: AdaptiveWarmup | None = None
        self._loader: RampedLoader | None = None
        self._seed: int | None = None
        self._growth = RampGrowth(self, begin == "after_warmup", lr_rule)
        self._weight = 1.0
        self._correction = 1.0
        self._counted = WindowCount()
        self._judged: RampPlan | None = None  # the plan that was last looked through for a lone sample
        self._lone_sample_said = False
        self._fitting: int | None = None
        """What ``max_micro_batch_size="auto"`` has come to."""

    @property
    def schedule(self) -> RampSchedule:
        """How far the noise scale has fallen, over the run."""
        return self.settings.schedule

    # ------------------------------------------------------------------ what the method defines
    @property
    def decays(self) -> bool:
        return self.schedule.falls

    @property
    def needs_end(self) -> bool:
        return True

    def check_arguments(self, trainer: Any) -> None:
        self.settings.check_arguments(type(self).__name__, trainer)

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        self.settings.check_strategy(type(self).__name__, trainer)
        if self.settings.by_branches:
            check_branches(type(self).__name__, trainer, module)

    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        self.settings.check_manual(type(self).__name__)
        rank_zero_info(
            "BatchSizeRamp: under manual optimization the module makes its own updates, one or more of every batch, so "
            "the batch grows by the micro-batch alone and no gradient is accumulated"
        )

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._ramped.ready:
            self._refuse_to_come_late()
        self._refuse_to_begin_inside_an_epoch(trainer)
        corrected = self._ramped.stream is not None or self.count_samples is not None
        if corrected and internals.engine_holds_gradients(trainer):
            raise MisconfigurationException(
                "BatchSizeRamp: iterable data and count_samples need the gradients of a window brought to the mean "
                f"over what is counted, and {type(trainer.strategy).__name__} keeps them in buffers of its engine; use "
                "a map-style data set without count_samples, or DDP"
            )
        if self._ramped.stream is not None and not module.automatic_optimization:
            raise MisconfigurationException(
                "BatchSizeRamp: iterable data keep the loader's micro-batch, so the batch could only grow by "
                "accumulation, and under manual optimization the module makes its own updates; use a map-style data set"
            )
        self._counted = WindowCount()
        if self._ramped.stream is not None:
            resumed = internals.starting_position(trainer)[1] > 0
            inside = resumed and self.clock_state is not None and self.clock_state["window_samples"] > 0
            self._ramped.stream.resume(trainer, inside)
        elif self.settings.max_micro_batch_size == "auto" and self._fitting is None:
            plan = self._ramped.plan
            self._fitting = largest_micro_batch(trainer, module, self._ramped.given, plan.largest_window_per_device)
            plan = replace(plan, max_micro_batch_size=self._fitting)
            self.settings.refuse_nothing_to_compare(plan)
            self._ramped.recut(trainer, plan)

    def reshape(self, shape: RunShape) -> RampedShape:
        if self._loader is not None and self._loader.stream is not None:
            return self._loader.stream.shape
        plan = self._loader.plan if self._loader is not None and self._loader.ready else self.plan_for(shape)
        if (plan.max_epochs, plan.max_updates) != (shape.max_epochs, shape.max_updates):
            rank_zero_warn(
                "BatchSizeRamp: the end of the run has been changed inside an epoch, whose batches are planned for the "
                "end before; the ramp follows from the next epoch on"
            )
        return StreamedShape.of(shape, plan) if is_streamed(shape) else RampedShape.of(shape, plan)

    def plan_for(self, shape: RunShape) -> RampPlan:
        """The plan of this ramp for a run of a shape that a fixed batch would have."""
        plan = self.settings.plan_for(shape, self._decided(shape.epoch.micro_batch_size))
        if is_streamed(shape):
            return plan
        if self._loader is None and self._warmup is not None:  # drawn is what can happen, at the latest
            return plan.begun(self._warmup.switch_range(shape)[1] * plan.starting_batch_size)
        return plan

    def factor(self, clock: SampleClock) -> float:
        shape = clock.shape
        assert isinstance(shape, RampedShape)
        over = shape.max_epochs is not None and clock.epoch >= shape.max_epochs
        if over or (shape.max_updates is not None and clock.updates >= shape.max_updates):
            return shape.plan.phases[-1].lr_factor
        return shape.lr_factor(clock.epoch, clock.micro_batch)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        assert isinstance(shape, RampedShape)
        return shape.phases()

    def summary(self, shape: RunShape) -> dict[str, str]:
        assert isinstance(shape, RampedShape)
        return self.settings.summary(shape, self._total_updates(shape), self._fitting)

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        assert isinstance(shape, RampedShape)
        if isinstance(shape, StreamedShape) and shape.endless:
            return []  # its notes are in epochs
        return [
            *self.settings.schedule.doubts(shape.max_epochs),
            *replace(shape.plan, momentum=momentum_of(optimizer)).warnings,
        ]

    def loss_weight(self, epoch: int, micro_batch: int) -> float:
        if self._ramped.stream is not None or self.count_samples is not None:
            return self._weight  # of the present one; no other is known
        return self._ramped.windows(epoch).weight_of(micro_batch)

    @property
    def gradient_correction(self) -> float:
        return self._correction

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        shape = clock.shape
        assert isinstance(shape, RampedShape)
        if not lr or (isinstance(shape, StreamedShape) and shape.endless):
            return {}  # an AMP scaler skipped the update, or N is not known
        batch_size = shape.batch_at(clock.epoch, clock.micro_batch).size  # the plan's, also at the end of an epoch
        assert batch_size is not None
        dataset_size = shape.plan.dataset_size * shape.unit
        return {"noise/scale": noise_scale(lr[0], momentum_of(optimizer), batch_size, dataset_size)}

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        fixed = {"begin": "when the ramp begins, or has begun, is in the checkpoint"}
        if inside_epoch or state.get("growths"):
            why = "the place in the epoch, and the growth that was measured, belong to the batches that this makes"
            fixed["schedule"] = why
        if inside_epoch:
            why = "the place in the epoch is counted in batches that this makes"
            fixed |= dict.fromkeys(("max_batch_size", "max_micro_batch_size"), why)
        return fixed

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._warmup = warmup_before(self.settings.begin, trainer)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and isinstance(trainer, Trainer):  # a plan has callbacks and no Trainer
            self._loader = RampedLoader(trainer, partial(self._taken_over, trainer), self._seed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._run is not None:
            self._run.clock.drop_open_window()
            epoch = self._run.clock.shape.epoch
            given, held = epoch.micro_batch_size, epoch.device_samples
            if given is not None and held is not None and given > held:
                rank_zero_warn(
                    f"BatchSizeRamp: the loader's batch_size of {given} is more than the {held} samples of an epoch, "
                    "so an epoch is one update, whatever the ramp does; lower the loader's batch_size"
                )
            for doubt in self.settings.schedule.doubts(self._run.clock.shape.max_epochs):
                rank_zero_warn(f"BatchSizeRamp: {doubt}")
        self._ramped.start(trainer)
        if has_plain_batch_norm(pl_module) and self._ramped.plan.micro_batch_grows:
            rank_zero_warn(
                f"BatchSizeRamp: {type(pl_module).__name__} has batch norm and the micro-batch grows, so what is "
                "normalised over grows with it, and the gradient's noise is not all that changes; attach "
                "GhostBatchNorm, or keep the micro-batch by max_micro_batch_size"
            )

        self._lone_sample_said = False
        self._warn_of_lone_sample(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            self._refuse_to_come_late()
        elif self._ramped.follow(trainer):
            self._run.plan_again(trainer)
        if self._ramped.stream is not None:
            self._ramped.stream.begin_epoch(trainer)
        super().on_train_epoch_start(trainer, pl_module)
        self._ramped.start_epoch(trainer)
        self._warn_of_lone_sample(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._run is None:
            self._refuse_to_come_late()
        stream, self._correction = self._ramped.stream, 1.0
        if stream is not None:
            stream.begin_micro_batch(trainer, batch_idx)
            self._weight = stream.weight_of(None if self._run is None else self._run.samples_in(batch))
        else:
            windows = self._ramped.windows(trainer.current_epoch)
            trainer.accumulate_grad_batches = windows.accumulation_at(batch_idx)
            if self.count_samples is None:
                self._weight = windows.weight_of(batch_idx)
            else:
                if batch_idx in windows.boundaries:
                    self._counted = WindowCount()
                self._weight = self._counted.weigh(self.count_samples(batch))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is None:
            self._refuse_to_come_late()
        ends, schedule = internals.update_ends(trainer), self.settings.schedule
        if ends and isinstance(schedule, AdaptiveRamp):
            assert self._run is not None
            self._growth.after_update(trainer, self._run, self._ramped, schedule)
        if ends:
            self._warn_of_lone_sample(trainer, pl_module)
        if ends and self._ramped.stream is not None:
            self._ramped.stream.end_update(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._counted.add()
        if self._weight != 1.0:  # in place: what this hook returns is not used
            loss.mul_(self._weight)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._run is None:
            return
        if self._ramped.stream is not None:
            self._correction = self._ramped.stream.correct(pl_module, self._run.clock.batch_size)
        elif self.count_samples is not None:
            self._correction = self._counted.correct(trainer, pl_module)

    def on_warmup_end(self, trainer: Trainer) -> None:
        if self.settings.begin == "after_warmup":
            assert self._run is not None
            self._growth.begin(trainer, self._run, self._ramped)

    def state_dict(self) -> dict[str, Any]:
        seed = self._seed if self._loader is None else self._loader.seed
        growths = [list(growth) for growth in self._growth.growths]
        return {
            **super().state_dict(),
            "seed": seed,
            "growths": growths,
            "begin_samples": self._growth.begin_samples,
            "measured": [result.facts() for result in self._growth.measured],
            "micro_batch_size": self._fitting,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._seed = state_dict["seed"]
        if self._loader is not None:
            self._loader.seed = self._seed
        # what is read by get is not in checkpoints of 0.1.0
        self._growth.restore(state_dict["growths"], state_dict.get("begin_samples", 0), state_dict.get("measured", []))
        self._fitting = state_dict.get("micro_batch_size")

    def start_fresh(self) -> None:
        super().start_fresh()
        self._seed = self._fitting = None
        self._growth.forget()
        if self._loader is not None:
            self._loader.seed = None

    # ------------------------------------------------------------------ inside
    def _warn_of_lone_sample(self, trainer: Trainer, module: LightningModule) -> None:
        """Once, as soon as the batches are planned that leave one: at the start, at a growth, with a new loader."""
        plan = self._ramped.plan
        if plan is self._judged or self._ramped.stream is not None or self._lone_sample_said:
            return
        self._judged = plan
        place = plan.lone_sample(trainer.current_epoch)
        if place is not None and any(isinstance(part, _BatchNorm) for part in module.modules()):
            self._lone_sample_said = True
            rank_zero_warn(
                f"BatchSizeRamp: micro-batch {place[1]} of epoch {place[0]} has one sample, which is what the grown "
                "batches leave of an epoch, and batch norm over vectors takes no variance of one (torch: 'Expected "
                "more than 1 value per channel'); set drop_last=True in the DataLoader"
            )

    def _taken_over(self, trainer: Trainer, shape: RunShape) -> RampedShape:
        """The run under the ramp, before the loader is placed in it: in another run the place would mean nothing."""
        self._refuse_to_begin_inside_an_epoch(trainer)
        inside_epoch = internals.starting_position(trainer)[1] > 0
        resume_checks.check_settings(self, inside_epoch, quiet=True)
        run = self.reshape(shape)
        resume_checks.check_run([self], run, inside_epoch, quiet=True)
        return run

    def _refuse_to_begin_inside_an_epoch(self, trainer: Trainer) -> None:
        if self.loaded is None and internals.starting_position(trainer)[1] > 0:
            raise MisconfigurationException(
                "BatchSizeRamp: the checkpoint was made inside an epoch and without BatchSizeRamp, whose order of the "
                "samples and batches are others, so that samples would be repeated or left out; resume from a "
                "checkpoint at the end of an epoch"
            )

    @property
    def _ramped(self) -> RampedLoader:
        assert self._loader is not None
        return self._loader

    def _decided(self, micro_batch_size: int | None) -> Decided:
        limit = self.settings.max_micro_batch_size
        found = limit != "auto" or self._fitting is not None
        if limit == "auto":
            limit = self._fitting
            if not found and self._loader is not None:
                limit = micro_batch_size  # until it has been tried, as long an epoch as without a ramp
        return Decided(self._growth.begin_samples, self._growth.growths, limit, found)

    def _total_updates(self, shape: RampedShape) -> str:
        """In words; what a plan shows depends on a switch that is not known."""
        plan = shape.plan
        if isinstance(self.schedule, AdaptiveRamp) and plan.phases[-1].batch_size < plan.largest_batch_size:
            return f"at most {plan.total_updates:,}"
        if self._warmup is None or self._loader is not None:
            return f"{plan.total_updates:,}"
        earliest, latest = (updates * plan.starting_batch_size for updates in self._warmup.switch_range(shape))
        return f"{plan.begun(earliest).total_updates:,} to {plan.begun(latest).total_updates:,} (shown)"

    def _leave(self, trainer: Trainer) -> None:
        if self._loader is not None:
            self._seed = self._loader.seed
            self._loader.release(trainer)
            self._loader = None
        super()._leave(trainer)
