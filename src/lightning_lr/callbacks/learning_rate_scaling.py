"""`LearningRateScaling`: the learning rate of a reference batch, carried over to the batch that is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning_utilities.core.rank_zero import rank_zero_deprecation
from torch.optim import Adam, NAdam, Optimizer, RAdam

from lightning_lr import lightning_internals as internals
from lightning_lr import scaling
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.resume_checks import facts_of
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.checks import is_count, is_real
from lightning_lr.curves import Phase
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import INDEX, later, optional


class LearningRateScaling(MethodCallback):
    r"""Scale a learning rate that was tuned for ``reference_batch_size`` to the global batch of this run.

    With :math:`k = B / B_\text{ref}` (B: samples that the first update of the run really has over devices and
    accumulation, so at most an epoch's; an update that the end of an epoch cuts short keeps this k):

    - ``lr_rule="linear"``: lr times k, reached by a climb of equal steps per update over ``warmup_epochs``
      (Krizhevsky 2014; Goyal et al. 2017);
    - ``lr_rule="sqrt"``: lr times :math:`\sqrt k`, with the same climb; for Adam and its kin also
      :math:`\beta' = 1 - k(1 - \beta)` and :math:`\epsilon' = \epsilon / \sqrt k` from the start (Malladi et al. 2022).

    For k below 1 the smaller learning rate applies at once. A batch that grows during the run (``BatchSizeRamp``) does
    not change k: following it would cancel what the ramp is for.

    Args:
        reference_batch_size: the global batch for which the learning rate was tuned, in samples.
        lr_rule: ``"linear"`` (SGD) or ``"sqrt"`` (Adam).
        warmup_epochs: length of the climb, in epochs; 0 for none.
        batch_size: the global batch, in samples, where the loader does not have it (a batch sampler of one's own).
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all.
        rule: what ``lr_rule`` was called until 0.2; with a deprecation warning, for one version.

    Raises:
        MisconfigurationException: at setup, where the batch size is not known, where ``warmup_epochs`` is longer than
            the run, or where the square-root rule leaves the range of a beta (k > 1 / (1 - beta)).

    Example::

        Trainer(max_epochs=90, callbacks=[LearningRateScaling(256), LearningRateSchedule(Step([1/3, 2/3, 8/9]))])
    """

    name = "linear_scaling"
    saves: ClassVar = {"batch": later(optional(INDEX))}
    lr_role = "base"
    refuses = (
        Clash(
            LearningRateFinder,
            "it finds a learning rate for this very batch, which must not be scaled to it again",
        ),
    )

    def __init__(
        self,
        reference_batch_size: int = 256,
        lr_rule: scaling.Rule = "linear",
        warmup_epochs: float = 5.0,
        batch_size: int | None = None,
        count_samples: CountSamples | None = None,
        optimizers: Indices = None,
        rule: scaling.Rule | None = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        if rule is not None:
            rank_zero_deprecation(
                "LearningRateScaling: rule is called lr_rule, as elsewhere; rule goes in 0.3", stacklevel=7
            )
            lr_rule = rule
        for argument, value in (("reference_batch_size", reference_batch_size), ("batch_size", batch_size)):
            if not (is_count(value) or (value is None and argument == "batch_size")):
                raise ValueError(f"LearningRateScaling: got {argument}={value!r}; a batch is a whole number from 1")
        if lr_rule not in get_args(scaling.Rule):
            raise ValueError(f"LearningRateScaling: got lr_rule={lr_rule!r}; allowed are {get_args(scaling.Rule)}")
        if not (is_real(warmup_epochs) and warmup_epochs >= 0):
            raise ValueError(f"LearningRateScaling: got warmup_epochs={warmup_epochs!r}; give 0 (none) or more epochs")
        self.reference_batch_size = reference_batch_size
        self.lr_rule = lr_rule
        self.warmup_epochs = float(warmup_epochs)
        self.batch_size = batch_size
        self._batch: int | None = None
        """The global batch when the run began: what makes it another later, a ramp or a reloaded loader, is left as it
        is. A resume goes on with it, unless loader, devices or accumulation are others than at the checkpoint."""
        self._reloads = False

    def k(self, shape: RunShape) -> float:
        """The global batch of this run over the reference batch."""
        batch_size = self._batch_of(shape)
        if batch_size is None:
            raise MisconfigurationException(
                "LearningRateScaling: the loader's batch size is not known (it has a batch sampler of its own); "
                "give the global batch as batch_size"
            )
        return batch_size / self.reference_batch_size

    def scale(self, shape: RunShape) -> float:
        """The full factor on the learning rate, after the climb."""
        return scaling.learning_rate_scale(self.k(shape), self.lr_rule)

    def climb(self, shape: RunShape) -> float:
        """The climb's length in epochs; 0 where there is nothing to climb."""
        if self.warmup_epochs == 0 or self.scale(shape) <= 1.0:
            return 0.0
        if shape.epoch.total_units is None:
            raise MisconfigurationException(
                f"LearningRateScaling: got warmup_epochs={self.warmup_epochs:g}, but the loader has no length, so an "
                "epoch is not known; set warmup_epochs=0 and give the curve a warmup instead"
            )
        return self.warmup_epochs

    def warmup(self, shape: RunShape) -> float:
        """The climb's share of the run; 0 where there is nothing to climb."""
        climb = self.climb(shape)
        return climb * (shape.epoch.total_units or 0) / shape.total_units if climb else 0.0

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        self._reloads = internals.reloads_loaders(trainer)

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        if shape.has_length and self.warmup(shape) > 1.0 + 1e-9:
            epoch_units = shape.epoch.total_units or 1
            raise MisconfigurationException(
                f"LearningRateScaling: got warmup_epochs={self.warmup_epochs:g}, but the run has only "
                f"{shape.total_units / epoch_units:.4g} epochs, so the scaled learning rate would never be reached; "
                "set a shorter warm-up (0 for none)"
            )
        for group in optimizer.param_groups if self._scales_adam(optimizer) else ():
            try:
                scaling.scaled_betas(group["betas"], self.k(shape))
            except ValueError as error:
                raise MisconfigurationException(
                    f"LearningRateScaling: {error}; use a smaller batch, a larger beta, or lr_rule='linear'"
                ) from error

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        if self._batch is None or not _same_batch(self._shape_facts, facts_of(shape), self._reloads):
            self._batch = shape.batch_size
        if self._scales_adam(writer.optimizer) and self.k(shape) != 1.0:
            k = self.k(shape)
            writer.set_transform("betas", self.name, lambda betas: scaling.scaled_betas(betas, k))
            writer.set_transform("eps", self.name, lambda eps: scaling.scaled_eps(eps, k))

    def factor(self, clock: SampleClock) -> float:
        shape = clock.shape
        scale = self.scale(shape)
        climb = self.climb(shape) if scale > 1.0 else 0.0
        if not climb:
            return scale
        assert clock.epochs is not None
        assert clock.epoch_width is not None
        return scaling.gradual(scale, clock.epochs, clock.epoch_width, climb)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        if not shape.has_length:
            return ()
        warmup = min(1.0, self.warmup(shape))
        climb = (Phase("scaling climb", 0.0, warmup),) if warmup > 0 else ()
        return (*climb, Phase("scaled", warmup, 1.0)) if warmup < 1 else climb

    def summary(self, shape: RunShape) -> dict[str, str]:
        k, scale = self.k(shape), self.scale(shape)
        batch_size = self._batch_of(shape)
        climb = f" after {self.warmup_epochs:g} epochs of gradual warm-up" if self.climb(shape) else ""
        batch = f"batch {batch_size} = {k:.6g} x {self.reference_batch_size}"
        return {"scaling": f"{self.lr_rule}: lr x {scale:.6g} for {batch}{climb}"}

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batch": self._batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._batch, self._shape_facts = state_dict.get("batch"), state_dict.get("run")  # not in those of 0.1.0

    def start_fresh(self) -> None:
        super().start_fresh()
        self._batch = None

    # ------------------------------------------------------------------ inside
    def _batch_of(self, shape: RunShape) -> int | None:
        began_with = None if self._run is None else self._batch  # a plan is of a run from its beginning
        return self.batch_size or began_with or shape.batch_size

    def _scales_adam(self, optimizer: Optimizer) -> bool:
        return self.lr_rule == "sqrt" and isinstance(optimizer, Adam | NAdam | RAdam)


def _same_batch(before: Mapping[str, Any] | None, now: Mapping[str, Any], reloads: bool) -> bool:
    names = ("devices", "accumulation") if reloads else ("devices", "micro-batch", "accumulation")
    return before is not None and [before.get(name) for name in names] == [now.get(name) for name in names]
