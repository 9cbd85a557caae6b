"""`LearningRateSchedule`: a curve over the samples of the run, as a multiplier of the learning rate."""

from __future__ import annotations

from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.curves import Constant, Curve, Phase
from lightning_lr.progress import RunShape, SampleClock


class LearningRateSchedule(MethodCallback):
    r"""Multiply the learning rate by a curve of the run's progress, counted in samples.

    .. math:: \text{lr}(t) = \text{scheduled lr}(t) \cdot c\left(\frac{n_t}{N}, \frac{b_t}{N}\right)

    where :math:`n_t` samples were consumed before update t, :math:`b_t` are in it, and the run has N. The same curve
    therefore ends exactly at the end of the run with ``max_epochs``, ``max_steps``, accumulation, several devices
    and iterable data. All parameter groups keep their ratio.

    Args:
        curve: what the learning rate follows, for example ``Cosine(warmup=0.05)``.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor tells.

    Raises:
        MisconfigurationException: at setup, beside another callback or a user's LR scheduler that decays, with manual
            optimization or several optimizers, or where the end of the run is not known.

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

    def __init__(self, curve: Curve, count_samples: CountSamples | None = None) -> None:
        super().__init__(count_samples)
        if not isinstance(curve, Curve):
            raise TypeError(f"LearningRateSchedule: got curve={curve!r}; give a Curve, for example Cosine(warmup=0.05)")
        self.curve = curve

    @property
    def decays(self) -> bool:
        return self.curve.decays

    @property
    def needs_end(self) -> bool:
        return not (isinstance(self.curve, Constant) and self.curve.warmup == 0.0)

    def factor(self, clock: SampleClock) -> float:
        if not self.needs_end:
            return self.curve(0.0)
        return self.curve(clock.progress, clock.width)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        return self.curve.phases()

    def summary(self, shape: RunShape) -> dict[str, str]:
        return {"schedule": str(self.curve)}
