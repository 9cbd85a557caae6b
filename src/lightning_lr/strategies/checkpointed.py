"""`CheckpointedStrategy` and `CheckpointedDDPStrategy`: activation checkpointing by plan, on one device and on several.

Lightning checkpoints activations under FSDP and DeepSpeed only. Here the policy shadows the blocks' forwards once the
module is on its device and, for DDP, wrapped; it brackets the forward of each training step, and is undone at teardown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from lightning_lr import lightning_internals as internals
from lightning_lr.activations import Checkpointing, CheckpointPlan, CheckpointPolicy, PlanError
from lightning_lr.callbacks.compatibility import BATCH_OF_ONE_PROCESS, Clash, refuse_incompatible
from lightning_lr.journal import JournalFolder

if TYPE_CHECKING:
    _Base = Strategy
else:
    _Base = object

JOURNAL = "checkpointing"


class CheckpointsActivations(_Base):
    """What a strategy does to checkpoint: mixed in before a strategy of Lightning."""

    policy: CheckpointPolicy | None
    refuses: ClassVar[tuple[Clash, ...]] = ()
    """Callbacks that the strategy cannot train with, and why."""
    repeats_hooks = False
    """Whether a block's own forward hooks run again with it: they fetch its parameters, where those are in shards."""
    checkpointing: Checkpointing | None = None
    """At work while ``fit`` runs; its ``plan`` is there once the first training steps have been watched."""
    _notes: _PlanNotes

    def __repr__(self) -> str:
        """What a Trainer of ``pytorch_lightning`` quotes when it refuses the strategy, in its constructor."""
        return f"<lightning_lr.{type(self).__name__}: for a lightning.pytorch.Trainer, import lightning.pytorch as pl>"

    def setup_environment(self) -> None:
        self._refuse_incompatible()
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        fitting = trainer.state.fn == TrainerFn.FITTING
        super().setup(trainer)
        if fitting and self.policy is not None:
            with self._refusing():
                self._notes = _PlanNotes(trainer)
                self.checkpointing = Checkpointing(
                    module, self.policy, self.root_device, self.broadcast, self._notes, self.repeats_hooks
                )

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.checkpointing is None:
            return super().training_step(*args, **kwargs)
        self._notes.begin()
        with self._refusing(), self.checkpointing.step():
            return super().training_step(*args, **kwargs)

    def teardown(self) -> None:
        if self.checkpointing is not None:
            self.checkpointing.undo()
            self.checkpointing = None
        super().teardown()

    def watch_apart(self, batch: Any) -> None:
        """Watch a forward that nobody notices, so that the plan is followed from the next training step on.

        For runs under ``ActivationCompression``, which hides what is saved outside of the blocks, and in which a
        watched step, that keeps other activations than one by the plan, has other gradients. So a run that is resumed
        goes on by the plan, and with the gradients, of the uninterrupted one.
        """
        if self.checkpointing is None:  # a strategy that checkpoints only on request
            return
        module, trainer = self.lightning_module, self._notes.trainer
        assert module is not None
        self._notes.begin()
        for _ in range(self.checkpointing.steps_to_watch):
            with self._refusing(), self.checkpointing.step():
                internals.detached_training_step(trainer, module, batch)

    def _refuse_incompatible(self) -> None:
        """Refuse callbacks here, before a callback of Lightning's refuses the strategy without a reason in its "
        "``setup``."""
        module = self.lightning_module
        assert module is not None
        if module.trainer.state.fn == TrainerFn.FITTING:
            refuse_incompatible(self, module.trainer)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except PlanError as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error


