"""A user's settings of an adaptive warm-up, checked: the lr it climbs through, when it is tested, what follows it.

Fixed for the whole run; the state machine walks through it. The climb is AutoWU's (Kim et al. 2021, arXiv:2107.05855,
section 3): exponential, so that each update multiplies the learning rate by the same factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lightning_lr.checks import is_count, is_rate, is_real, require
from lightning_lr.curves import SNAP, Cosine, Curve, Phase
from lightning_lr.gaussian_process.posterior import FEWEST_BLOCKS

OnDivergence = Literal["switch", "rollback", "raise"]

ON_DIVERGENCE: tuple[OnDivergence, ...] = ("switch", "rollback", "raise")


@dataclass(frozen=True)
class WarmupSettings:
    """An adaptive warm-up: climb, test, decay.

    Args:
        min_lr: learning rate of the first update.
        max_lr: learning rate at which the climb would end, after ``max_warmup``.
        max_warmup: share of the run after which the warm-up ends in any case, in (0, 1).
        confidence: probability that the loss has risen above which a test is positive, in (0.5, 1).
        patience: positive tests in a row that end the warm-up.
        check_every: updates between two tests; ``None``: 1 % of the run.
        decay: factor of the chosen learning rate after the warm-up; its progress runs from the switch to the end.
        lr_scale: chosen learning rate over that at the lowest smoothed loss, in (0, 1].
        on_divergence: what to do about a loss that is not finite or explodes.
        restore_best: whether the decay begins at the state of the best test, not at that of the last update.

    Raises:
        ValueError: if an argument is outside its range.
    """

    min_lr: float = 1e-5
    max_lr: float = 1.0
    max_warmup: float = 0.5
    confidence: float = 0.95
    patience: int = 3
    check_every: int | None = None
    decay: Curve = field(default_factory=Cosine)
    lr_scale: float = 1.0
    on_divergence: OnDivergence = "switch"
    restore_best: bool = False

    def __post_init__(self) -> None:
        for name in ("min_lr", "max_lr"):
            value = getattr(self, name)
            _require(is_rate(value) and value > 0, name, value, "a learning rate above 0, within float32")
        if self.min_lr >= self.max_lr:
            raise ValueError(
                f"AdaptiveWarmup: min_lr={self.min_lr!r} is not below max_lr={self.max_lr!r}; the warm-up climbs from "
                "the one to the other. Lower min_lr or raise max_lr"
            )
        _require(
            is_real(self.max_warmup) and 0 < self.max_warmup < 1, "max_warmup", self.max_warmup,
            "a share of the run in (0, 1), 0.5 for half of it",
        )  # fmt: skip
        _require(
            is_real(self.confidence) and 0.5 < self.confidence < 1, "confidence", self.confidence,
            "a probability in (0.5, 1), for example 0.95",
        )  # fmt: skip
        _require(is_count(self.patience), "patience", self.patience, "a whole number of tests, at least 1")
        _require(
            self.check_every is None or is_count(self.check_every), "check_every", self.check_every,
            "a whole number of updates, at least 1, or None for 1 % of the run",
        )  # fmt: skip
        _require(
            is_real(self.lr_scale) and 0 < self.lr_scale <= 1, "lr_scale", self.lr_scale,
            "a factor in (0, 1]; above 1 the decay would begin at a learning rate that was never tried",
        )  # fmt: skip
        _require(isinstance(self.restore_best, bool), "restore_best", self.restore_best, "True or False")
        _require(self.on_divergence in ON_DIVERGENCE, "on_divergence", self.on_divergence, f"one of {ON_DIVERGENCE}")
        if not isinstance(self.decay, Curve):
            raise ValueError(f"AdaptiveWarmup: decay={self.decay!r} is not a curve; give one of lightning_lr.curves")
        if self.decay(0.0) != 1.0:
            raise ValueError(
                f"AdaptiveWarmup: decay={self.decay!r} begins at a factor of {self.decay(0.0):.3g}, not at 1; the "
                "warm-up is over when it begins. Give it warmup=0, or another curve"
            )

    @property
    def keeps(self) -> bool:
        """Whether the state at the best test is kept."""
        return self.restore_best or self.on_divergence == "rollback"

    def climb(self, progress: float) -> float:
        """Learning rate of the warm-up: ``min_lr (max_lr / min_lr)**(progress / max_warmup)``, up to ``max_lr``.

        Args:
            progress: share of the run done before the update.
        """
        share = progress / self.max_warmup
        return self.max_lr if share >= 1.0 else self.min_lr * (self.max_lr / self.min_lr) ** share

    def latest(self, progress: float, width: float = 0.0) -> float:
        """Learning rate of a run whose warm-up ends as late as it can, at ``max_lr``: what ``plan`` draws.

        Args:
            progress: share of the run done before the update.
            width: share of the run that the update covers.
        """
        if progress < self.max_warmup - SNAP:
            return self.climb(progress)
        left = 1.0 - self.max_warmup
        return self.max_lr * self.decay(max(0.0, progress - self.max_warmup) / left, width / left)

    def warmup_updates(self, total_updates: int) -> int:
        """Updates after which the warm-up ends in any case."""
        return math.ceil(self.max_warmup * total_updates - SNAP)

    def updates_between_tests(self, total_updates: int) -> int:
        """Updates between two tests in a run of ``total_updates``.

        By default 1 % of the run, or less where a short warm-up would then not be tested four times as often as
        ``patience`` asks.

        Raises:
            ValueError: where fewer tests than ``patience`` fit into the warm-up.
        """
        warmup = self.warmup_updates(total_updates)
        every = self.check_every or max(1, min(math.ceil(total_updates / 100), warmup // (4 * self.patience)))
        least = self.earliest_switch(every)
        if warmup < least:
            needed = self._updates_with(least)
            shorten = f" or check_every (now {every})" if every > 1 else ""
            raise ValueError(
                f"AdaptiveWarmup: the run has {total_updates} updates, {warmup} of them in the warm-up (max_warmup="
                f"{self.max_warmup!r}), and patience={self.patience} tests every {every} updates need {least} there, "
                f"so at least {needed} updates in the run; train longer, raise max_warmup, or lower patience{shorten}"
            )
        return every

    def earliest_switch(self, every: int) -> int:
        """Updates before a switch, at least, where tests are ``every`` updates apart."""
        return every * (math.ceil(FEWEST_BLOCKS / every) + self.patience - 1)

    @property
    def fewest_updates(self) -> int:
        """Updates of the shortest run that is not too short."""
        return self._updates_with(self.earliest_switch(self.check_every or 1))

    def switch_range(self, total_updates: int) -> tuple[int, int]:
        """Updates after which the switch falls, the earliest and the latest, if nothing diverges.

        Args:
            total_updates: of the whole run.
        """
        every = self.updates_between_tests(max(total_updates, self.fewest_updates))
        return self.earliest_switch(every), self.warmup_updates(total_updates)

    def phases(self, switched_at: float | None) -> tuple[Phase, ...]:
        """The named parts of the run: the warm-up, and those of the decay.

        Args:
            switched_at: share of the run at the switch; ``None``: not known yet, at most ``max_warmup``.
        """
        start = self.max_warmup if switched_at is None else switched_at
        climb = Phase("warm-up, at most" if switched_at is None else "warm-up", 0.0, start)
        decay = self.decay.phases() or (Phase("decay", 0.0, 1.0),)
        return climb, *(Phase(p.name, start + p.start * (1 - start), start + p.end * (1 - start)) for p in decay)

    def summary(self, total_updates: int) -> dict[str, str]:
        """What a plan shows about the warm-up.

        Args:
            total_updates: of the whole run.
        """
        every = self.updates_between_tests(max(total_updates, self.fewest_updates))
        earliest, latest = self.switch_range(total_updates)
        return {
            "adaptive warm-up": f"lr {self.min_lr:g} to at most {self.max_lr:g}; the switch falls between "
            f"update {earliest:,} and {latest:,}, by a test every {every:,}",
            "after the switch": f"{self.decay} from the lr of the lowest loss"
            + (f" x {self.lr_scale:g}" if self.lr_scale != 1.0 else ""),
        }

    def _updates_with(self, warmup: int) -> int:
        return math.floor((warmup - 1) / self.max_warmup + SNAP) + 1


def _require(is_allowed: bool, argument: str, value: object, allowed: str) -> None:
    require(is_allowed, "AdaptiveWarmup", argument, value, allowed)
