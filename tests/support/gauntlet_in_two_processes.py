"""What every row of the gauntlet runs under in two processes: DDP, ZeRO's stages, FSDP2; one group for all of it.

A row joins all strategies by being in `gauntlet.ROWS`, a strategy joins all rows by being in `STRATEGIES`. The runs
are functions of the two, picklable by name, which return plain facts; `test_gauntlet.py` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_lr import CheckpointedDDPStrategy, CheckpointPolicy
from tests.support.gauntlet import BATCH, ROWS, Row
from tests.support.toy import ResumableLoader, Toy, data, fit
from tests.support.two_processes import WORLD, ddp, fsdp2, shard
from tests.support.zero_runs import Watch, zero

SAMPLES, EPOCHS, UPDATES = 50, 3, 21
"""Seven updates an epoch, the last of two samples."""
SAVED = 10
"""Update after which a run is resumed, in the middle of an epoch."""
RAGGED = 40
"""Samples of ten micro-batches of two on each device, so that windows of three leave one."""


@dataclass(frozen=True)
class TwoProcessStrategy:
    """A strategy over two processes.

    Args:
        name: as the rows refuse it.
        trainer: Trainer arguments that join the group, for a policy of checkpointing where there is one.
        module: the toy as the strategy asks for it.
        yaml: the strategy in a LightningCLI configuration.
        checkpoints: whether it takes a policy.
    """

    name: str
    trainer: Callable[[CheckpointPolicy | None], dict[str, Any]]
    module: type[Toy]
    yaml: Any
    checkpoints: bool = True


class Sharded(Toy):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        shard(self, self.body, self.head, self)


def _ddp(policy: CheckpointPolicy | None) -> dict[str, Any]:
    return ddp(None if policy is None else partial(CheckpointedDDPStrategy, policy))


def _zero(stage: int) -> Callable[[CheckpointPolicy | None], dict[str, Any]]:
    return lambda policy: zero(stage, checkpointing=policy)


_FSDP2 = {"data_parallel_size": WORLD, "tensor_parallel_size": 1}
STRATEGIES = (
    TwoProcessStrategy("ddp", _ddp, Toy, "ddp"),
    TwoProcessStrategy("zero_1", _zero(1), Toy, {"class_path": "lightning_lr.ZeROStrategy", "init_args": {"stage": 1}}),
    TwoProcessStrategy("zero_2", _zero(2), Toy, "zero_2"),
    TwoProcessStrategy("zero_3", _zero(3), Toy, "zero_3"),
    TwoProcessStrategy(
        "fsdp2",
        lambda policy: fsdp2(),
        Sharded,
        {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": _FSDP2},
        checkpoints=False,
    ),
)
Pair = tuple[Row, TwoProcessStrategy]


def pairs() -> list[Pair]:
    """All of them, those that are refused included."""
    return [(row, strategy) for row in ROWS for strategy in STRATEGIES if row.policy is None or strategy.checkpoints]


def loader(samples: int, micro: int) -> ResumableLoader:
    return ResumableLoader(data(samples), micro, torch.distributed.get_rank(), WORLD)


def _pair(row: str, over: str) -> Pair:
    return next(r for r in ROWS if r.name == row), next(s for s in STRATEGIES if s.name == over)


def run(
    row: str, over: str, samples: int = SAMPLES, micro: int = BATCH // WORLD, save: str = "", **arguments: Any
) -> dict[str, Any]:
    """What a fit of the row under the strategy did."""
    method, strategy = _pair(row, over)
    watch, module = Watch(), strategy.module(method.configure)
    callbacks = [*method.make(), watch]
    if save:
        callbacks.append(ModelCheckpoint(save, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1))
        arguments["enable_checkpointing"] = True
    arguments.setdefault("max_epochs", EPOCHS)
    joined = strategy.trainer(method.policy)
    _, trainer = fit(
        callbacks, module=module, loader=loader(samples, micro), use_distributed_sampler=False, **joined, **arguments
    )
    return {**watch.facts(trainer), "wrapped": "lr_scheduler_step" in vars(module)}


def accumulated(row: str, over: str, micro_batches: int) -> dict[str, Any]:
    """Two samples on each device at a time; the last update of an epoch has less where the windows do not fit."""
    return run(row, over, RAGGED, 2, accumulate_grad_batches=micro_batches)


def from_yaml(row: str, over: str, folder: str) -> dict[str, Any]:
    """What a fit did whose Trainer was written, parsed, written again and parsed again."""
    method, strategy = _pair(row, over)
    trainer = {
        "callbacks": method.yaml, "strategy": strategy.yaml, "devices": WORLD, "max_epochs": EPOCHS,
        "use_distributed_sampler": False, "accelerator": "cpu", "logger": False, "default_root_dir": folder,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    file = Path(folder) / f"{row}-{over}-{torch.distributed.get_rank()}.yaml"
    file.write_text(yaml.safe_dump({"trainer": trainer}))
    for last in (False, True):
        with mock.patch("sys.argv", ["lightning-lr"]):
            cli = LightningCLI(
                Toy, run=False, save_config_callback=None, args=["--config", str(file)],
                auto_configure_optimizers=False, seed_everything_default=False,
            )  # fmt: skip
        if not last:
            file.write_text(cli.parser.dump(cli.config))
    watch = Watch()
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(strategy.module(method.configure), loader(SAMPLES, BATCH // WORLD))
    return watch.facts(cli.trainer)


def refused(pair: Pair) -> str | None:
    """What the error of a pair says that is refused."""
    return pair[0].refuses.get(pair[1].name)
