"""``lightning-lr fit|validate|test|predict``: Lightning's own command line, with clear errors for what it refuses.

Model and data are given by ``class_path``; every public name of :mod:`lightning_lr` can be used without a module path.
A configuration that is refused leaves nothing on disk, as far as this package writes it.
"""

from __future__ import annotations

import argparse
import signal
import typing
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeUnion, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.base import members_of
from lightning_lr.callbacks.pytorch_lightning_check import hint_of_mirror
from lightning_lr.cli.config_files import check_files
from lightning_lr.cli.errors import EXPLAINED, ConfigurationError, described, refusing
from lightning_lr.cli.suggestions import Known, complaints_of
from lightning_lr.curves import Curve
from lightning_lr.journal import JournalFolder
from lightning_lr.patching import override_on_instance
from lightning_lr.stopwatch import JOURNAL as SECONDS
from lightning_lr.stopwatch import Stopwatch

BASES = (Callback, Curve, LightningModule, LightningDataModule, torch.optim.Optimizer)


REFUSALS = (*EXPLAINED, MisconfigurationException)
"""What a configuration can be blamed for before anything has been trained."""


class LateSaveConfigCallback(SaveConfigCallback):
    """Write ``config.yaml`` of a ``fit`` only when training starts.

    Lightning writes it in ``setup``, before other callbacks have had a chance to refuse. This one is the last in the
    Trainer's order, so its ``on_train_start`` comes after everything that refuses a configuration. The other commands
    write theirs in ``setup``, as Lightning does, but only where a logger has a directory for it: without one it would
    land in the working directory, and the next command would refuse to overwrite it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or (stage != "fit" and not trainer.loggers):
            return
        log_dir = trainer.log_dir  # read on every rank: Lightning broadcasts it
        exists = log_dir is not None and (Path(log_dir) / self.config_filename).is_file()
        self.overwrite |= stage == "fit" and self.config.ckpt_path is not None  # it goes on, as it is configured now
        if trainer.strategy.broadcast(exists) and not self.overwrite:
            raise MisconfigurationException(
                f"{log_dir} holds the {self.config_filename} of an earlier run, which this one would overwrite; move "
                "it away, or set trainer.logger or trainer.default_root_dir to another place, or go on with that run "
                "from its checkpoint (--ckpt_path)"
            )
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


class Begun(Callback):
    """Remembers whether a loop has begun: what goes wrong from then on is not the configuration's fault."""

    def __init__(self) -> None:
        self.begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        load = trainer.strategy.load_checkpoint  # by then it is known which one `last` is

        def load_whole(path: str | Path, *args: Any, **kwargs: Any) -> Any:
            refuse_half_a_checkpoint(path)
            return load(path, *args, **kwargs)

        self._undo = override_on_instance(trainer.strategy, "load_checkpoint", load_whole)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._undo()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True


