"""``lightning-lr doctor``: versions, extras, and whether a configuration would start."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.printable import cell
from lightning_lr.cli.terminal import summary_block, terminal
from lightning_lr_command import __version__

PACKAGES = ("lightning-lr", "torch", "lightning", "torchmetrics", "gpytorch", "jsonargparse", "matplotlib", "rich")
"""What is always needed."""

EXTRAS = {
    "deepspeed": ("deepspeed", "ZeROStrategy"),
    "optimizers": ("pytorch_optimizer", "AdamP and others"),
    "finetune": ("transformers", "the fine-tuning examples"),
    "examples": ("sklearn", "the examples on digits"),
    "loggers": ("wandb", "WandbLogger; MLFlowLogger needs mlflow, TensorBoardLogger tensorboard"),
    "triton": ("triton", "compression on a GPU"),
}
"""By the extra: the module that it brings, and what needs it."""


def doctor(words: Sequence[str]) -> int:
    """Print what is installed and, for a configuration, what is attached and whether ``fit`` would start.

    Args:
        words: the options.

    Returns:
        0, or 2 where the configuration would be refused.
    """
    parser = argparse.ArgumentParser(
        "lightning-lr doctor", description="Show versions, missing extras, and whether a configuration would start."
    )
    parser.add_argument("-c", "--config", metavar="C", help="configuration of `fit`")
    parser.add_argument("--dataset-size", metavar="N", help="training samples, where the data is not here yet")
    given = parser.parse_args(list(words))
    console = terminal()
    console.print(summary_block({**versions(), **missing_extras()}))
    if given.config is None:
        return 0
    console.print()
    from lightning_lr.callbacks.base import MethodCallback
    from lightning_lr.cli.plan.command import PlanCLI, planned_run
    from lightning_lr.cli.plan.options import parse_options

    size = ["--dataset-size", given.dataset_size] if given.dataset_size else []
    try:
        configured, planned = planned_run(*parse_options(["--config", given.config, *size]))
    except ConfigurationError as error:
        console.print(cell(f"refused: {error}", style="red"))
        return 2
    assert isinstance(configured, PlanCLI)
    attached = [type(c).__name__ for c in configured.settings.callbacks if isinstance(c, MethodCallback)]
    facts = {"attached": ", ".join(attached) or "no callback of lightning_lr", **planned.summary}
    console.print(summary_block({heading: fact.partition("\n")[0] for heading, fact in facts.items()}))
    for note in planned.notes:
        console.print(cell(f"note: {note}", style="yellow"))
    console.print(cell("`fit` would start", style="green"))
    return 0


def versions() -> dict[str, str]:
    """What is installed, by its name."""
    found = {"python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    return found | {name: _version(name) for name in PACKAGES}


def missing_extras() -> dict[str, str]:
    """The extras that are not installed: what needs each, and what brings it."""
    return {
        f"extra {extra}": f"not installed; needed by {what}: pip install '{_requirement(extra)}'"
        for extra, (module, what) in EXTRAS.items()
        if find_spec(module) is None
    }


def _requirement(extra: str) -> str:
    """The first requirement of an extra, as pip takes it."""
    try:
        listed = requires("lightning-lr") or []
    except PackageNotFoundError:
        listed = []
    for line in listed:
        requirement, _, marker = line.partition(";")
        if f"extra == '{extra}'" in marker.replace('"', "'"):
            return requirement.strip()
    return EXTRAS[extra][0].replace("sklearn", "scikit-learn").replace("_", "-")


def _version(name: str) -> str:
    if name == "lightning-lr":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
