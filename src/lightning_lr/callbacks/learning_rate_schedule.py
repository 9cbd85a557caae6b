"""`LearningRateSchedule`: a curve over the budget of the run, as a multiplier of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.module_scheduler import ModuleScheduler, check_module_scheduler
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.checks import is_list
from lightning_lr.curves import Constant, Curve, Phase
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock


class LearningRateSchedule(MethodCallback):
    r"""Multiply the learning rate by a curve of the run's progress, the share of its budget that is spent.

    .. math:: \text{lr}(t) = \text{scheduled lr}(t) \cdot c(p_t, w_t)

    with :math:`p_t` spent before update t and :math:`w_t` by it: updates of ``max_steps``, epochs (and the present
    one's micro-batches) of ``max_epochs``, seconds of ``max_time``; the largest share counts. The same curve therefore
    ends exactly at the end of the run, also with accumulation, several devices, several or reloaded loaders and
    iterable data. All parameter groups keep their ratio.

    Args:
        curve: what the learning rate follows, for example ``Cosine(warmup=0.05)``; or a list of one for each optimizer.
        module_scheduler: what becomes of an LR scheduler that ``configure_optimizers`` returns. ``"refuse"`` stops
            before training; ``"replace"`` leaves it without effect and starts from the rate that it rises to, while it
            goes on and is in the checkpoint, so that the run can go on without us; ``"multiply"`` applies both.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.

    Raises:
        TypeError: where ``curve`` is no curve and no list of curves.
        MisconfigurationException: at setup, with another callback that decays, with an LR scheduler of the module's
            (see ``module_scheduler``), for a list of another length than there are optimizers, or where the end of the
            run is not known.

    Example::

        Trainer(max_epochs=5, callbacks=[LearningRateSchedule(Cosine(warmup=0.05))])
    """

    name = "schedule"
    refuses = (
        Clash(
            StochasticWeightAveraging,
            "it averages at a learning rate of its own (swa_lrs), which the schedule would lower to its end",
            "remove one of the two, or give a curve that only warms up: Constant(warmup=...)",
            when=lambda schedule: schedule.decays,
        ),
    )

    def __init__(
        self,
        curve: Curve | list[Curve],
        count_samples: CountSamples | None = None,
        module_scheduler: ModuleScheduler = "refuse",
        optimizers: Indices = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        if not (isinstance(curve, Curve) or (is_list(curve) and curve and all(isinstance(c, Curve) for c in curve))):
            raise TypeError(
                f"LearningRateSchedule: got curve={curve!r}; give a Curve, for example Cosine(warmup=0.05), or a list "
                "of one for each optimizer"
            )
        check_module_scheduler("LearningRateSchedule", module_scheduler)
        self.curve = curve
        self.module_scheduler = module_scheduler

    @property
    def decays(self) -> bool:
        return any(curve.decays for curve in self.curves)

    @property
    def needs_end(self) -> bool:
        return any(map(_moves, self.curves))

    @property
    def curves(self) -> list[Curve]:
        """One curve for all optimizers, or one for each that the callback acts on."""
        return [self.curve] if isinstance(self.curve, Curve) else list(self.curve)

    def curve_of(self, index: int) -> Curve:
        """The curve of an optimizer, by its place."""
        if isinstance(self.curve, Curve):
            return self.curve
        if len(self.curves) == 1:
            return self.curves[0]
        return self.curves[index if self.optimizers is None else list(self.optimizers).index(index)]

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        super().check_optimizers(optimizers, schedulers)
        chosen = len(self.chosen(optimizers))
        if len(self.curves) not in (1, chosen):
            raise MisconfigurationException(
                f"LearningRateSchedule: got {len(self.curves)} curves for {chosen} optimizers; give one curve for all, "
                "or a list of one for each"
            )
        for optimizer in self.chosen(optimizers):
            if all(group.get("initial_lr", group.get("lr")) == 0 for group in optimizer.param_groups):
                rank_zero_warn(
                    f"LearningRateSchedule: {type(optimizer).__name__} has lr=0, which no factor changes, so that "
                    "nothing is trained; give it the rate that the curve is to reach"
                )

    def factor(self, clock: SampleClock) -> float:
        return _at(self.curves[0], clock)

    def factor_of(self, writer: HyperparameterWriter, clock: SampleClock) -> float:
        return _at(self.curve_of(writer.index), clock)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        return self.curves[0].phases()

    def summary(self, shape: RunShape) -> dict[str, str]:
        return {"schedule": ", ".join(map(str, self.curves))}


def _moves(curve: Curve) -> bool:
    return not (isinstance(curve, Constant) and curve.warmup == 0.0)


def _at(curve: Curve, clock: SampleClock) -> float:
    if isinstance(curve, Constant) and not _moves(curve):  # works in a run without an end
        return curve(0.0)
    return curve(clock.progress, clock.width)
