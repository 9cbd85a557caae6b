"""What a test of the warm-up, or a divergence, comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["test", "switch", "timeout", "divergence"]

Action = Literal["continue", "switch", "rollback", "raise"]


@dataclass(frozen=True)
class Decision:
    """What a test or a divergence came to: plain values, which ranks can send each other.

    Args:
        reason: what it was: an ordinary ``"test"``, or why the warm-up ends.
        action: what to do. ``"rollback"``: restore the state that was kept last, then switch. ``"raise"``: stop the
            run with ``message``.
        progress: share of the run done; the decay begins here.
        updates: updates observed.
        reached_lr: learning rate of the last update.
        lr: learning rate from which the decay begins, or would begin if the warm-up ended now.
        probability: that the smoothed loss has risen above its lowest point.
        positive: positive tests in a row, this one included.
        keep: whether the state now is the best so far, the one to keep for a rollback. (Before the first test that is
            the state at the start of the run.)
        limit: loss above which two updates in a row count as an explosion from now on.
        non_finite: whether a loss was NaN or infinite, so that the weights may be so too and a mere switch of the
            learning rate may not help.
        informative: whether the loss depended on the learning rate at all, with the confidence of the settings.
        message: for the user, where there is one.
        picture: block means, posterior mean and band over the learning rate, for the report.
    """

    reason: Reason
    action: Action
    progress: float
    updates: int
    reached_lr: float
    lr: float
    probability: float
    positive: int
    keep: bool
    limit: float
    non_finite: bool = False
    informative: bool = True
    message: str = ""
    picture: dict[str, Any] = field(default_factory=dict)

    def announcement(self, updates: int) -> str:
        """One line about the end of the warm-up: at which rate, where, and why.

        Args:
            updates: updates of the run that are done.
        """
        why = {
            "switch": f"the loss had risen with probability {self.probability:.3g} in {self.positive} tests in a row",
            "timeout": "its share of the run was over",
            "divergence": "the loss diverged",
        }.get(self.reason, self.reason)
        back = ", from the state of the best test" if self.action == "rollback" else ""
        return (
            f"AdaptiveWarmup: the warm-up has ended after update {updates} ({self.progress:.0%} of the run) at a "
            f"learning rate of {self.reached_lr:.3g}, because {why}; the decay begins at {self.lr:.3g}{back}"
        )

    def facts(self) -> dict[str, Any]:
        """The numbers of the decision for a line of the journal, without the picture."""
        names = ("reason", "action", "progress", "reached_lr", "lr", "probability", "positive", "keep", "informative")
        return {name: getattr(self, name) for name in names}
