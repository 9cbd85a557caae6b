"""Why `headline` comes out as it does: what a climb costs, how short it may be, what the learning rate finder reads
from its sweep, and what hypergradients do after the switch.

    python -m benchmarks.headline_why [--data-dir FOLDER] [--dry-run] [--report] [--jobs 2]

Everything is judged on the validation images of Fashion-MNIST, with a seed that `headline` does not have: the setting
of its arm "AdaptiveWarmup, short climb" was chosen here, before that arm was run: the one with the best mean over the
two networks. Beside the settings stand tuned AdamW at the full length and at about as many samples as a climb leaves (5
of 8 epochs). One seed: differences below about a point say nothing.

One JSON per run in ``benchmarks/results/headline_why/``: a run whose file exists is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from benchmarks._common import (
    RESULTS,
    ResultStore,
    command_line,
    markdown_table,
    t_interval,
    write_keeping_findings,
)
from benchmarks._experiment import Experiment, existing, facts
from benchmarks.headline import DEFAULT, FOLDER, best_learning_rates, config_of, search
from benchmarks.headline_arms import ARMS, steepest_per_step, suggestion
from benchmarks.headline_run import Config, train
from benchmarks.headline_tasks import TASKS
from lightning_lr import AdaptiveWarmup, HypergradientDescent

OWN = RESULTS / "headline_why"
NETWORKS, SEEDS, SHORT_EPOCHS = ("CNN", "ViT"), (10,), 5
SWEEP_EPOCHS = 4
"""Enough for a sweep of 100 updates, which is all that is looked at of such a run."""
CLIMBS: dict[str, dict[str, Any]] = {
    "max_warmup=0.25": {"max_warmup": 0.25},
    "max_warmup=0.15": {"max_warmup": 0.15},
    "min_lr=1e-4, max_lr=0.3, max_warmup=0.25": {"min_lr": 1e-4, "max_lr": 0.3, "max_warmup": 0.25},
}
DEFAULT_CLIMB, HYPER = "AdaptiveWarmup", "AdaptiveWarmup + HypergradientDescent"


@dataclass(frozen=True)
class Run(Config):
    """A run that is not one of `headline`'s: the setting of a climb in words, or an arm of `headline`."""

    setting: str = ""

    @classmethod
    def of(cls, setting: str, config: Config) -> Run:
        """A run of `headline` in a setting of its own."""
        return cls(**asdict(config), setting=setting)

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        words = self.setting.replace(", ", "-").replace(" + ", "-").replace(" ", "-").replace("=", "")
        return f"{self.model}_{words}_epochs{self.epochs}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.model}, {self.setting}, {self.epochs} epochs, seed {self.seed}"


def _climb(setting: str) -> Callable[[], list[Callback]]:
    return lambda: [AdaptiveWarmup(restore_best=True, **CLIMBS[setting])]


def runs() -> list[Run]:
    """Every run, seed by seed."""
    best = best_learning_rates(DEFAULT, existing(ResultStore(FOLDER), search(DEFAULT)))
    found = []
    for seed in SEEDS:
        for network in NETWORKS:
            task = TASKS[network]
            tuned = config_of(task, "AdamW, tuned", best[network, "AdamW, tuned"], seed)
            found += [Run.of("AdamW, tuned", tuned), Run.of("AdamW, tuned", replace(tuned, epochs=SHORT_EPOCHS))]
            found += [Run.of(name, config_of(task, name, 1.0, seed)) for name in (DEFAULT_CLIMB, HYPER)]
            found += [Run.of(name, config_of(task, DEFAULT_CLIMB, 1.0, seed)) for name in CLIMBS]
            finder = config_of(task, "LearningRateFinder", 1e-3, seed)
            found.append(Run.of("LearningRateFinder", replace(finder, epochs=SWEEP_EPOCHS)))
    return found


class Watch(Callback):
    """The training losses, and hypergradients' factor at the end of each eighth of the run."""

    def __init__(self, method: HypergradientDescent | None) -> None:
        self.method, self.losses, self.factors = method, list[float](), list[float]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.method is not None:
            self.factors += self.method.state_dict()["hypergradient"]["learner"]["factors"][:1] or [1.0]


def make(run: Run, data_dir: str | None = None) -> dict[str, Any]:
    """Make one run; of the finder the sweep alone is used."""
    arm = ARMS[run.arm]
    sweep: dict[str, Any] = {}
    if run.setting in CLIMBS:
        arm = replace(arm, callbacks=_climb(run.setting))
    if arm.reading:

        def read(finder: Any) -> float | None:
            losses, rates = torch.tensor(finder.results["loss"][10:-1]), torch.tensor(finder.results["lr"][10:-1])
            sweep.update(lr=rates.tolist(), loss=losses.tolist())
            sweep.update(suggested=suggestion(finder), per_step=steepest_per_step(finder))
            return suggestion(finder)

        arm = replace(arm, reading=read)
    methods = arm.callbacks()
    watch = Watch(next((method for method in methods if isinstance(method, HypergradientDescent)), None))
    arm = replace(arm, callbacks=lambda: methods)
    record = train(run, data_dir, arm, [watch], validates=True)
    last = len(watch.losses) // 8
    return {
        **record,
        "config": facts(run),
        "train_loss": fmean(watch.losses[-last:]),
        "factors": watch.factors,
        "sweep": sweep,
    }


