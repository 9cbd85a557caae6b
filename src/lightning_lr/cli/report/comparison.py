"""Several runs side by side: one metric, and what each run took until it was as good as the worst one's best.

The picture and the terminal both take their facts from :class:`Comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.nearest import did_you_mean
from lightning_lr.cli.report.differences import differences, names_of
from lightning_lr.cli.report.record import RunRecord
from lightning_lr.cli.report.summary import is_loss, is_score, main_metrics, model_metrics, progress_of, stage_of
from lightning_lr.cli.smoothing import running_mean, smoothing_window

BETTER = ("higher", "lower")
AXES = ("samples", "updates", "seconds")


@dataclass(frozen=True)
class Point:
    """One value of the metric and what had been spent when it was reached; ``None`` where that is not written down."""

    value: float
    updates: float
    samples: float | None
    seconds: float | None

    def spent(self, axis: str) -> float | None:
        """Samples, updates or seconds."""
        return {"samples": self.samples, "updates": self.updates, "seconds": self.seconds}[axis]


@dataclass(frozen=True)
class ComparedRun:
    """A run as it is compared.

    Args:
        name: what distinguishes its directory from the others'.
        differs: what sets its configuration apart; empty where nothing does.
        record: what it left.
        metric: the name of the metric.
        higher: whether higher is better.
    """

    name: str
    differs: str
    record: RunRecord
    metric: str
    higher: bool

    @cached_property
    def points(self) -> list[Point]:
        """The metric as it was logged, a value that is not finite included; of a training loss that was logged often
        the running mean, since one batch's loss is luck."""
        series = self.record.metrics.get(self.metric)
        if series is None:
            return []
        values = series.values
        if stage_of(self.metric) == "train":
            values = running_mean(values, smoothing_window(values))
        updates = [step + 1.0 for step in series.steps]
        timing, nothing = self.record.timing, [None] * len(updates)
        samples = self.record.positions(series.steps) if self.record.counts_samples else nothing
        # of a run that was resumed into a new directory, the seconds before are not here
        seconds = timing.at(updates) if timing is not None and not timing.since else nothing
        return [Point(*point) for point in zip(values, updates, samples, seconds, strict=True)]

    @cached_property
    def finite(self) -> list[Point]:
        """The points whose value is a number."""
        return [point for point in self.points if math.isfinite(point.value)]

    @property
    def best(self) -> Point | None:
        """The earliest of the best values."""
        return (max if self.higher else min)(self.finite, key=lambda point: point.value, default=None)

    @property
    def last(self) -> Point | None:
        """The last value."""
        return self.finite[-1] if self.finite else None

    def reached(self, target: float) -> Point | None:
        """The first point that is at least as good as ``target``."""
        return next((p for p in self.finite if (p.value >= target if self.higher else p.value <= target)), None)


