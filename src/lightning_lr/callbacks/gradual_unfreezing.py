"""`GradualUnfreezing`: the top layer trains first, then one more from the top after every few epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.checks import is_count
from lightning_lr.curves import Phase
from lightning_lr.layers import FrozenLayers, UnfreezingOrder, check_names
from lightning_lr.progress import RunShape, SampleClock


class GradualUnfreezing(MethodCallback):
    """Train the top layer first, then one layer more from the top after every ``epochs_per_layer`` epochs.

    Until its turn a layer's weights do not change by a bit, whatever the optimizer's momentum and weight decay, and no
    parameter group is added, so that every LR scheduler works. With ``LayerwiseLRDecay`` and
    ``LearningRateSchedule(SlantedTriangle())`` it makes the recipe of ULMFiT. What the user froze stays frozen. Dropout
    of frozen layers stays active.

    On one device, and under DDP with ``find_unused_parameters=True``, the backward pass of frozen layers is left out.
    Under plain DDP and FSDP2 (``ModelParallelStrategy``) their gradients are computed and dropped, which saves no time.

    Args:
        epochs_per_layer: epochs until the next layer begins to train, a whole number from 1.
        layers: ``"auto"``, or regular expressions over parameter names from input to head: the first that matches wins,
            and one with groups stands for a layer per captured number. Expressions that take several blocks each make
            fewer layers, for short runs.
        train_batch_norm: train batch norms of frozen layers with their statistics, as fastai and Lightning's
            ``BaseFinetuning`` do by default. Else those of frozen layers are in evaluation mode, and a frozen layer is
            a fixed function.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.

    Raises:
        ValueError: for ``epochs_per_layer`` below 1.
        MisconfigurationException: at setup, for a model of which every parameter is frozen, patterns that do not fit,
            with Lightning's ``BackboneFinetuning``, with several optimizers, and under DeepSpeed and FSDP 1, which
            keep gradients in buffers of their own.

    Example::

        Trainer(max_epochs=8, callbacks=[GradualUnfreezing(epochs_per_layer=1)])

    Source: Howard & Ruder 2018, arXiv 1801.06146, section 3.3.
    """

    name = "gradual_unfreezing"
    refuses = (Clash(BaseFinetuning, "both decide which layers are frozen"),)

    def __init__(
        self,
        epochs_per_layer: int = 1,
        layers: Literal["auto"] | Sequence[str] = "auto",
        train_batch_norm: bool = False,
        count_samples: CountSamples | None = None,
    ) -> None:
        super().__init__(count_samples)
        if not is_count(epochs_per_layer):
            raise ValueError(
                f"GradualUnfreezing: got epochs_per_layer={epochs_per_layer!r}; give a whole number of epochs from 1 "
                "(for a shorter run, give layers as expressions that take several blocks each)"
            )
        check_names("GradualUnfreezing", layers=layers)
        if not isinstance(train_batch_norm, bool):
            raise ValueError(f"GradualUnfreezing: got train_batch_norm={train_batch_norm!r}; give True or False")
        self.epochs_per_layer = epochs_per_layer
        self.layers = layers
        self.train_batch_norm = train_batch_norm
        self._module: LightningModule | None = None
        self._order: UnfreezingOrder | None = None
        self._frozen: FrozenLayers | None = None
        self._undo: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ what the method defines
    @property
    def order(self) -> UnfreezingOrder:
        """Which layers begin to train when; known from ``setup`` on."""
        if self._order is None:
            assert self._module is not None
            try:
                self._order = UnfreezingOrder(self._module, self.layers, self.epochs_per_layer)
            except ValueError as error:
                raise MisconfigurationException(f"GradualUnfreezing: {error}") from error
        return self._order

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        _ = self.order  # the module is complete now

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        if not self.order.holds_of(module):  # the module's on_fit_start has frozen something
            self._order = None

    def factor(self, clock: SampleClock) -> float:
        return 1.0

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        units, order = shape.epoch.total_units, self.order
        if units is None or not shape.has_length:
            return ()
        starts = [min(1.0, order.begins(i) * units / shape.total_units) for i in range(len(order.thaws))]
        parts = zip(range(len(starts)), starts, [*starts[1:], 1.0], strict=True)
        return tuple(Phase(f"+ {order.name(i)}", start, end) for i, start, end in parts if start < end)

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        return {"unfrozen_layers": float(self.order.begun(clock.epoch))}

    def summary(self, shape: RunShape) -> dict[str, str]:
        names = [self.order.name(i) for i in range(len(self.order.thaws))]
        shown = names if len(names) <= 5 else [*names[:3], "...", names[-1]]
        return {
            "gradual unfreezing": f"{len(names)} layers ({self.order.how}), one more every {self.epochs_per_layer} "
            f"epoch(s): {', '.join(shown)}"
        }

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        units, order = shape.epoch.total_units, self.order
        if units is None:
            return [
                "an epoch of this loader has no known length; layers begin to train after each pass over it, and with "
                "a stream that does not end only the first would ever train"
            ]
        if not shape.has_length:
            return []  # there are always more epochs
        epochs = shape.total_units / units
        late = [order.name(i) for i in range(len(order.thaws)) if order.begins(i) >= epochs]
        if not late:
            return []
        needed = order.begins(len(order.thaws) - 1) + 1
        return [
            f"the run has {epochs:.4g} epochs, and {len(late)} of {len(order.thaws)} layers never train "
            f"({', '.join(late[:3])}{', ...' if len(late) > 3 else ''}); train for at least {needed} epochs, or give "
            "layers as expressions that take several blocks each"
        ]

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._module, self._order = pl_module, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            raise MisconfigurationException(
                f"GradualUnfreezing: {type(trainer.strategy).__name__} keeps gradients and parameters in flat buffers "
                "of its own, where no single layer can be left out of an update; use DDP or ModelParallelStrategy"
            )
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        without_backward = _may_leave_out_backward(trainer)
        if not without_backward:
            rank_zero_info(
                f"GradualUnfreezing: under {type(trainer.strategy).__name__} the gradients of frozen layers are "
                "computed and dropped, which saves no time; with DDP, find_unused_parameters=True saves it"
            )
        self._frozen = FrozenLayers(pl_module, self.order, without_backward, self.train_batch_norm)
        # once more, after every hook of the user's: one may give each parameter a gradient (noise, zeros, a penalty)
        self._undo = [
            internals.before_optimizer_step(trainer, optimizer, self._frozen.drop_gradients, in_branches=True)
            for optimizer in trainer.optimizers
        ]
        # frozen is when the first epoch or batch starts: the module's on_train_start may freeze something of its own
        if not pl_module.automatic_optimization:
            self._warn_of_frozen_optimizers(trainer, self.order.begun(internals.starting_position(trainer)[0]))
        if self._run is not None and not internals.is_fast_dev_run(trainer):
            for note in self.plan_notes(self._run.clock.shape, trainer.optimizers[0]):
                rank_zero_warn(f"GradualUnfreezing: {note}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if self._frozen is None or self._run is None:
            return
        begun = self.order.begun(trainer.current_epoch)
        self._frozen.freeze(begun)
        if trainer.current_epoch != self.order.begins(begun - 1):
            return
        if not internals.is_fast_dev_run(trainer):
            rank_zero_info(
                f"GradualUnfreezing: {self.order.name(begun - 1)} trains from epoch {trainer.current_epoch} on "
                f"({begun} of {len(self.order.thaws)} layers)"
            )
        journal = self._run.journal(self.name)
        if journal is not None:
            journal.append(
                self._run.clock.updates,
                "unfreeze",
                layers=list(self.order.thaws[begun - 1].layers),
                trained=begun,
                frozen=len(self.order.thaws) - begun,
                saves_backward=self._frozen.without_backward,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._frozen is not None:
            if not self._frozen.holds:  # a resume inside an epoch
                self._frozen.freeze(self.order.begun(trainer.current_epoch))
            self._frozen.set_modes()  # the module's own hooks, or a validation, may have called train()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._frozen is not None:
            self._frozen.drop_gradients()
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    # ------------------------------------------------------------------ inside
    def _warn_of_frozen_optimizers(self, trainer: Trainer, begun: int) -> None:
        """A module that toggles such an optimizer has a loss without a gradient, and torch's error names no cause."""
        assert self._frozen is not None
        for index, optimizer in enumerate(trainer.optimizers):
            if self._frozen.hold_all((p for group in optimizer.param_groups for p in group["params"]), begun):
                rank_zero_warn(
                    f"GradualUnfreezing: all parameters of optimizer {index} ({type(optimizer).__name__}) are frozen "
                    "when training begins. If training_step toggles that optimizer, its loss has no gradient and the "
                    "backward fails; give layers so that a layer of each optimizer is in the last expression"
                )

    def _leave(self, trainer: Trainer) -> None:
        super()._leave(trainer)
        for undo in self._undo:
            undo()
        self._undo = []
        if self._frozen is not None:
            self._frozen.restore()
        self._frozen = None
        self._module = None


def _may_leave_out_backward(trainer: Trainer) -> bool:
    """Whether a parameter may stop requiring a gradient while the strategy's wrapper is in place.

    DDP waits for the gradient of every parameter that required one when it was wrapped, unless it looks for unused
    ones; a parameter that was frozen before would never be averaged over the ranks. FSDP2 decides once, when it wraps.
    """
    model = trainer.strategy.model
    if isinstance(model, DistributedDataParallel):
        return bool(model.find_unused_parameters) and not model.static_graph
    return trainer.world_size == 1 and not isinstance(trainer.strategy, ModelParallelStrategy)
