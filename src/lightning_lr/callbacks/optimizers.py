"""The optimizers of a run: one writer for each, written directly before each of its own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.base_rates import base_values
from lightning_lr.checks import is_list
from lightning_lr.learning_rate import HyperparameterWriter

Indices = Sequence[int] | None
"""Which of the optimizers that ``configure_optimizers`` returns; ``None`` for all."""


def check_indices(caller: str, given: Any) -> None:
    """Check the argument ``optimizers``.

    Raises:
        ValueError: where it is neither ``None`` nor a list of indices.
    """
    whole = is_list(given) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in given)
    if given is not None and not (whole and len(given) > 0 and len(set(given)) == len(given)):
        raise ValueError(
            f"{caller}: got optimizers={given!r}; give a list of indices into what configure_optimizers returns, such "
            "as [0], or None for all"
        )


def chosen_indices(caller: str, given: Indices, number: int) -> list[int]:
    """The indices of the optimizers that a callback acts on.

    Raises:
        MisconfigurationException: for one that does not exist.
    """
    if given is None:
        return list(range(number))
    missing = [index for index in given if index >= number]
    if missing:
        raise MisconfigurationException(
            f"{caller}: got optimizers={list(given)}, and configure_optimizers returned {number}; give indices from 0 "
            f"to {number - 1}"
        )
    return list(given)


class ManagedOptimizer:
    """One optimizer of the run.

    Args:
        trainer: the Trainer, in ``on_train_start``.
        index: place of the optimizer.
        steps: how often its schedulers are stepped in the run, where that is known.
        base_lr: the rates that a checkpoint calls tuned; ``None`` to look at the schedulers.
    """

    def __init__(self, trainer: Trainer, index: int, steps: int | None, base_lr: list[Any] | None) -> None:
        self._manual = not trainer.lightning_module.automatic_optimization
        self.optimizer: Optimizer = trainer.optimizers[index]
        self.index = index
        self._schedulers = internals.schedulers_of(trainer, self.optimizer)
        self._base = base_values(self.optimizer, self._schedulers, steps)
        if base_lr is not None and len(base_lr) == len(self._base):
            self._base = [value | {"lr": saved} for value, saved in zip(self._base, base_lr, strict=True)]
        prefix = f"optimizer_{index}/" if len(trainer.optimizers) > 1 else ""
        self.writer = HyperparameterWriter(self.optimizer, [value["lr"] for value in self._base], index, prefix)
        self.effective_lr: list[Any] = []
        """The lr of each group in the update of this micro-batch; empty if it made none yet, or a scaler skipped it."""
        self.stepped = False
        """Whether it has made any update yet, by its ``step``."""
        self.unrefined = self._manual
        """Whether an update is about to be made; a step that is tried out (a branch of a search) is none."""

    def replace_schedule(self) -> None:
        """Leave the schedulers without effect."""
        self.writer.replace_schedule(self._base)

    def attach(self, trainer: Trainer, refine: Callable[[ManagedOptimizer], None] | None) -> list[Callable[[], None]]:
        """Stand before and after each step of the optimizer, and around those of its schedulers.

        Args:
            trainer: the Trainer.
            refine: called once per step, the gradients complete, to set multipliers that depend on them.

        Returns:
            what undoes this.
        """
        return [
            internals.before_optimizer_step(trainer, self.optimizer, partial(self._before_step, refine)),
            internals.after_optimizer_step(trainer, self.optimizer, self._after_step),
            *(internals.bracket_steps(scheduler, self.writer.scheduled_values) for scheduler in self._schedulers),
            internals.bracket_new_schedulers(self.optimizer, self.writer.scheduled_values),
            internals.after_state_dict(self.optimizer, self.writer.show_scheduled),
        ]

    # ------------------------------------------------------------------ inside
    def _before_step(self, refine: Callable[[ManagedOptimizer], None] | None) -> None:
        self.writer.settle()  # what the user has written since, in any hook
        refined = refine is not None and self.unrefined
        if refine is not None and refined:
            self.unrefined = False
            refine(self)
        self.writer.begin_step(refined)

    def _after_step(self) -> None:
        # not reached when an AMP scaler skips the step
        self.stepped = True
        self.effective_lr = self.writer.end_step()
        self.unrefined = self._manual  # where each step is the user's


def optimizers_of(trainer: Trainer, steps: int | None, base_lrs: Any) -> list[ManagedOptimizer]:
    """All optimizers of a run; ``base_lrs`` are those of a checkpoint, for each of them, or ``None``."""
    found = []
    for index in range(len(trainer.optimizers)):
        known = base_lrs[index] if base_lrs is not None and index < len(base_lrs) else None
        found.append(ManagedOptimizer(trainer, index, steps, known))
    return found
