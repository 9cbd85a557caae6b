"""One measurement of the critical batch size inside a Lightning run: ``batch_size.critical`` on branches."""

from __future__ import annotations

from collections.abc import Callable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import BranchSettings, CriticalBatch, LRRule, measure, micro_batch_sizes
from lightning_lr.batch_size.critical import SHORTEST, Branching
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.batch_size.streamed_shape import StreamedShape
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.branch import Branches, forked
from lightning_lr.callbacks.run import Run
from lightning_lr.progress import RunShape


def check_branches(caller: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuse a run that cannot be forked.

    Raises:
        MisconfigurationException: with the reason, and what to do.
    """
    reason = internals.why_no_branches(trainer, module)
    if reason is not None:
        raise MisconfigurationException(f"{caller}: the run cannot be forked, since {reason}")
    if len(trainer.optimizers) != 1:
        raise MisconfigurationException(
            f"{caller}: configure_optimizers returned {len(trainer.optimizers)} optimizers, and a branch makes the "
            "updates of one; return one"
        )


def in_words(settings: BranchSettings, shape: RunShape, cap: float) -> str:
    """What the branches will cost, for ``plan``."""
    shares = ", ".join(f"{share:.0%}" for share in settings.at)
    if not shape.has_length:
        return f"at {shares} of the run"
    branching = settings.branching(shape.fixed_batch_updates, cap)
    if branching is None:
        return f"at {shares} of the run: {_too_short(settings, shape)}"
    return (
        f"at {shares} of the run: the samples of {branching.length} updates in batches of "
        f"{', '.join(map(str, branching.multiples))} times the present one, at most {branching.price:,.0f} updates "
        "each time"
    )


def critical_batch(
    trainer: Trainer,
    module: LightningModule,
    run: Run,
    member: MethodCallback,
    settings: BranchSettings,
    lr_rule: LRRule,
    at: float,
    batch_size: int,
    cap: float = float("inf"),
) -> CriticalBatch:
    """Measure, and leave the run as it was. All ranks come to the same result.

    Args:
        trainer: between two updates.
        module: its module.
        run: of our callbacks.
        member: whose multiplier of the learning rate is raised in the branches.
        settings: how.
        lr_rule: what becomes of the learning rate.
        at: share of the run, for the record.
        batch_size: B, in samples over all devices.
        cap: largest multiple of it that is of use.
    """
    shape = run.clock.shape
    branching = settings.branching(shape.fixed_batch_updates, cap)
    if branching is None:
        return _nothing(at, batch_size, _too_short(settings, shape))
    factor = member.factor(run.clock)
    assert isinstance(factor, float)
    window = _window(shape, batch_size, trainer)
    with forked(trainer, module, run.writer.values_were_put_back, window) as branches:
        there = branches.available(branching.length + branching.scored)
        if there < branching.length + branching.scored:
            return _nothing(
                at,
                batch_size,
                f"the loader has {there} updates' worth of batches left, and branches need "
                f"{branching.length + branching.scored}; nothing is measured",
            )
        train = _trainer_of(run, member, factor, branches, branching)
        result = measure(branching, settings, lr_rule, batch_size, at, train)
    return trainer.strategy.broadcast(result) if trainer.world_size > 1 else result


def announce(caller: str, result: CriticalBatch) -> None:
    """One line in the terminal."""
    if result.warning:
        rank_zero_warn(f"{caller}: {result}")
    else:
        rank_zero_info(f"{caller}: {result}")


# ---------------------------------------------------------------------- inside
def _trainer_of(
    run: Run, member: MethodCallback, present: float, branches: Branches, branching: Branching
) -> Callable[[int, int, int, float], tuple[list[float], list[float]]]:
    def train(multiple: int, updates: int, scored: int, factor: float) -> tuple[list[float], list[float]]:
        def before_update(_: int) -> None:
            run.writer.set_multiplier(member.name, present * factor)
            run.writer.write()

        return branches.train_in_batches(multiple, updates, before_update, run.samples_in, branching.length, scored)

    return train


def _window(shape: RunShape, batch_size: int, trainer: Trainer) -> tuple[int, ...] | None:
    """Samples in each micro-batch of an update on one device, where a ramp decides about them."""
    if not isinstance(shape, RampedShape):
        return None
    local = batch_size // trainer.world_size
    if isinstance(shape, StreamedShape):
        return (shape.micro_batch_size,) * max(1, local // shape.micro_batch_size)
    return micro_batch_sizes(local, shape.plan.max_micro_batch_size)


def _too_short(settings: BranchSettings, shape: RunShape) -> str:
    least = Branching.of(2, SHORTEST).price
    return (
        f"budget={settings.budget:g} of {shape.fixed_batch_updates:,} updates, in {len(settings.at)} parts, is too "
        f"short for branches (each needs about {least:.0f} updates): nothing is measured; raise budget, name fewer "
        "shares in at, or train longer"
    )


def _nothing(at: float, batch_size: int, warning: str) -> CriticalBatch:
    return CriticalBatch(at, batch_size, 0, False, None, 0.0, 0.0, [], warning)
