"""`CriticalBatchSize`: measure by branches how large a batch trains as well, and log it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import BranchSettings, CriticalBatch, LRRule
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.critical_batch import announce, check_branches, critical_batch, in_words
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.panels import MetricPanel
from lightning_lr.patching import override_on_instance
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import record_of, several


class CriticalBatchSize(MethodCallback):
    r"""Measure the critical batch size at some shares of the run, and log it; the run itself is left alone.

    From the run's present state, branches train on the same samples in batches of B, 2B, 4B, ..., the learning rate
    raised by ``lr_rule``, and are scored on the same batches that follow. The critical batch is the largest that
    keeps up, with all below it:

    .. math:: \bar d_k \le \tau \, \max(\bar L_0 - \bar L_1, 0) + s(d_k), \qquad d_{k,i} = L_k(x_i) - L_1(x_i)

    where :math:`L_0` is the score before the branches, :math:`L_1` after the branch in batches of B, and :math:`s` the
    standard error of the mean of the paired differences. A larger batch in a branch is accumulated from micro-batches
    of the present size, and so is what batch norm sees.

    Afterwards the run is where it was, to the bit, as after a :class:`LearningRateSearch`. To grow the batch by what
    is measured, use ``BatchSizeRamp(AdaptiveRamp(measure="branches"))``.

    Args:
        at: shares of the run, in [0, 1), strictly increasing.
        budget: share of the run's updates that all measurements together may take, in (0, 1], on top of the run. An
            update of a larger batch counts as one; a forward pass as a third.
        tolerance: share of what B gains in a branch that a larger batch may lose, in [0, 1).
        largest: largest multiple of B that is tried, a power of 2; fewer where the budget does not allow for more.
        lr_rule: the learning rate of a batch k times as large: k times with ``"linear"`` (SGD), ``"sqrt"`` (Adam).
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.

    Raises:
        ValueError: for an argument outside its range.
        MisconfigurationException: before training, where a run cannot be forked (FSDP1, Lightning's own
            ``DeepSpeedStrategy``), with manual optimization or several optimizers, or where its length in updates is
            not known.

    Source: Merrill et al. 2025, arXiv:2505.23971.

    Example::

        Trainer(max_epochs=30, callbacks=[CriticalBatchSize(at=(0.1, 0.5), lr_rule="sqrt")])
    """

    name = "critical_batch_size"
    saves: ClassVar = {"results": several(record_of(CriticalBatch))}
    panels = (MetricPanel("critical batch\n(samples)", ("batch/critical", "batch/size"), log_scale=True),)

    def __init__(
        self,
        at: Sequence[float] = (0.1, 0.3, 0.6),
        budget: float = 0.1,
        tolerance: float = 0.1,
        largest: int = 8,
        lr_rule: LRRule = "linear",
        count_samples: CountSamples | None = None,
    ) -> None:
        super().__init__(count_samples)
        if lr_rule not in get_args(LRRule):
            raise ValueError(f"CriticalBatchSize: got lr_rule={lr_rule!r}; allowed are {get_args(LRRule)}")
        self.settings = BranchSettings("CriticalBatchSize", at, budget, tolerance, largest)
        self.lr_rule = lr_rule
        self.results: list[CriticalBatch] = []
        """What was measured, in order."""
        self._state: list[dict[str, Any]] = []
        self._undo: Callable[[], None] | None = None

    # ------------------------------------------------------------------ what the method defines
    @property
    def needs_end(self) -> bool:
        return True

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        check_branches("CriticalBatchSize", trainer, module)

    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        raise MisconfigurationException(
            "CriticalBatchSize: branches make updates that the run does not notice, and under manual optimization "
            f"{type(module).__name__} makes its own; use automatic optimization, or GradientNoiseScale's measure of "
            "the batch in a run of its own"
        )

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        if not shape.has_length:
            raise MisconfigurationException(
                "CriticalBatchSize: the run ends by time alone, so its length in updates is not known, of which budget "
                "is a share; set max_epochs or max_steps too"
            )

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        state, self._state = self._state, []
        self.results = [CriticalBatch(**facts) for facts in state]

    def factor(self, clock: SampleClock) -> float:
        return 1.0

    def summary(self, shape: RunShape) -> dict[str, str]:
        measured = [f"{result.batch_size} at {result.at:.0%}" for result in self.results if result.multiple]
        return {"critical batch": ", ".join(measured) or in_words(self.settings, shape, self.settings.largest)}

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        known = [result.batch_size for result in self.results if result.batch_size is not None]
        return {"batch/critical": float(known[-1])} if known else {}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # after the module's own hook, in which modules make what their training step uses, and before the first batch
        begin = pl_module.on_train_epoch_start

        def begin_then_measure() -> None:
            begin()
            self._measure_if_due(trainer, pl_module)

        self._undo = override_on_instance(pl_module, "on_train_epoch_start", begin_then_measure)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if internals.update_ends(trainer):
            self._measure_if_due(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        results = self._state if self._run is None else [result.facts() for result in self.results]
        return {**super().state_dict(), "results": results}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._state = state_dict["results"]

    def start_fresh(self) -> None:
        super().start_fresh()
        self._state = []

    # ------------------------------------------------------------------ inside
    def _measure_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        run = self._run
        if run is None or internals.is_fast_dev_run(trainer) or run.clock.progress >= 1.0:
            return
        clock = run.clock
        due = self.settings.due(clock.progress, [result.at for result in self.results])
        if not due:
            return
        size = clock.shape.batch_at(clock.epoch, clock.micro_batch).size or clock.batch_size
        result = critical_batch(trainer, module, run, self, self.settings, self.lr_rule, due[-1], size)
        # a share that was passed at the same time is not measured any more
        self.results = [*self.results, result]
        run.write_next_update()
        run.note_change(self, clock.updates, "measured", **result.facts())
        announce("CriticalBatchSize", result)

    def _leave(self, trainer: Trainer) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self._run is not None:
            self._state = [result.facts() for result in self.results]
        super()._leave(trainer)
