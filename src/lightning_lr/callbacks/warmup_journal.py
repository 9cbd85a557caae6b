"""The lines that an adaptive warm-up writes into its journal, from which ``report`` draws."""

from __future__ import annotations

from lightning_lr.journal import Journal
from lightning_lr.warmup import Decision, WarmupMachine
from lightning_lr.warmup.switch import short


def note(journal: Journal, update: int, machine: WarmupMachine, decision: Decision) -> None:
    """Write down a decision that has been applied.

    Args:
        journal: where.
        update: number of the update (from 0) after which it was taken.
        machine: which decided.
        decision: what it came to.
    """
    settings, facts = machine.settings, decision.facts()
    event = facts.pop("reason")
    if machine.phase == "decay":
        facts["phases"] = [[p.name, p.start, p.end] for p in settings.phases(machine.switched_at)]
        facts["facts"] = {
            "adaptive warm-up": f"lr {settings.min_lr:g} to {decision.reached_lr:.4g} in "
            f"{update + 1:,} updates, and on from {decision.lr:.4g}"
        }
    read = {name: [short(pair[i]) for pair in machine.last_read] for i, name in enumerate(("lr", "loss"))}
    journal.append(update, event, **facts, read=read, picture=decision.picture)
