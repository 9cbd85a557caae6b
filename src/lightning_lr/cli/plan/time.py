"""What ``plan`` shows about time: how long the run takes, part by part, and how long a fixed batch would take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_lr.cli.plan.model import Plan
from lightning_lr.sharded_memory import ModelSize, Stage, communication_bytes
from lightning_lr.step_time import Network, StepTime, collectives, run_seconds


@dataclass(frozen=True)
class Cost:
    """Everything that a run's time depends on but the run.

    Args:
        step: of one rank.
        network: between the ranks.
        model: what is sent.
        stage: how it is sent.
        half: in 16 bits.
    """

    step: StepTime
    network: Network
    model: ModelSize
    stage: Stage = 0
    half: bool = False

    def communication(self, ranks: int, accumulation: int) -> float:
        """Seconds for an update; none for a rank that is alone."""
        if ranks == 1:
            return 0.0
        sent = communication_bytes(self.model, self.stage, ranks, half=self.half, accumulation=accumulation)
        return self.network.seconds(sent, collectives(self.stage, accumulation))

    def seconds(self, updates: int, samples: int, ranks: int, accumulation: int) -> float:
        """Of so many updates with so many samples in all. Each is taken to have its full number of micro-batches."""
        communication = self.communication(ranks, accumulation)
        return run_seconds(self.step, samples / ranks, updates * accumulation, updates, communication)


def timed(plan: Plan, cost: Cost) -> Plan:
    """The plan with the time of each row and of the whole.

    Only for a run that is counted in samples; any other is returned with a note.
    """
    shape, ranks = plan.shape, plan.shape.epoch.world_size
    if not shape.epoch.counts_samples:
        return replace(plan, notes=(*plan.notes, "time is not planned: the batch size of the loader is not known"))
    rows = tuple(
        replace(
            row,
            seconds=cost.seconds(
                row.updates[1] - row.updates[0], row.units[1] - row.units[0], ranks, row.batch.accumulation
            ),
        )
        for row in plan.rows
    )
    total = sum(row.seconds or 0.0 for row in rows)
    words = duration(total)
    if shape.fixed_batch_updates != shape.total_updates:
        fixed = cost.seconds(shape.fixed_batch_updates, shape.total_units, ranks, shape.accumulation_in(0))
        words += f"; {duration(fixed)} at the fixed batch of {shape.batch_size:,}"
        words += f", {fixed / total:.2f} times as long" if total else ""
    step, sent = cost.step, cost.communication(ranks, plan.rows[0].batch.accumulation)
    words += (
        f"\n{step.micro_batch:.3g} s + {step.sample:.3g} s per sample for a micro-batch, {step.update:.3g} s for an "
        f"update, {sent:.3g} s to send it, one after the other; without loading, validation and checkpoints"
    )
    return replace(plan, rows=rows, summary={**plan.summary, "time to finish": words})


def duration(seconds: float) -> str:
    """Seconds in words: two units at most."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24:,} d {hours % 24} h"
