r"""The critical batch size, measured by branches: the same samples in larger batches, until the loss falls behind.

From one state, branches train on the same n updates' worth of samples in batches of B, 2B, 4B, ..., the learning rate
raised by the rule in force, and are scored without a step on the same batches that follow. A branch keeps up while

.. math:: \bar d_k \le \tau \, \max(\bar L_0 - \bar L_1, 0) + s(d_k), \qquad d_{k,i} = L_k(x_i) - L_1(x_i)

with :math:`L_0` the score before the branches, :math:`L_1` that of batch B, and :math:`s` the standard error of the
mean of the paired differences: larger batches may cost a share :math:`\tau` of what B gains, and what chance makes of
it. The critical batch is the largest that keeps up, with all those below it. Merrill et al. allow 0.01 nats after 2
billion tokens; a branch that is a thousand times shorter could not fall behind by that, whatever its batch, so that the
tolerance here is relative to what is gained. Neither an offset nor a factor of the loss matters.

Source: Merrill et al. 2025, arXiv:2505.23971.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from lightning_lr.batch_size.batch_rule import LRRule
from lightning_lr.checks import is_count, is_list, is_real, require

FORWARD = 1 / 3
"""Price of a forward pass, in updates of the same batch."""

SHORTEST = 6
"""Updates of the present batch that a branch has at least."""

FEWEST = 2
"""Updates that the largest batch's branch makes at least."""

Train = Callable[[int, int, int, float], tuple[Sequence[float], Sequence[float]]]
"""Train a branch: multiple of the present batch, updates, updates' worth of batches to score on, factor on the
learning rate. Returns the losses, and the scores by batch; no scores where the branch was ended."""


@dataclass(frozen=True)
class BranchSettings:
    """When and how the critical batch is measured.

    Args:
        at: shares of the run, in [0, 1), strictly increasing.
        budget: share of the run's updates that all measurements together may take, in (0, 1].
        tolerance: share of what the present batch gains that a larger one may lose, in [0, 1).
        largest: largest multiple of the present batch that is tried, a power of 2 from 2.

    Raises:
        ValueError: for an argument outside its range.
    """

    caller: str
    at: Sequence[float]
    budget: float
    tolerance: float
    largest: int

    def __post_init__(self) -> None:
        at = tuple(self.at) if is_list(self.at) else ()
        rising = all(a < b for a, b in pairwise(at)) if all(map(is_real, at)) else False
        require(
            bool(at) and rising and at[0] >= 0 and at[-1] < 1,
            self.caller, "at", self.at, "shares of the run in [0, 1) that strictly increase, for example [0.1, 0.3]",
        )  # fmt: skip
        object.__setattr__(self, "at", tuple(map(float, at)))
        require(is_real(self.budget) and 0 < self.budget <= 1, self.caller, "budget", self.budget, "a number in (0, 1]")
        allowed = is_real(self.tolerance) and 0 <= self.tolerance < 1
        require(allowed, self.caller, "tolerance", self.tolerance, "a number in [0, 1)")
        power = is_count(self.largest, 2) and int(self.largest).bit_count() == 1
        require(power, self.caller, "largest", self.largest, "a power of 2 from 2")

    def due(self, progress: float, done: Sequence[float]) -> list[float]:
        """The shares that have been reached since the last measurement."""
        last = max(done, default=-1.0)
        return [share for share in self.at if last < share <= progress]

    def branching(self, updates: float, largest: float) -> Branching | None:
        """What a measurement of a run of so many updates may do, with no multiple above ``largest``."""
        return Branching.within(self.budget * updates / len(self.at), int(min(self.largest, largest)))


@dataclass(frozen=True)
class Branching:
    """One measurement: the same samples for every branch.

    Args:
        largest: multiple of the present batch, a power of 2.
        length: updates of the present batch that a branch's samples make, a multiple of ``largest``.
        scored: batches of the present size that it is scored on.
    """

    largest: int
    length: int
    scored: int

    @property
    def multiples(self) -> tuple[int, ...]:
        """1, 2, 4, ..., ``largest``."""
        return tuple(2**power for power in range(self.largest.bit_length()))

    @property
    def price(self) -> float:
        """Updates, of any batch, that it takes where every branch keeps up; a scored batch counts as a third."""
        trained = sum(self.length / multiple for multiple in self.multiples)
        return trained + (len(self.multiples) + 1) * self.scored * FORWARD

    @property
    def samples(self) -> float:
        """The same in the samples of one update of the present batch."""
        return len(self.multiples) * self.length + (len(self.multiples) + 1) * self.scored * FORWARD

    @classmethod
    def of(cls, largest: int, length: int) -> Branching:
        """As many scored batches as updates."""
        return cls(largest, length, length)

    @classmethod
    def within(cls, price: float, largest: int) -> Branching | None:
        """The largest multiple that a price allows for, then the longest branches; ``None`` where it is too low."""
        multiple = 2 ** (max(largest, 1).bit_length() - 1)
        while multiple > 1:
            length = max(SHORTEST, FEWEST * multiple)
            if cls.of(multiple, length).price <= price:
                while cls.of(multiple, length + multiple).price <= price:
                    length += multiple
                return cls.of(multiple, length)
            multiple //= 2
        return None


