"""``lightning-lr doctor``: versions, extras, and whether a configuration would start."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.printable import cell
from lightning_lr.cli.terminal import summary_block, terminal
from lightning_lr_command import __version__

PACKAGES = ("lightning-lr", "torch", "lightning", "torchmetrics", "gpytorch", "jsonargparse", "matplotlib", "rich")
"""What is always needed."""

OPTIONAL = {
    "deepspeed": "ZeROStrategy",
    "pytorch_optimizer": "AdamP",
    "transformers": "the fine-tuning examples",
    "sklearn": "the examples on digits",
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "triton": "compression on a GPU",
}
"""What needs each module that an extra brings."""


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
    """The optional packages that are not installed: what needs each, and what brings it."""
    return {
        _package(module): f"not installed; for {what}: pip install '{_requirement(module)}'"
        for module, what in OPTIONAL.items()
        if find_spec(module) is None
    }


def _requirement(module: str) -> str:
    """What brings a module, as pip takes it, with the version that this package's metadata ask for."""
    package = _package(module)
    try:
        listed = requires("lightning-lr") or []
    except PackageNotFoundError:
        listed = []
    for line in listed:
        requirement, _, marker = line.partition(";")
        if re.match(rf"{package}\b(?!-)", requirement.strip()) and "dev" not in marker:
            return requirement.strip()
    return package


def _package(module: str) -> str:
    return module.replace("sklearn", "scikit-learn").replace("_", "-")


def _version(name: str) -> str:
    if name == "lightning-lr":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