class _PlanNotes:
    """Writes down each plan: the first as what holds for the run, the others when they are made."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._journal = JournalFolder(internals.journal_folder(trainer)).journal(JOURNAL)
        self._begun: int | None = None
        self._first = True

    def begin(self) -> None:
        """A training step begins; the first one marks where training starts or continues."""
        if self._begun is None:
            self._begun = self.trainer.global_step

    def __call__(self, plan: CheckpointPlan) -> None:
        if self._journal is None:
            return
        assert self._begun is not None
        if self._first:
            self._journal.truncate(self._begun)  # what a resumed run writes again
        facts: dict[str, Any] = {"peak_bytes": plan.peak_bytes, "plain_bytes": plan.plain_bytes, "budget": plan.budget}
        facts["parts"] = [[part.start, part.stop, part.recompute] for part in plan.parts]
        if self._first:
            facts["facts"] = {"activations": plan.describe()}
            facts["blocks"] = [asdict(block) for block in plan.chain.blocks]
            self._journal.append(self._begun, "start", **facts)
        else:
            self._journal.append(self.trainer.global_step, "plan", **facts)
        self._first = False


def _policy(strategy: object, policy: CheckpointPolicy | None) -> CheckpointPolicy:
    if policy is not None and not isinstance(policy, CheckpointPolicy):
        raise TypeError(f"{type(strategy).__name__}: got policy={policy!r}; give a CheckpointPolicy, or None")
    return policy or CheckpointPolicy()


class CheckpointedStrategy(CheckpointsActivations, SingleDeviceStrategy):
    """One device, whose activations are kept for backward or computed again by a policy.

    ``Trainer(strategy="checkpointed")``, or an instance. The device is the one that the Trainer's ``accelerator`` and
    ``devices`` are.

    Args:
        policy: how to cut; ``None`` for :class:`CheckpointPolicy`'s defaults, square root of n segments.
        **kwargs: of Lightning's ``SingleDeviceStrategy``.

    Raises:
        MisconfigurationException: for more than one device; at setup for names in
            ``policy.modules`` that do not exist and where there are no blocks; in the first training step for a memory
            budget that no plan reaches.

    Source: Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174.
    """

    strategy_name = "checkpointed"

    def __init__(self, policy: CheckpointPolicy | None = None, **kwargs: Any) -> None:
        self.policy = _policy(self, policy)
        super().__init__(**kwargs)

    @staticmethod
    def refuse_several(devices: int) -> None:
        """Refuse more than one device.

        Raises:
            MisconfigurationException: with what to do.
        """
        if devices > 1:
            raise MisconfigurationException(
                f"CheckpointedStrategy: the Trainer has {devices} devices, and this strategy uses one; set "
                "devices=1, or take strategy='ddp_checkpointed' (CheckpointedDDPStrategy)"
            )

    # Lightning sets these two, as on every strategy that has them, when it has read the Trainer's arguments. They are
    # how this strategy learns its device (test_device_is_the_trainers guards it).
    @property
    def parallel_devices(self) -> list[torch.device]:
        return []

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        if devices:
            self.refuse_several(len(devices))
        if devices:
            self._root_device = torch.device(devices[0])

    @property
    def num_nodes(self) -> int:
        return 1

    @num_nodes.setter
    def num_nodes(self, nodes: int) -> None:
        if nodes > 1:
            raise MisconfigurationException(
                f"CheckpointedStrategy: the Trainer has num_nodes={nodes}, and this strategy uses one device; set "
                "num_nodes=1, or take strategy='ddp_checkpointed' (CheckpointedDDPStrategy)"
            )


class CheckpointedDDPStrategy(CheckpointsActivations, DDPStrategy):
    """DDP, with activations that are kept for backward or computed again by a policy.

    ``Trainer(strategy="ddp_checkpointed")``, or an instance. All processes cut by the times that the first measured;
    bytes are each one's own.

    Args:
        policy: how to cut; ``None`` for :class:`CheckpointPolicy`'s defaults, square root of n segments.
        **kwargs: of Lightning's ``DDPStrategy``.

    Raises:
        MisconfigurationException: as :class:`CheckpointedStrategy` does; and with ``BackboneFinetuning`` and
            ``BatchSizeFinder``.
    """

    strategy_name = "ddp_checkpointed"
    refuses = (
        Clash(
            BaseFinetuning,
            "DDP averages no gradient of a parameter that was frozen when it was set up, so that the ranks would drift "
            "apart once it is trained",
            "use GradualUnfreezing, which freezes later",
        ),
        BATCH_OF_ONE_PROCESS,
    )

    def __init__(self, policy: CheckpointPolicy | None = None, **kwargs: Any) -> None:
        self.policy = _policy(self, policy)
        super().__init__(**kwargs)
