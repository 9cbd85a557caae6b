"""``plan`` and ``report`` for a script or a notebook, over the same code as the commands."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning_lr.callbacks import pictures

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer

    from lightning_lr.cli.shown import Report, ShownPlan

SETTINGS = (
    "max_epochs", "max_steps", "limit_train_batches", "overfit_batches", "fast_dev_run", "accumulate_grad_batches",
    "num_nodes", "precision",
)  # fmt: skip
"""Arguments of a Trainer that it keeps under the same name."""


_PLANNED: WeakKeyDictionary[Trainer, ShownPlan] = WeakKeyDictionary()
"""The last plan of each Trainer, whose picture its loggers get when training starts."""


def plan(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | Any = None) -> ShownPlan:
    """Show a run before it is trained: learning rate, batch, phases, and what its callbacks decide.

    Nothing is trained: module and callbacks are copied, and random numbers, loaders and data sets are as before. A data
    module's ``setup`` is called, as ``fit`` will call it again.

    Args:
        trainer: with its callbacks, before ``fit``.
        module: what will be trained.
        datamodule: where the training data come from: a ``LightningDataModule`` or a loader; the module's own
            ``train_dataloader`` where not given.

    Returns:
        The plan: ``print`` it, let a notebook show it, take its ``figure`` or ``save`` it. Loggers that take images get
        the picture when this Trainer begins to train.

    Raises:
        TypeError: for something else where a Trainer or a module belongs.
        MisconfigurationException: for what ``fit`` would refuse.
        ConfigurationError: where the data or the length of the run cannot be known.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> import lightning_lr as lr
        >>> schedule = lr.LearningRateSchedule(lr.Cosine(), module_scheduler="replace")
        >>> trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=[schedule])
        >>> lr.plan(trainer, BoringModel()).data.shape.total_updates
        128
    """
    from lightning_lr import lightning_internals as internals
    from lightning_lr.branches import RandomState
    from lightning_lr.callbacks.given_for_a_run import check_run
    from lightning_lr.cli.plan.configured_run import TrainerSettings, plan_run
    from lightning_lr.cli.plan.options import PlanOptions
    from lightning_lr.cli.plan.state_memory import configured_sharding
    from lightning_lr.cli.plan.table import picture_lines, plan_table, plan_title
    from lightning_lr.cli.shown import ShownPlan
    from lightning_lr.strategies import ZeROStrategy

    check_run("plan", trainer, module, datamodule)
    arguments = {name: getattr(trainer, name, None) for name in SETTINGS}
    timer = getattr(trainer, "_max_time", None)
    arguments |= {
        "devices": trainer.num_devices,
        "accelerator": "cpu",
        "max_time": timer,
        "use_distributed_sampler": internals.deals_to_devices(trainer),
    }
    memo = {id(trainer): trainer}
    callbacks = [copy.deepcopy(callback, dict(memo)) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    settings = TrainerSettings(**arguments, callbacks=callbacks)
    settings.checkpointing = getattr(trainer.strategy, "policy", None)
    if isinstance(trainer.strategy, ZeROStrategy):
        settings.sharding = configured_sharding(f"zero_{trainer.strategy.stage}")
    data: Any = datamodule
    if datamodule is not None and not hasattr(datamodule, "train_dataloader"):
        data = SimpleNamespace(setup=lambda stage: None, train_dataloader=lambda: datamodule, batch_size=None)
    random = RandomState()
    try:
        options = PlanOptions(without_data="call its prepare_data() before, or give plan a loader of as many samples")
        planned = plan_run(settings, copy.deepcopy(module, dict(memo)), data, options)
    finally:
        random.restore()
    title = plan_title(planned, type(module).__name__)

    def draw() -> Any:
        from lightning_lr.cli.plan.picture import plan_figure

        return plan_figure(planned, title, picture_lines(planned))

    shown = ShownPlan(title, plan_table(planned, title), draw, planned)
    _PLANNED[trainer] = shown
    return shown


def report(run: str | Path | Trainer, *more: str | Path | Trainer) -> Report:
    """Show what a run did and why, during it or afterwards; of several, which was better at what price.

    Args:
        run: a logger's directory (``version_N``), one above it whose newest run is taken, or a Trainer.
        *more: further runs, which are compared with the first.

    Returns:
        The report: ``print`` it, let a notebook show it, take its ``figure`` or ``save`` it.

    Raises:
        TypeError: for what is neither a path nor a Trainer.
        ConfigurationError: where there is no run.
    """
    from lightning_lr.cli.report.comparison import compare
    from lightning_lr.cli.report.comparison_summary import comparison_summary
    from lightning_lr.cli.report.record import find_run
    from lightning_lr.cli.report.resumed_run import read_whole_run
    from lightning_lr.cli.report.summary import picture_title, report_summary
    from lightning_lr.cli.shown import Report

    records = [read_whole_run(find_run(_directory(each))) for each in (run, *more)]
    if more:
        comparison = compare(records)

        def draw_comparison() -> Any:
            from lightning_lr.cli.report.comparison_picture import comparison_figure

            return comparison_figure(comparison)

        return Report(comparison.headline, comparison_summary(comparison), draw_comparison, comparison)
    (record,) = records
    title = picture_title(record.directory.name, record)

    def draw() -> Any:
        from lightning_lr.cli.report.picture import report_figure

        return report_figure(record, title)[0]

    return Report(title, report_summary(record, title), draw if record.metrics else None, record)


def _planned_figure(trainer: Trainer) -> Any:
    shown = _PLANNED.pop(trainer, None)
    return None if shown is None else shown.figure


def _reported_figure(trainer: Trainer) -> Any:
    from lightning_lr import lightning_internals as internals

    # without a local folder there is nothing to read, and a Trainer's log_dir would be a broadcast from rank 0 alone
    return None if internals.journal_folder(trainer) is None else report(trainer).figure


pictures.AT_START["plan"] = _planned_figure
pictures.AT_END["report"] = _reported_figure


def _directory(run: Any) -> Path:
    """A run's directory: the given one, or where the loggers of a Trainer (or our journals) wrote."""
    if isinstance(run, str | Path):
        return Path(run)
    from lightning.pytorch import Trainer

    from lightning_lr import lightning_internals as internals
    from lightning_lr.callbacks.given_for_a_run import described_briefly
    from lightning_lr.cli.errors import ConfigurationError

    if not isinstance(run, Trainer):
        raise TypeError(
            f"report: got {described_briefly(run)}; give a run's directory or a Trainer, several as report(one, other)"
        )
    if not run.loggers or internals.is_fast_dev_run(run):  # whatever lies in its directory is of other runs
        raise ConfigurationError(
            "report: this Trainer has no logger (logger=False, barebones or fast_dev_run), so nothing of its run was "
            "written down; give it one, for example CSVLogger('logs')"
        )
    for logger in run.loggers:
        logger.save()
    folder = internals.journal_folder(run)
    return Path(run.log_dir or run.default_root_dir) if folder is None else folder.parent