@dataclass(frozen=True)
class BatchTrial:
    """One branch.

    Args:
        multiple: of the present batch.
        lr_factor: on the learning rate.
        losses: of its updates.
        scores: of the batches it was scored on; none where it diverged.
        behind: mean of the paired differences to the present batch; ``None`` for that batch itself, or diverged.
        noise: its standard error.
        allowed: how far it may be behind, noise included.
    """

    multiple: int
    lr_factor: float
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    behind: float | None = None
    noise: float | None = None
    allowed: float | None = None

    @property
    def keeps_up(self) -> bool:
        """Whether its loss is within the tolerance."""
        return self.behind is not None and self.allowed is not None and self.behind <= self.allowed


@dataclass(frozen=True)
class CriticalBatch:
    """What a measurement has come to.

    Args:
        at: share of the run.
        present: B, samples per update over all devices.
        multiple: largest multiple of it that keeps up; 1 where none does; 0 where nothing was found out.
        bounded: whether a larger one fell behind, so that the critical batch is below twice as much.
        gained: mean score before the branches minus that after the branch of B.
        price: updates that it took.
        samples: samples that it took, in those of one update of B.
        trials: the branches, as plain data.
        warning: why nothing was found out.
    """

    at: float
    present: int
    multiple: int
    bounded: bool
    gained: float | None
    price: float
    samples: float
    trials: list[dict[str, Any]]
    warning: str = ""

    @property
    def batch_size(self) -> int | None:
        """The critical batch in samples; ``None`` where nothing was found out."""
        return self.multiple * self.present if self.multiple else None

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        if self.batch_size is None:
            return self.warning
        end = f"{2 * self.batch_size} falls behind" if self.bounded else "no larger one was tried"
        return (
            f"critical batch {self.batch_size} at {self.at:.0%} of the run ({self.multiple} x {self.present}; {end}; "
            f"measured in {self.price:.0f} updates)"
        )


def lr_factor(multiple: float, lr_rule: LRRule) -> float:
    """What keeps the noise of an update as it is where the batch grows: k for "linear", sqrt k for "sqrt"."""
    return float(multiple) if lr_rule == "linear" else math.sqrt(multiple)


def measure(
    branching: Branching, settings: BranchSettings, lr_rule: LRRule, present: int, at: float, train: Train
) -> CriticalBatch:
    """Double the batch of a branch until its loss falls behind.

    Args:
        branching: how long and how far.
        settings: the tolerance.
        lr_rule: what becomes of the learning rate.
        present: B, in samples.
        at: share of the run, for the record.
        train: trains a branch from the same state.
    """
    _, before = train(1, 0, branching.scored, 1.0)
    price = samples = branching.scored * FORWARD
    trials: list[BatchTrial] = []
    gained: float | None = None
    bounded = False
    for multiple in branching.multiples:
        factor, updates = lr_factor(multiple, lr_rule), branching.length // multiple
        losses, scores = train(multiple, updates, branching.scored, factor)
        trial = BatchTrial(multiple, factor, tuple(losses), tuple(scores))
        price += len(losses) + len(scores) * FORWARD * branching.scored / max(len(before), 1)
        samples += len(losses) * multiple + len(scores) * FORWARD * branching.scored / max(len(before), 1)
        if multiple == 1:
            if not scores or not before:
                trials.append(trial)
                break
            gained = fmean(before) - fmean(scores)
            trials.append(trial)
            continue
        assert gained is not None
        trial = judged(trial, trials[0], gained, settings.tolerance)
        trials.append(trial)
        if not trial.keeps_up:
            bounded = True
            break
    keeping = [trial.multiple for trial in trials if trial.multiple == 1 or trial.keeps_up]
    return CriticalBatch(
        at,
        present,
        0 if gained is None else max(keeping),
        bounded,
        gained,
        price,
        samples,
        [asdict(trial) for trial in trials],
        "" if gained is not None else f"the loss diverged at the present batch of {present}; nothing can be compared",
    )


def judged(trial: BatchTrial, base: BatchTrial, gained: float, tolerance: float) -> BatchTrial:
    """The trial with what it is behind the present batch's, and may be."""
    if not trial.scores:
        return trial
    differences = [ours - theirs for ours, theirs in zip(trial.scores, base.scores, strict=True)]
    noise = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    allowed = tolerance * max(gained, 0.0) + noise
    return replace(trial, behind=fmean(differences), noise=noise, allowed=allowed)
