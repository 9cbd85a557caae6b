"""`NormalizedWeightDecay`: AdamW's decay from the batch size and the length of the run, per update and per restart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import mul
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.learning_rate_schedule import LearningRateSchedule
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.checks import is_real
from lightning_lr.curves import CosineRestarts, Curve
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.weight_decay import decays_apart_from_step, normalized_weight_decay, torch_weight_decays


class NormalizedWeightDecay(MethodCallback):
    r"""Set the weight decay of AdamW from a number that holds for every batch size and length of training.

    .. math:: \lambda_t = \lambda_\text{norm} \sqrt{\frac{b_t}{B T_i}}, \qquad
        w \leftarrow w - \eta_t (\text{step of Adam at } \alpha) - \eta_t \lambda_t w

    where b is the global batch, in samples that a full update really has: it follows a ``BatchSizeRamp``, and is at
    most an epoch. An update that the end of an epoch cuts short decays as a full one. B T are the samples of the run,
    or of the current cycle where a ``LearningRateSchedule(CosineRestarts(...))`` restarts (AdamWR; a last cycle that
    the end of the run cuts short counts in full). torch multiplies the decay by the whole learning rate, so that each
    group gets ``weight_decay`` = :math:`\lambda_t / \alpha`.

    What counts as the schedule :math:`\eta_t`, which scales the decay as well: the module's LR scheduler,
    ``LearningRateSchedule`` and the learning rate's part in a ``BatchSizeRamp``. What counts as the base learning rate
    :math:`\alpha`, which does not: the group's own initial ``lr``, ``LayerwiseLRDecay``, ``LearningRateScaling`` (its
    climb too) and ``HypergradientDescent``. Groups whose ``weight_decay`` is 0 stay at 0; other values are replaced.

    Args:
        norm: :math:`\lambda_\text{norm}`; the paper's repository suggests 0.025 to 0.05 for CIFAR-10.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all.

    Raises:
        ValueError: for a negative ``norm``.
        MisconfigurationException: at setup, with an optimizer whose decay is not decoupled from the gradient (SGD with
            momentum, Adam), is inside a trust ratio (LAMB) or has another factor (Prodigy), where no group has a decay,
            with ``AdaptiveWarmup``, which chooses the base learning rate during the run, or with torch's own warm
            restarts.

    Example::

        Trainer(max_epochs=30, callbacks=[NormalizedWeightDecay(), LearningRateSchedule(Cosine())])

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, section 4 and appendix B.1.
    """

    name = "normalized_weight_decay"
    refuses = (
        Clash(
            BaseFinetuning,
            "it adds a group during the run, by whose base learning rate the decay would have to be divided",
            "use GradualUnfreezing, which adds no group",
        ),
    )

    def __init__(
        self, norm: float = 0.025, count_samples: CountSamples | None = None, optimizers: Indices = None
    ) -> None:
        super().__init__(count_samples, optimizers)
        if not (is_real(norm) and norm >= 0):
            raise ValueError(f"NormalizedWeightDecay: got norm={norm!r}; give a finite number that is not negative")
        self.norm = float(norm)
        self._base_names: tuple[str, ...] = ()  # multipliers of the base lr, which does not scale the decay
        self._schedule: LearningRateSchedule | None = None
        self._decay: dict[int, float] = {}
        self._base_lr: dict[int, list[float]] = {}

    # ------------------------------------------------------------------ what the method defines
    @property
    def needs_end(self) -> bool:
        return True

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        super().check_optimizers(optimizers, schedulers)
        for scheduler in schedulers:
            if isinstance(scheduler, CosineAnnealingWarmRestarts):
                raise MisconfigurationException(
                    "NormalizedWeightDecay: configure_optimizers also returns a CosineAnnealingWarmRestarts, whose "
                    "cycles are not known in samples; use LearningRateSchedule(CosineRestarts(...)) instead"
                )
        chosen = self.chosen(optimizers)
        for optimizer in chosen:
            for index, group in enumerate(optimizer.param_groups):
                if not decays_apart_from_step(optimizer, group):
                    raise MisconfigurationException(
                        f"NormalizedWeightDecay: {type(optimizer).__name__} (parameter group {index}) does not "
                        "subtract lr x weight_decay x weight apart from its step; use one that does, for example "
                        "torch.optim.AdamW or Muon"
                        + (", or leave it out with the argument optimizers" if len(optimizers) > 1 else "")
                    )
        if not any(group["weight_decay"] for optimizer in chosen for group in optimizer.param_groups):
            raise MisconfigurationException(
                "NormalizedWeightDecay: every parameter group has weight_decay=0, which stays 0; give the groups that "
                "are to decay any other value"
            )

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self.rates_were_set(writer)
        writer.set_groups_transform("weight_decay", self.name, partial(self._weight_decays, writer))

    def rates_were_set(self, writer: HyperparameterWriter) -> None:
        self._base_lr[writer.index] = [float(lr) for lr in writer.tuned()]

    def factor(self, clock: SampleClock) -> float:
        self._decay = {0: self.decay(clock)}
        return 1.0

    def factor_of(self, writer: HyperparameterWriter, clock: SampleClock) -> float:
        self._decay[writer.index] = self.decay(clock, writer.index)
        return 1.0

    def decay(self, clock: SampleClock, index: int = 0) -> float:
        """The paper's lambda for the update that ``clock`` stands before, of one of the optimizers."""
        shape = clock.shape
        size = shape.batch_at(clock.epoch, clock.micro_batch).size
        if size is None:  # a unit of progress is a micro-batch
            _, size = shape.window(clock.epoch, 0)
        curve = self._curve_of(index)
        share = curve.cycle_length(clock.progress) if isinstance(curve, CosineRestarts) else 1.0
        return normalized_weight_decay(self.norm, size, shape.total_units * share)

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        assert self._run is not None
        names = self._run.writer_of(optimizer).group_names()
        decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        return {f"weight_decay/{name}": decay for name, decay in zip(names, decays, strict=True)}

    def summary(self, shape: RunShape) -> dict[str, str]:
        decay = self.decay(SampleClock(shape))
        cycles = ", again at each restart" if isinstance(self._curve_of(0), CosineRestarts) else ""
        return {"weight decay": f"lambda {decay:.4g} per update at the start, from norm {self.norm:g}{cycles}"}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._schedule = None
        self._base_names = tuple(other.name for other in members_of(trainer) if other.lr_role == "base")
        for other in members_of(trainer):
            if other.lr_role == "finder":
                raise MisconfigurationException(
                    f"NormalizedWeightDecay: {type(other).__name__} is attached too and chooses the base learning rate "
                    "during the run, by which the decay is to be divided; set the optimizer's weight_decay instead"
                )
            if isinstance(other, LearningRateSchedule):
                self._schedule = other

    def start_fresh(self) -> None:
        super().start_fresh()
        self._saved_base_lr = None

    # ------------------------------------------------------------------ inside
    def _curve_of(self, index: int) -> Curve | None:
        return None if self._schedule is None or not self._schedule.acts_on(index) else self._schedule.curve_of(index)

    def _weight_decays(self, writer: HyperparameterWriter, scheduled: list[Any]) -> list[Any]:
        known, decay = self._base_lr[writer.index], self._decay[writer.index]
        base = map(mul, known, writer.products(self._base_names))
        # a group that was added during the run keeps its own
        return [*torch_weight_decays(decay, scheduled[: len(known)], base), *scheduled[len(known) :]]