@dataclass(frozen=True)
class Comparison:
    """Runs, the metric they are compared by, and the target for all of them.

    Args:
        runs: in the order in which they were given.
        metric: its name.
        higher: whether higher is better.
        target: the value whose price is compared.
        given: whether the user set the target; else it is the best value of the worst run.
    """

    runs: tuple[ComparedRun, ...]
    metric: str
    higher: bool
    target: float
    given: bool = False

    @property
    def leaders(self) -> list[ComparedRun]:
        """The runs with the best value."""
        bests = [run.best.value for run in self.runs if run.best is not None]
        top = (max if self.higher else min)(bests)
        return [run for run in self.runs if run.best is not None and run.best.value == top]

    @property
    def headline(self) -> str:
        """The result in one line."""
        names = listed([run.name for run in self.leaders])
        best = self.leaders[0].best
        assert best is not None
        if len(self.leaders) == len(self.runs):
            return f"{self.metric} of {len(self.runs)} runs: {best.value:.4g} is the best of each"
        verb = "have" if len(self.leaders) > 1 else "has"
        return f"{self.metric} of {len(self.runs)} runs: {names} {verb} the best, {best.value:.4g}"

    @property
    def target_line(self) -> str:
        """The target that the prices belong to, and who paid least."""
        worst = next(run for run in self.runs if run.best is not None and (self.given or run.best.value == self.target))
        why = "as given" if self.given else f"the best of {worst.name}, which every run reaches"
        text = f"target {self.target:.4g} ({why})"
        for axis in AXES:
            paid = [(p.spent(axis), run.name) for run in self.runs if (p := run.reached(self.target)) is not None]
            known = [(spent, name) for spent, name in paid if spent is not None]
            if len(known) > 1 and len(known) == len(paid):
                least = min(spent for spent, _ in known)
                first = listed([name for spent, name in known if spent == least])
                text += f"; fewest {axis}: {first}"
        return text

    @property
    def notes(self) -> list[str]:
        """What the reader should not overlook."""
        found = []
        for run in self.runs:
            progress = progress_of(run.record)
            if progress.finished is False:
                found.append(f"{run.name}: {progress.sentence}")
            if not run.points:
                have = ", ".join(model_metrics(run.record)) or "no metric"
                found.append(f"{run.name} has no {self.metric} (it has {have})")
            elif not run.finite:
                found.append(f"{run.name}: no value of {self.metric} is finite")
            elif len(run.finite) < len(run.points):
                bad = len(run.points) - len(run.finite)
                found.append(
                    f"{run.name}: {bad} of {len(run.points)} values of {self.metric} are not finite; drawn as gaps"
                )
        for axis, why in (
            ("samples", "only runs with a callback of lightning_lr log them"),
            (
                "seconds",
                "an older run, or one that neither `lightning-lr fit`, our callbacks nor TensorBoardLogger timed",
            ),
        ):
            without = [run for run in self.runs if run.finite and run.finite[0].spent(axis) is None]
            resumed = [run for run in without if axis == "seconds" and run.record.timing is not None]
            unknown = [run.name for run in without if run not in resumed]
            if unknown:
                found.append(f"{axis} of {', '.join(unknown)} are not known: {why}")
            for run in resumed:
                assert run.record.timing is not None
                at = run.record.timing.since
                found.append(
                    f"seconds of {run.name} are not known: those before its resume at update {at:,} lie elsewhere"
                )
        if stage_of(self.metric) == "train" and any(smoothing_window(run.points) > 1 for run in self.runs):
            found.append(f"{self.metric} is a running mean over a fortieth of the logged values")
        return found


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence, at most so many, and how many there are besides."""
    if len(names) <= most:
        return " and ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} others"


def compare(
    records: Sequence[RunRecord], metric: str | None = None, better: str | None = None, target: float | None = None
) -> Comparison:
    """Compare runs side by side.

    Args:
        records: the runs, two or more.
        metric: what they are compared by; else the first of validation score, validation loss, training score and
            training loss that most of them have.
        better: ``"higher"`` or ``"lower"``, where the metric's name does not show it.
        target: the value whose price is compared; else the best value of the worst run.

    Raises:
        ConfigurationError: where nothing can be compared.
    """
    names = names_of([record.directory for record in records])
    chosen = _metric(records, names, metric)
    higher = _higher(chosen, better)
    differing = differences(records)
    runs = [
        ComparedRun(name, differs, record, chosen, higher)
        for name, differs, record in zip(names, differing, records, strict=True)
    ]
    bests = [run.best.value for run in runs if run.best is not None]
    if not bests:
        raise ConfigurationError(
            f"report: no value of {chosen} is finite in any of {', '.join(names)}; "
            f"choose another with --metric ({_available(records, names)})"
        )
    common = (min if higher else max)(bests)
    return Comparison(tuple(runs), chosen, higher, common if target is None else target, target is not None)


def _metric(records: Sequence[RunRecord], names: Sequence[str], given: str | None) -> str:
    every = sorted({name for record in records for name in model_metrics(record)})
    if given is not None:
        if not any(given in record.metrics for record in records):
            raise ConfigurationError(
                f"report: --metric {given} is in none of the runs{did_you_mean(given, every)}; "
                f"they have {_available(records, names)}"
            )
        return given
    ranked = main_metrics(records)
    if not ranked:
        raise ConfigurationError(
            "report: the runs have no metric whose name marks it as a loss or a score; choose one with "
            f"--metric NAME --better higher|lower ({_available(records, names)})"
        )
    return max(ranked, key=lambda name: sum(bool(r.metrics[name].finite) for r in records if name in r.metrics))


def _higher(metric: str, better: str | None) -> bool:
    if better is not None:
        return better == "higher"
    if not (is_loss(metric) or is_score(metric)):
        raise ConfigurationError(
            f"report: whether a higher {metric} is better cannot be read off its name; add --better higher or lower"
        )
    return is_score(metric)


def _available(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    return "; ".join(
        f"{name}: {', '.join(model_metrics(record)) or 'none'}" for name, record in zip(names, records, strict=True)
    )
