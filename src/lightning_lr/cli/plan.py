"""``lightning-lr plan``: read a configuration as ``fit`` would, and show the run without training it.

No Trainer is built, so a plan for eight GPUs works on a laptop; ``prepare_data`` is never called, so nothing is
downloaded; no logger is made, so nothing is written but the picture that was asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer

from lightning_lr.cli.errors import refusing
from lightning_lr.cli.plan_table import plan_table, plan_title, run_facts
from lightning_lr.cli.planned_memory import configured_policy
from lightning_lr.cli.planned_run import PlanOptions, TrainerSettings, plan_run
from lightning_lr.cli.terminal import terminal
from lightning_lr.cli.trainer_cli import REFUSALS, LearningRateCLI


def plan(words: Sequence[str]) -> None:
    """Print the plan of a run, and draw it where ``--out`` is given.

    Args:
        words: the options.

    Raises:
        ConfigurationError: for a configuration that ``fit`` would refuse too, or whose size cannot be known.
    """
    options, rest = _parse(words)
    configured = PlanCLI(rest)
    with refusing("plan: ", REFUSALS):
        planned = plan_run(configured.settings, configured.model, configured.datamodule, options)
    name = options.config or "the run"
    terminal().print(plan_table(planned, plan_title(planned, name)))
    if options.out is not None:
        from lightning_lr.cli.plan_picture import save_plan_picture

        lines = [f"{heading}: {fact.splitlines()[0]}" for heading, fact in run_facts(planned).items()]
        with refusing(f"plan: the picture could not be written to {options.out}: "):
            save_plan_picture(
                planned,
                plan_title(planned, Path(name).name),
                [*lines, *(f"note: {note}" for note in planned.notes)],
                options.out,
            )
        terminal().print(f"picture: {options.out}")


def _parse(words: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    parser = argparse.ArgumentParser(
        "lightning-lr plan",
        description="Show learning rate, batch and phases of a run before it is trained. Nothing is downloaded, and "
        "nothing is written but the picture.",
        epilog="Every other option overrides the configuration as in `lightning-lr fit`, for example "
        "--trainer.max_epochs 3 (see `lightning-lr fit --help`).",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="append", metavar="C", help="configuration of `fit`; may be repeated")
    parser.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes (any format of matplotlib)")
    parser.add_argument(
        "--dataset-size", type=int, metavar="N", help="training samples, where the data is not here yet"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="B", help="the loader's batch size: samples per device and backward"
    )
    parser.add_argument("--world-size", type=int, metavar="W", help="devices that train together")
    given, rest = parser.parse_known_args(words)
    configs: list[str] = given.config or []
    rest = [*(word for path in configs for word in ("--config", path)), *rest]
    return PlanOptions(
        configs[-1] if configs else None, given.out, given.dataset_size, given.batch_size, given.world_size
    ), rest


# ---------------------------------------------------------------------- the configuration, without a Trainer
class PlanCLI(LearningRateCLI):
    """Parse a configuration of ``fit`` and instantiate model, data and callbacks, but no Trainer.

    Args:
        words: the options of ``fit``.
    """

    settings: TrainerSettings
    strategy: Any = None

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(["fit", *words])

    def before_instantiate_classes(self) -> None:
        self.strategy = self.config["fit"]["trainer"].get("strategy")
        for name in ("logger", "strategy", "profiler", "plugins"):  # may touch devices, files or the network
            self.config["fit"]["trainer"][name] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        extra = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        self.settings = TrainerSettings(**self._get(self.config_init, "trainer"))
        self.settings.callbacks += extra
        self.settings.checkpointing = configured_policy(self.strategy)
        return cast(Trainer, self.settings)