class Stoppable(Callback):
    """Lets SIGTERM end a run of several processes as it ends a run of one: after a micro-batch, by way of saving."""

    def __init__(self) -> None:
        self._undo: Callable[[], None] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._undo = internals.agree_on_sigterm(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None


class Timed(Callback):
    """Writes down the seconds of a run without our callbacks (those write them themselves), for ``report``."""

    def __init__(self) -> None:
        self._stopwatch: Stopwatch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not members_of(trainer):
            journal = JournalFolder(internals.journal_folder(trainer)).journal(SECONDS)
            if journal is not None:
                self._stopwatch = Stopwatch(journal, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stopwatch is not None and internals.logs_now(trainer):
            self._stopwatch.note(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stopwatch is not None:
            self._stopwatch.note(trainer.global_step)


class LearningRateCLI(LightningCLI):
    """`LightningCLI` for any model and data, whose parsers raise, with the nearest names, instead of exiting.

    Args:
        words: the command and its options.
        **kwargs: as of `LightningCLI`.

    Raises:
        ConfigurationError: for a configuration that cannot be parsed or instantiated.
    """

    def __init__(self, words: Sequence[str], **kwargs: Any) -> None:
        self.words = list(words)
        self.parsers: list[LightningArgumentParser] = []
        quiet = {"exit_on_error": False}
        super().__init__(
            save_config_callback=LateSaveConfigCallback,
            parser_kwargs={"prog": "lightning-lr", **quiet, **{command: dict(quiet) for command in self.subcommands()}},
            **kwargs,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # an instance's: only the command given
        every = LightningCLI.subcommands()
        given = next((word for word in self.words if word in every), None)
        return every if given is None else {given: every[given]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.parsers.append(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_files(self.words)
        try:
            self.config = parser.parse_args(self.words)
        except argparse.ArgumentError as error:
            complaints = complaints_of(self.words, self.known())
            refusal = "\n".join(complaints) or _nothing_given(self.words, str(error.message))
            refusal = refusal or _shortened(str(error.message))
            raise ConfigurationError(refusal + hint_of_mirror(refusal)) from error
        with refusing(kinds=REFUSALS):  # LightningCLI reads hyperparameters from it before anything else
            refuse_half_a_checkpoint(self.config[self.config.subcommand].get("ckpt_path"))

    def instantiate_classes(self) -> None:
        with refusing(kinds=REFUSALS):
            super().instantiate_classes()

    def known(self) -> Known:
        """The names that the given command accepts."""
        command, parser = next(iter(self.subcommands())), self.parsers[0]
        types = {f"trainer.{name}": hint for name, hint in typing.get_type_hints(Trainer.__init__).items()}
        types |= {"model": LightningModule, "data": LightningDataModule}
        types |= {"optimizer": torch.optim.Optimizer, "lr_scheduler": LRSchedulerTypeUnion}
        return Known(command, list(parser.get_defaults().keys()), types, BASES)


def refuse_half_a_checkpoint(path: Any) -> None:
    """Name the file that cannot be read; torch's error for half a file names only the position it failed at.

    Raises:
        MisconfigurationException: for a file that is empty, or begins as torch's archives do and does not end so.
    """
    if path is None or not Path(path).is_file() or zipfile.is_zipfile(path):
        return
    with Path(path).open("rb") as file:
        begins = file.read(2)
    if begins in (b"", b"PK"):
        raise MisconfigurationException(
            f"{path} is no whole checkpoint ({Path(path).stat().st_size:,} bytes are there): it was cut short while it "
            "was written or copied; go on from an earlier one (--ckpt_path)"
        )


def run_trainer(words: Sequence[str]) -> None:
    """Run a command of Lightning's.

    Args:
        words: the command and its options.

    Raises:
        ConfigurationError: for a configuration that cannot work, found before the first batch.
        SystemExit: 143 where the process got SIGTERM and ended.
    """
    begun = Begun()
    try:
        LearningRateCLI(words, trainer_defaults={"callbacks": [begun, Stoppable(), Timed()]})
    except SIGTERMException as stopped:  # which Lightning lets end with 0, as if there were nothing left to do
        raise SystemExit(128 + signal.SIGTERM if getattr(rank_zero_only, "rank", 0) == 0 else 0) from stopped
    except (MisconfigurationException, argparse.ArgumentError) as error:  # the latter: hyperparameters in a checkpoint
        raise ConfigurationError(described(error)) from error
    except EXPLAINED as error:
        if begun.begun:
            raise
        raise ConfigurationError(described(error)) from error


def _nothing_given(words: Sequence[str], message: str) -> str:
    """What to do where no model is given, of which jsonargparse knows the option's name alone; else empty."""
    if "required" not in message or "model" not in message:
        return ""
    given = f"{' '.join(words[1:])!r} names" if len(words) > 1 else "there is"
    return (
        f"{given} no model; give --config C, or --model package.module.Class and --data package.module.Data "
        "(lightning-lr init --model package.module.Class writes a first configuration)"
    )


def _shortened(message: str) -> str:
    """jsonargparse's message without what it could not know to be useless here."""
    noise = (
        "Expected a <class 'NoneType'>",
        "Given value type",
        "Subtypes:",
        "Does not validate against any",
        "Errors:",
    )
    lines = [line for line in message.splitlines() if not line.strip().lstrip("- ").startswith(noise)]
    return "\n".join(line for line in lines if "Given value:" not in line or len(line) < 80)