# ---------------------------------------------------------------------- the table
Record = dict[str, Any]


def climbs(records: Sequence[Record]) -> str:
    """A row per setting: validation accuracy of each network and of both."""
    kinds = dict.fromkeys((r["config"]["setting"], r["config"]["epochs"]) for r in records if not r["sweep"])
    body = []
    for setting, epochs in kinds:
        own = [r for r in records if (r["config"]["setting"], r["config"]["epochs"]) == (setting, epochs)]
        cells = [setting if epochs == TASKS["CNN"].epochs else f"{setting}, {epochs} epochs"]
        for network in NETWORKS:
            of = [r for r in own if r["config"]["model"] == network]
            cells.append(t_interval([r["val_accuracy"] for r in of]).text(100) if of else "-")
        shares = [r["switched_at"] for r in own if r["switched_at"] is not None]
        peaks = [r["peak_lr"] for r in own if r["peak_lr"] is not None]
        cells.append(f"{100 * fmean(r['val_accuracy'] for r in own):.2f}")
        cells.append(f"{100 * min(shares):.0f} to {100 * max(shares):.0f}" if shares else "-")
        cells.append(f"{min(peaks):.2g} to {max(peaks):.2g}" if peaks else "-")
        losses = {n: [r["train_loss"] for r in own if r["config"]["model"] == n] for n in NETWORKS}
        cells.append(", ".join(f"{fmean(of):.3f}" if of else "-" for of in losses.values()))
        body.append(cells)
    headings = ("setting", *(f"{n} (%)" for n in NETWORKS), "mean (%)", "climb (% of the run)", "rate chosen")
    return markdown_table((*headings, "training loss of the last eighth, CNN and ViT"), body)


def factors(records: Sequence[Record]) -> str:
    """Hypergradients' factor by eighths of the run."""
    body = [
        [f"{r['config']['model']}, seed {r['config']['seed']}", *(f"{value:.2f}" for value in r["factors"])]
        for r in records
        if r["factors"]
    ]
    return markdown_table(("run", *(f"{eighth}/8" for eighth in range(1, 9))), body)


def sweeps(records: Sequence[Record]) -> str:
    """What is read from the finder's sweep, and how the smoothed loss falls there."""
    body = []
    for r in (r for r in records if r["sweep"]):
        rates, losses = torch.tensor(r["sweep"]["lr"]), torch.tensor(r["sweep"]["loss"])
        by_rate = torch.gradient(losses, spacing=[rates])[0]
        cells = [f"{r['config']['model']}, seed {r['config']['seed']}"]
        for rate in (r["sweep"]["suggested"], r["sweep"]["per_step"]):
            at = int((rates - rate).abs().argmin())
            fall = float(losses[max(0, at - 1)] - losses[min(len(losses) - 1, at + 1)])
            cells += [f"{rate:.2g}", f"{fall:.2g}", f"{float(by_rate[at]):.3g}"]
        body.append([*cells, f"{float(losses.max() - losses.min()):.2g}"])
    headings = ["run", "suggested", "fall there over two steps", "slope by the rate", "steepest per step", "fall there"]
    return markdown_table([*headings, "slope by the rate", "largest less smallest loss"], body)


def write(target: Path, records: Sequence[Record]) -> None:
    """Write ``target``.md and print it; findings below it are kept."""
    text = (
        "# Why the headline comes out as it does\n\nMade by `python -m benchmarks.headline_why`; what is compared is "
        f"in the module's docstring. Validation accuracy, seed {', '.join(map(str, SEEDS))}.\n\n## Climbs\n\n"
        f"{climbs(records)}\n## The factor of hypergradients, on top of AdaptiveWarmup\n\n{factors(records)}\n"
        f"## Lightning's learning rate finder: the smoothed loss in its sweep\n\n{sweeps(records)}"
    )
    write_keeping_findings(target, text)
    print(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the tables."""
    options = command_line(__doc__, "nothing more is known here", OWN, arguments)
    experiment: Experiment[Run] = Experiment.from_options(options, make, lambda run: TASKS[run.model].cpu_seconds)
    if options.dry_run:
        experiment.show(runs())
        return
    write(options.results.with_suffix(".md"), experiment.make(runs(), "run"))


if __name__ == "__main__":
    main()
