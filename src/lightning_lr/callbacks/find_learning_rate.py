"""`find_learning_rate`: the number and the picture, for those who want no callback; nothing is trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_lr import lightning_internals as internals
from lightning_lr.branches import ForkedState, RandomState
from lightning_lr.callbacks.base import members_of
from lightning_lr.callbacks.given_for_a_run import check_run
from lightning_lr.callbacks.learning_rate_search import LearningRateSearch
from lightning_lr.curves import Constant
from lightning_lr.search import Budget, SearchResult


def find_learning_rate(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule | Any = None,
    min_lr: float | None = None,
    max_lr: float | None = None,
    budget: Budget = "auto",
) -> SearchResult:
    """Find the learning rate for the run that ``trainer.fit(module, datamodule)`` would make, and train nothing.

    The race of ``LearningRateSearch``. Afterwards module, Trainer and random numbers are as they were, to the bit. Of
    the Trainer's callbacks those of this package that shape the update take part (layers, ghost batch norm,
    compression, accumulation), and no other.

    Args:
        trainer: a Trainer as for the run: its length gives ``budget`` a meaning.
        module: the module; its own learning rate does not matter, the ratio of its groups does.
        datamodule: a data module, a training loader, or ``None`` where the module has ``train_dataloader``.
        min_lr: lowest rate that may be chosen; ``None``: no bound.
        max_lr: highest rate that may be chosen; ``None``: no bound.
        budget: what it may cost, as a share of the run's updates, or ``"auto"``, see ``LearningRateSearch``.

    Returns:
        The rate of the group with the largest base rate, its interval, all scores, and the picture.

    Raises:
        TypeError: for something else where a Trainer or a module belongs.
        MisconfigurationException: where the run cannot be forked, see ``LearningRateSearch``.

    Example::

        result = find_learning_rate(Trainer(max_epochs=5), module, datamodule)
        print(result)  # learning rate 0.0021 (interval 0.0012 to 0.004), found in 57 updates
        module.lr = result.rate
        result.save("learning_rate.png")
    """
    check_run("find_learning_rate", trainer, module, datamodule)
    search = _SearchAndStop(min_lr, max_lr, budget)
    others = tuple(clash.other for clash in LearningRateSearch.refuses)
    taking_part: list[Callback] = [
        member for member in members_of(trainer) if not isinstance(member, others) and not member.decays
    ]
    taking_part += [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    random, state = RandomState(), ForkedState([module], leave_out=[trainer])
    data = datamodule if isinstance(datamodule, LightningDataModule) else None
    read = [data] if data is not None else [] if datamodule is None else internals.changed_by_reading(datamodule)
    notes = ForkedState([*taking_part, *read], leave_out=[trainer, module], tensors=False)
    device = next((parameter.device for parameter in module.parameters()), None)
    try:
        with internals.borrowed(trainer, [*taking_part, search]):
            if data is not None:
                trainer.fit(module, datamodule=data)
            else:
                trainer.fit(module, datamodule)
    except _FoundError:
        pass
    finally:
        if device is not None:
            module.to(device)
        state.restore()
        notes.restore()
        random.restore()
    assert search.found is not None
    return search.found


class _FoundError(Exception):
    """The search is over; the run that it was for is not made."""


class _SearchAndStop(LearningRateSearch):
    """Stops the fit when it has found a rate."""

    def __init__(self, min_lr: float | None, max_lr: float | None, budget: Budget) -> None:
        super().__init__(Constant(), min_lr, max_lr, budget, module_scheduler="replace")
        self.found: SearchResult | None = None

    def _search_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        super()._search_if_due(trainer, module)
        if self.settings.single is not None or self.rate is not None:
            rate = self.rate if self.settings.single is None else self.settings.single
            assert rate is not None
            self.found = self.result or SearchResult(rate, rate, rate, 0.0, 0.0, [], None)
            raise _FoundError
