"""One factor per group, or one for all, learned from the alignments of every update; where bounds and guards are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

from lightning_lr.checks import is_list, is_real
from lightning_lr.hypergradient.alignment import Alignment, cosine
from lightning_lr.hypergradient.directions import Family
from lightning_lr.hypergradient.rules import Feedback, Rule, RuleName, make_rule
from lightning_lr.saved_state import FROM_0, MEASURED, NOT_NAN, NUMBER, alike, keys, optional, several

Scope = Literal["group", "global"]
_Past = tuple[float, float, float, float, float, float]
"""What is learned from: g . v, squared norms of g, of v and of the direction, of the gradient before, the reference."""
_feedback = Feedback._make


class FactorLearner:
    """Keeps the factors on the learning rates of an optimizer's groups.

    A factor stays where it is when its feedback is not finite, when nothing moved (the first update, a learning rate of
    0, a group without gradients), and at the bounds.

    Args:
        rule: how a factor follows from feedback, by name.
        hyper_lr: the rule's rate; ``None`` for the default of the optimizer's family.
        family: of the optimizer.
        scope: a factor for each group, or one for all groups.
        bounds: of the factor, and so of the learning rate relative to the scheduled one.

    Raises:
        ValueError: for bounds that do not enclose 1 or reach 0 under a rule that could not leave it again.
    """

    def __init__(
        self,
        rule: RuleName,
        hyper_lr: float | None,
        family: Family,
        scope: Scope = "group",
        bounds: tuple[float, float] = (1e-3, 1e3),
    ) -> None:
        if scope not in get_args(Scope):
            raise ValueError(f"HypergradientDescent: got scope={scope!r}; allowed are {get_args(Scope)}")
        two = is_list(bounds) and len(bounds) == 2 and all(map(is_real, bounds))
        low, high = map(float, bounds) if two else (math.nan, math.nan)
        if not (0 <= low <= 1 <= high) or (low == 0 and rule != "additive"):
            raise ValueError(
                f"HypergradientDescent: got bounds={bounds!r} with rule={rule!r}; give (low, high) with 0 < low <= 1 "
                "<= high (low may be 0 for the additive rule only, which can grow from 0)"
            )
        make_rule(rule, hyper_lr, family)  # complains now, not at the first update
        self._rule: RuleName = rule
        self._hyper_lr, self._family = hyper_lr, family
        self.scope: Scope = scope
        self.bounds = (low, high)
        self._rules: list[Rule] = []
        self._factors: list[float] = []
        self._base: list[float] | None = None
        self._gradients: list[float] = []
        self._reference: list[float] = []

    # ------------------------------------------------------------------ reading
    @property
    def hyper_lr(self) -> float:
        """The rate in use."""
        rule = make_rule(self._rule, self._hyper_lr, self._family)
        return float(rule.hyper_lr)  # type: ignore[attr-defined]

    def factors(self, groups: int) -> list[float]:
        """The factor of each of ``groups`` groups; 1 for a group that no update has had yet."""
        if self.scope == "global":
            return [self._factors[0] if self._factors else 1.0] * groups
        return [*self._factors, *[1.0] * (groups - len(self._factors))][:groups]

    def cosines(self, alignments: Sequence[Alignment]) -> list[float]:
        """The cosine that each factor follows; NaN where it is unknown."""
        return self.cosines_of(alignments)()

    def cosines_of(self, alignments: Sequence[Alignment]) -> Callable[[], list[float]]:
        """What computes :meth:`cosines` as of now; they are rarely asked for."""
        base = self._base  # another list after the next update

        def found() -> list[float]:
            if self.scope == "group":
                return [alignment.cosine for alignment in alignments]
            known = base if base is not None and len(base) == len(alignments) else [1.0] * len(alignments)
            dot, gradient, move = _weighted(alignments, known)
            return [cosine(dot, gradient, move)]

        return found

    # ------------------------------------------------------------------ learning
    def refine(self, alignments: Sequence[Alignment], base: Sequence[float], initial: Sequence[float]) -> list[float]:
        """Learn from the last update.

        Args:
            alignments: of each group, with the gradients that are about to be applied.
            base: learning rate of each group in this update without the factor.
            initial: learning rate of each group that the user set, before any schedule.

        Returns:
            the factor of each group for this update.
        """
        groups = len(alignments)
        for index in range(len(self._reference), groups):
            self._reference.append(abs(initial[index]))
        units = 1 if self.scope == "global" else groups
        while len(self._factors) < units:
            self._factors.append(1.0)
            self._rules.append(make_rule(self._rule, self._hyper_lr, self._family))
        if self._base is not None:
            self._learn(self._past_of_all(alignments) if self.scope == "global" else self._past(alignments))
        self._reference = [r if r > b else b for b, r in zip(base, self._reference, strict=True)]
        return self.factors(groups)

    def applied(self, alignments: Sequence[Alignment], base: Sequence[float]) -> None:
        """The update is made, with the factors as they are and these base learning rates."""
        self._base = list(base)
        self._gradients = [alignment.gradient for alignment in alignments]

    # ------------------------------------------------------------------ resuming
    SAVED: ClassVar = alike(
        alike(
            keys(
                {
                    "factors": several(FROM_0),
                    "memories": several(NOT_NAN),
                    "base": optional(several(NUMBER)),
                    "gradients": several(MEASURED),
                    "reference": several(MEASURED),
                }
            ),
            *("factors", "memories"),
        ),
        *("base", "gradients"),
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues."""
        return {
            "factors": list(self._factors),
            "memories": [rule.memory for rule in self._rules],
            "base": None if self._base is None else list(self._base),
            "gradients": list(self._gradients),
            "reference": list(self._reference),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self._factors = list(state["factors"])
        self._rules = [make_rule(self._rule, self._hyper_lr, self._family) for _ in self._factors]
        for rule, memory in zip(self._rules, state["memories"], strict=True):
            rule.memory = memory
        self._base = None if state["base"] is None else list(state["base"])
        self._gradients = list(state["gradients"])
        self._reference = list(state["reference"])

    # ------------------------------------------------------------------ inside
    def _past(self, alignments: Sequence[Alignment]) -> list[_Past]:
        """Of each group; one that came later has none."""
        assert self._base is not None
        return [
            (base * dot, gradient, base * base * direction, direction, before, reference)
            for (dot, gradient, direction), base, before, reference in zip(
                alignments, self._base, self._gradients, self._reference, strict=False
            )
        ]

    def _past_of_all(self, alignments: Sequence[Alignment]) -> list[_Past]:
        """Of all groups together."""
        assert self._base is not None
        known = min(len(alignments), len(self._base))
        dot, gradient, move = _weighted(alignments[:known], self._base[:known])
        direction = sum(alignment.direction for alignment in alignments[:known])
        reference = max(self._reference[:known], default=0.0)
        return [(dot, gradient, move, direction, sum(self._gradients[:known]), reference)]

    def _learn(self, past: Sequence[_Past]) -> None:
        """Learn one factor after the other, each from a past of its own."""
        (low, high), factors, rules = self.bounds, self._factors, self._rules
        for unit, (dot, gradient, move, direction, before, reference) in enumerate(past):
            # a sum is finite only where its terms are, or where it overflows, and then nothing is learned either
            if not math.isfinite(dot + gradient + move + before) or move == 0.0 or reference == 0.0:
                continue
            factor, rule = factors[unit], rules[unit]
            lr, kept = factor * math.sqrt(move / direction), rule.memory
            wanted = rule(factor, _feedback((dot, gradient, before, move, lr, reference)))
            if not math.isfinite(wanted):
                rule.memory = kept
                wanted = high if wanted == math.inf else factor
            factors[unit] = low if wanted < low else high if wanted > high else wanted


def _weighted(alignments: Sequence[Alignment], base: Sequence[float]) -> tuple[float, float, float]:
    dot = sum(b * a.dot for a, b in zip(alignments, base, strict=True))
    move = sum(b * b * a.direction for a, b in zip(alignments, base, strict=True))
    return dot, sum(a.gradient for a in alignments), move
