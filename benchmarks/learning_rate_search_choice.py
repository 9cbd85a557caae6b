"""How steady is what `LearningRateSearch` chooses, and what does a race cost in seconds?

    python -m benchmarks.learning_rate_search_choice

Small tasks of `learning_rate_search_tasks`, 256 updates, the default budget; only the searches are made. 20 seeds; the
loss times 1e-3 and 1e3; a batch with shuffled labels in every race, among those that its last heat trains on; a loss
that is nan from a rate on. The loss is scaled in double precision, too, and AdamW's eps with it: what is left without
is eps and rounding, which a rate beyond the edge of stability makes larger from update to update. The race's CPU
seconds are held against as many updates of the run that follows. One JSON for all of it.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._common import RESULTS, ResultStore, environment, quiet_process
from benchmarks.learning_rate_search_tasks import SMALL, UPDATES, Small, optimizer_of
from lightning_lr import LearningRateSearch, find_learning_rate

STORE = ResultStore(RESULTS / "learning_rate_search")
NAME, CONFIG = "choice", {"seeds": 20}
PAIRS = (("GRU", "AdamW"), ("digits", "SGD"))
SEEDS, FEW, TIMES = range(1, 21), range(1, 4), range(1, 6)
BY = (1.0, 1e-3, 1e3)
POISONED_AMONG = 20
NAN_FROM = 0.02
TIMED = (("GRU", "AdamW"), ("digits", "SGD"), ("ResNet", "LAMB"))


class Disturbed(Small):
    """A small task whose loss is scaled, whose labels are shuffled in one batch, or which breaks above a rate."""

    scale, poisoned, breaks_from = 1.0, -1, math.inf

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        broken = self.trainer.optimizers[0].param_groups[0]["lr"] >= self.breaks_from
        return super().training_step(batch, batch_idx) * (math.nan if broken else self.scale)


def found(
    task: str,
    optimizer: str,
    seed: int,
    scale: float = 1.0,
    poison: bool = False,
    breaks: bool = False,
    double: bool = False,
) -> float:
    """The rate that a search finds."""
    train, _, _ = SMALL[task].data()
    seed_everything(seed, verbose=False)
    make = optimizer_of(optimizer)
    if optimizer == "AdamW":  # with a gradient of 1e-3 of its size, an eps of 1e-8 would be another optimizer
        eps = 1e-14 * (scale if double else 1.0)
        make = lambda parameters, lr: torch.optim.AdamW(parameters, lr, eps=eps, weight_decay=0.01)  # noqa: E731
    module = Disturbed(SMALL[task], make, 1.0)
    if double:
        module.double()
    module.scale, module.breaks_from = scale, NAN_FROM if breaks else math.inf
    count = [0]

    def collate(rows: Any) -> Any:
        x, y = (torch.stack(part) for part in zip(*rows, strict=True))
        count[0] += 1
        if poison and count[0] == 3 + seed % POISONED_AMONG:
            y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        return (x.double() if double else x), y

    loader = DataLoader(train, 32, shuffle=True, collate_fn=collate)
    return find_learning_rate(_trainer(), module, loader).rate


def _trainer(*callbacks: Callback) -> Trainer:
    return Trainer(
        max_steps=UPDATES,
        max_epochs=-1,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Timed(LearningRateSearch):
    """Takes the time of its race, and of the run after it."""

    race = run = 0.0

    def _search_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        begin, before = time.process_time(), self.result
        super()._search_if_due(trainer, module)
        if self.result is not before:
            self.race = time.process_time() - begin
            self.run = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run = time.process_time() - self.run
        super().on_train_end(trainer, pl_module)


def share_of_time(task: str, optimizer: str, seed: int) -> list[float]:
    """The race's share of the run's CPU seconds, and of its updates."""
    train, _, _ = SMALL[task].data()
    seed_everything(seed, verbose=False)
    search = Timed()
    _trainer(search).fit(Small(SMALL[task], optimizer_of(optimizer), 1.0), DataLoader(train, 32, shuffle=True))
    assert search.result is not None
    return [search.race / search.run, search.result.price / UPDATES]


def spread(rates: list[float]) -> float:
    """The largest over the smallest."""
    return max(rates) / min(rates)


def main() -> None:
    """Search; write and print."""
    quiet_process()
    record: dict[str, Any] = STORE.load(NAME, CONFIG) or {"config": CONFIG, "environment": environment()}
    parts: dict[str, Callable[[], Any]] = {
        "seeds": lambda: {f"{t}, {o}": [found(t, o, seed) for seed in SEEDS] for t, o in PAIRS},
        "time": lambda: {f"{t}, {o}": [share_of_time(t, o, seed) for seed in TIMES] for t, o in TIMED},
        "scaled": lambda: {"GRU, AdamW": [[found("GRU", "AdamW", s, by) for by in BY] for s in FEW]},
        "scaled_double": lambda: {
            "GRU, AdamW": [[found("GRU", "AdamW", s, by, double=True) for by in BY] for s in FEW]
        },
        "nan": lambda: [found("GRU", "AdamW", seed, breaks=True) for seed in FEW],
        "poisoned": lambda: {f"{t}, {o}": [found(t, o, seed, poison=True) for seed in SEEDS] for t, o in PAIRS[:1]},
    }
    for part, made in parts.items():
        if part not in record:
            record[part] = made()
            STORE.save(NAME, record)
    print(told(record))


def told(record: dict[str, Any]) -> str:
    """The record in words."""
    lines = [
        f"- {pair}: {min(rates):.2g} to {max(rates):.2g}, a factor of {spread(rates):.1f} over {len(rates)} seeds"
        for pair, rates in record["seeds"].items()
    ]
    for pair, rates in record["poisoned"].items():
        away = statistics.median(max(a / b, b / a) for a, b in zip(rates, record["seeds"][pair], strict=True))
        most = max(max(a / b, b / a) for a, b in zip(rates, record["seeds"][pair], strict=True))
        lines.append(
            f"- {pair}, a batch with shuffled labels in the race: the choice moves by a factor of {away:.2f} in the "
            f"median, {most:.2f} at most; {spread(rates):.1f} over the seeds"
        )
    for part, precision in (("scaled", "single"), ("scaled_double", "double")):
        scaled = [max(abs(each / t[0] - 1.0) for each in t) for many in record[part].values() for t in many]
        lines.append(
            f"- the loss times 1e-3 and 1e3, {precision} precision: the choice differs by {max(scaled):.2%} at most"
        )
    lines.append(f"- nan from a rate of {NAN_FROM} on: {min(record['nan']):.2g} to {max(record['nan']):.2g}")
    for pair, times in record["time"].items():
        ratios = sorted(seconds / updates for seconds, updates in times)
        lines.append(
            f"- {pair}: the race takes {statistics.median(ratios) - 1:+.0%} of its share of updates in CPU seconds "
            f"({ratios[0] - 1:+.0%} to {ratios[-1] - 1:+.0%}, {len(ratios)} runs)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
