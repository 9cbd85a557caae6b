"""``lightning-lr plan``: read a configuration as ``fit`` would, and show the run without training it.

No Trainer is built, so a plan for eight GPUs works on a laptop; ``prepare_data`` is never called, so nothing is
downloaded; no logger is made, so nothing is written but the picture of ``--out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry

from lightning_lr.cli.errors import ConfigurationError, refusing
from lightning_lr.cli.nearest import did_you_mean
from lightning_lr.cli.plan.activation_memory import configured_policy
from lightning_lr.cli.plan.configured_run import TrainerSettings, plan_run
from lightning_lr.cli.plan.model import Plan
from lightning_lr.cli.plan.options import PlanOptions, parse_options
from lightning_lr.cli.plan.state_memory import configured_sharding
from lightning_lr.cli.plan.table import picture_lines, plan_table, plan_title
from lightning_lr.cli.printable import cell
from lightning_lr.cli.terminal import terminal
from lightning_lr.cli.trainer_cli import REFUSALS, LearningRateCLI
from lightning_lr.strategies import CheckpointedStrategy


def plan(words: Sequence[str]) -> None:
    """Print the plan of a run, and draw it where ``--out`` is given.

    Args:
        words: the options.

    Raises:
        ConfigurationError: for a configuration that ``fit`` would refuse too, or whose size cannot be known.
    """
    options, rest = parse_options(words)
    _, planned = planned_run(options, rest)
    name = options.config or "the run"
    terminal().print(plan_table(planned, plan_title(planned, name)))
    if options.out is not None:
        from lightning_lr.cli.plan.picture import plan_figure, save_plan_picture
        from lightning_lr.cli.shown import ShownPlan

        title, lines = plan_title(planned, Path(name).name), picture_lines(planned)
        with refusing(f"plan: the picture could not be written to {options.out}: "):
            if options.out.suffix == ".html":
                table = plan_table(planned, title)
                ShownPlan(title, table, lambda: plan_figure(planned, title, lines), planned).save(options.out)
            else:
                save_plan_picture(planned, title, lines, options.out)
        terminal().print(cell(f"picture: {options.out}"))


def planned_run(options: PlanOptions, rest: Sequence[str]) -> tuple[PlanCLI, Plan]:
    """What is configured, and the plan of it.

    Args:
        options: of ``plan``, as :func:`~lightning_lr.cli.plan.options.parse_options` returns them.
        rest: the words that are left for the configuration.

    Raises:
        ConfigurationError: as for :func:`plan`.
    """
    configured = PlanCLI(rest)
    with refusing("plan: ", REFUSALS):
        return configured, plan_run(configured.settings, configured.model, configured.datamodule, options)


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
        _check_strategy(self.strategy)
        for name in ("logger", "strategy", "profiler", "plugins"):  # may touch devices, files or the network
            self.config["fit"]["trainer"][name] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        extra = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        self.settings = TrainerSettings(**self._get(self.config_init, "trainer"))
        self.settings.callbacks += extra
        self.settings.checkpointing = configured_policy(self.strategy)
        named = self.strategy.get("class_path", "") if hasattr(self.strategy, "get") else self.strategy
        one_device = (CheckpointedStrategy.strategy_name, CheckpointedStrategy.__name__)
        self.settings.one_device = str(named).rpartition(".")[2] in one_device
        self.settings.sharding = configured_sharding(self.strategy)
        return cast(Trainer, self.settings)


def _check_strategy(strategy: Any) -> None:
    """Refuse a name that ``fit`` would refuse; no strategy is made for a plan, so nobody else would look at it.

    Raises:
        ConfigurationError: with the nearest name.
    """
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        nearest = did_you_mean(strategy, known)
        raise ConfigurationError(
            f"there is no strategy {strategy!r} at trainer.strategy{nearest or '; known are ' + ', '.join(known)}"
        )
