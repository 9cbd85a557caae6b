"""`LearningRateSearch`: find the learning rate by a race of short complete schedules, then follow a curve from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks import search_compatibility
from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import AVERAGING_SETS_THE_END, Clash
from lightning_lr.callbacks.learning_rate_scaling import LearningRateScaling
from lightning_lr.callbacks.learning_rate_schedule import LearningRateSchedule
from lightning_lr.callbacks.module_scheduler import (
    ModuleScheduler,
    check_module_scheduler,
    refuse_module_scheduler,
)
from lightning_lr.callbacks.normalized_weight_decay import NormalizedWeightDecay
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.callbacks.search_run import announce, search
from lightning_lr.curves import Cosine, Curve, Phase
from lightning_lr.learning_rate import HyperparameterWriter, factor_to
from lightning_lr.patching import override_on_instance
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import ABOVE_0, SHARE, keys, optional, record_of, several
from lightning_lr.search import Budget, SearchResult, SearchSettings, plan_heats, start_of


class LearningRateSearch(MethodCallback):
    r"""Find the learning rate before the first update, by trying, and follow a curve from it.

    .. math:: \eta_t = \eta^* c(p_t), \qquad \eta^* = \arg\min_\eta \; GP\big[\log \eta \mapsto L_n(\eta)\big]

    where :math:`L_n(\eta)` is the training loss after a short *complete* schedule of n updates at peak rate
    :math:`\eta`: from the run's own weights, with a warm-up over a fifth of it and a linear decay to zero, scored
    without a step on the batches that follow. All rates see the same batches with the same random numbers. A first heat
    of short schedules walks in decades, from where the optimizer's kind suggests, until the best has a worse one on
    either side; a heat of longer ones compares half decades around it; a Gaussian process over the log rate reads the
    minimum. Where the first heat shows that training begins on a plateau (a decade below its best rate next to nothing
    is learned), half of that is taken. A loss that is not finite, or explodes, ends its candidate at once: it is a bad
    score and nothing more.

    Afterwards the run is where it was, to the bit: weights, buffers, optimizer, scaler, random numbers, the module's
    attributes and metrics, the loader's position. Callbacks, loggers and the progress bar see nothing of the race. It
    keeps one copy of weights and optimizer state in host memory while it runs, and the batches of its longest heat;
    above 1 GiB of them they are read again for every branch, unless a stream can be read once only.

    Of the optimizer's own learning rates only the ratio matters: the largest becomes :math:`\eta_t`, every other group
    keeps its share of it.

    Args:
        curve: what the run follows from the rate that was found.
        min_lr: lowest rate that may be chosen; ``None``: no bound. With ``min_lr == max_lr`` nothing is tried.
        max_lr: highest rate that may be chosen; ``None``: no bound.
        budget: share of the run's updates that the search may cost, on top of the run, in (0, 1]; a forward pass counts
            as a third of an update. ``"auto"``: half of a run of at most 256 updates, less of a longer one: a fifth of
            1 024, 4 % of 10 000.
        at: shares of the run at which to search, in [0, 1). After 0.0 the race starts from the weights as they are then
            and compares three rates around the present one; the budget is divided.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.
        module_scheduler: what becomes of an LR scheduler that ``configure_optimizers`` returns. ``"refuse"`` stops
            before training; ``"replace"`` leaves it without effect, while it goes on and is in the checkpoint, so that
            the run can go on without us; ``"multiply"`` applies both.

    Raises:
        ValueError: for an argument outside its range.
        MisconfigurationException: before training, under FSDP1 or Lightning's own ``DeepSpeedStrategy``, whose state
            cannot be put back; with an LR scheduler or another method that decides about the learning rate; with manual
            optimization or several optimizers.

    Source: short horizons and their bias, Wu et al. 2018, arXiv:1803.02021; racing, Maron & Moore 1994; successive
    halving, Jamieson & Talwalkar 2016, arXiv:1502.07943.

    Example::

        Trainer(max_epochs=30, callbacks=[LearningRateSearch(Cosine(warmup=0.05))])
    """

    name = "learning_rate_search"
    saves: ClassVar = {
        "search": optional(
            keys(
                {
                    "rate": optional(ABOVE_0),
                    "done": several(SHARE),
                    "reference_lr": optional(ABOVE_0),
                    "result": optional(record_of(SearchResult)),
                }
            )
        )
    }
    lr_role = "finder"
    refuses = (
        AVERAGING_SETS_THE_END,
        Clash(LearningRateFinder, "both find the learning rate, and the one that it finds would not be used"),
        Clash(LearningRateSchedule, "it would distort the curve that follows the search"),
        Clash(AdaptiveWarmup, "it finds the learning rate, too"),
        Clash(LearningRateScaling, "it would scale what the search finds for this very batch"),
        Clash(
            NormalizedWeightDecay,
            "it divides by the base learning rate, in the place of which the search puts another",
            "find the rate by find_learning_rate first, give it to the optimizer, and use LearningRateSchedule",
        ),
    )

    def __init__(
        self,
        curve: Curve = Cosine(warmup=0.05),  # noqa: B008  # frozen
        min_lr: float | None = None,
        max_lr: float | None = None,
        budget: Budget = "auto",
        at: Sequence[float] = (0.0,),
        count_samples: CountSamples | None = None,
        module_scheduler: ModuleScheduler = "refuse",
    ) -> None:
        super().__init__(count_samples)
        check_module_scheduler("LearningRateSearch", module_scheduler)
        self.module_scheduler = module_scheduler
        self.settings = SearchSettings(curve, min_lr, max_lr, budget, at)
        self.rate: float | None = self.settings.single
        """The rate that was found; ``None`` before."""
        self.result: SearchResult | None = None
        """What the last search came to; ``None`` before, and where nothing was tried."""
        self._done: list[float] = []  # shares of `at` that were searched at
        self._reference_lr: float | None = None  # the largest scheduled lr when the run began
        self._cautious = 0.0
        self._undo: Callable[[], None] | None = None
        self._state: dict[str, Any] | None = None  # of a checkpoint, or of an earlier fit that goes on

    # ------------------------------------------------------------------ what the method defines
    @property
    def decays(self) -> bool:
        return self.settings.curve.decays

    @property
    def needs_end(self) -> bool:
        return True

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        if self.settings.single is None:
            search_compatibility.check_branches(trainer, module)

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        if len(optimizers) != 1:
            raise MisconfigurationException(
                f"LearningRateSearch: configure_optimizers returned {len(optimizers)} optimizers, and the race finds "
                "one learning rate; return one, or use LearningRateSchedule with rates that you know"
            )
        if self.module_scheduler == "refuse":
            refuse_module_scheduler("LearningRateSearch", schedulers, warmups_pass=False)
        super().check_optimizers(optimizers, schedulers)

    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        raise MisconfigurationException(
            "LearningRateSearch: the race makes updates that the run does not notice, and under manual optimization "
            f"{type(module).__name__} makes its own; use automatic optimization, or LearningRateSchedule with a rate "
            "that you know"
        )

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        search_compatibility.largest_lr(optimizer)

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        state, self._state = self._state, None
        self.rate, self.result, self._done = self.settings.single, None, []
        self.rates_were_set(writer)
        if state is not None:
            self.rate, self._done, self._reference_lr = state["rate"], list(state["done"]), state["reference_lr"]
            self.result = None if state["result"] is None else SearchResult(**state["result"])

    def rates_were_set(self, writer: HyperparameterWriter) -> None:
        self._reference_lr = max(float(lr) for lr in writer.tuned())
        self._cautious = self.settings.within(min(self._reference_lr, start_of(writer.optimizer).cautious))

    def factor(self, clock: SampleClock) -> float:
        assert self._reference_lr is not None
        rate = self._cautious if self.rate is None else self.rate
        return factor_to(rate * self.settings.curve(clock.progress, clock.width), self._reference_lr)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        return self.settings.curve.phases()

    def summary(self, shape: RunShape) -> dict[str, str]:
        if self.settings.single is not None:
            return {"learning rate search": f"none: lr {self.settings.single:g}, {self.settings.curve}"}
        if self.rate is not None:
            return {"learning rate search": f"lr {self.rate:.4g}, {self.settings.curve}"}
        if not shape.has_length:
            share = "at most half" if self.settings.budget == "auto" else f"about {self.settings.budget:.0%}"
            return {"learning rate search": f"{share} of the run's time"}
        budget = self.settings.updates(shape.fixed_batch_updates)
        candidates = self.settings.candidates
        costs = [plan_heats(budget, share > self.settings.at[0], candidates) for share in self.settings.at]
        costs_in_words = [
            f"at {share:.0%}: {heats}" if heats else f"at {share:.0%}: {budget:.0f} updates are too few to try anything"
            for share, heats in zip(self.settings.at, costs, strict=True)
        ]
        return {"learning rate search": "; ".join(costs_in_words)}

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        if self.settings.single is not None:
            return []
        return ["the learning rate is found when training starts; shown is the curve from a cautious one"]

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        return {} if self.rate is None else {"search/rate": self.rate}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # after the module's own hook, in which modules make what their training step uses, and before the first batch
        begin = pl_module.on_train_epoch_start

        def begin_then_search() -> None:
            begin()
            self._search_if_due(trainer, pl_module)

        self._undo = override_on_instance(pl_module, "on_train_epoch_start", begin_then_search)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # a run that goes on inside an epoch from a checkpoint without a search
        if self.rate is None and batch_idx % int(trainer.accumulate_grad_batches) == 0:
            self._search_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if internals.update_ends(trainer):
            self._search_if_due(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "search": self._state if self._run is None else self._state_of_run()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._state = state_dict["search"]

    def start_fresh(self) -> None:
        super().start_fresh()
        self._state = None

    # ------------------------------------------------------------------ inside
    def _search_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        run = self._run
        if run is None or self.settings.single is not None:
            return
        clock = run.clock
        due = [share for share in self.settings.at if share not in self._done and clock.progress >= share]
        if not due or clock.progress >= 1.0:
            return
        if internals.is_fast_dev_run(trainer):  # a run of a few batches, to see that nothing breaks
            self.rate, self._done = self._cautious, [*self._done, *due]
            return
        assert self._reference_lr is not None
        result = search(trainer, module, run, self, self._reference_lr, self._cautious, due[-1])
        if result is None:  # the stream has too few batches here: at a later update
            return
        self.result, self.rate, self._done = result, result.rate, [*self._done, *due]
        run.write_next_update()
        # counted by the updates before: a checkpoint that is made after the next one holds the decision
        run.note_change(self, clock.updates, "searched", **result.facts())
        announce(result)

    def _state_of_run(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "done": list(self._done),
            "reference_lr": self._reference_lr,
            "result": None if self.result is None else self.result.facts(),
        }

    def _leave(self, trainer: Trainer) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self._run is not None:
            self._state = self._state_of_run()
        super()._leave(trainer)
