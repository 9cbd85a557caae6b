"""``lightning-lr init``: a first configuration for a module and its data, with a comment for every choice."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.printable import cell
from lightning_lr.cli.suggestions import find_class, nearest_class
from lightning_lr.cli.terminal import terminal

REPLACE = "\n  module_scheduler: replace  # of the one in configure_optimizers; multiply applies both"
"""Of a callback that decays the rate, where the module has an LR scheduler of its own."""

CHOICES: dict[str, tuple[str, str]] = {
    "schedule": (
        "The learning rate is known: 5 % of the run climb to it, the rest falls along a cosine to 0 at the end.",
        """\
- class_path: LearningRateSchedule
  init_args:
    curve: {class_path: Cosine, init_args: {warmup: 0.05}}""",
    ),
    "unknown-rate": (
        "The learning rate is unknown: a race of short runs finds it before the first update. It costs "
        "half of a run of 256 updates and a smaller share of longer ones, and takes the place of LearningRateSchedule.",
        """\
- class_path: LearningRateSearch
  init_args:
    curve: {class_path: Cosine, init_args: {warmup: 0.05}}""",
    ),
    "larger-batch": (
        "The batch is larger than the one for which the rate was tuned (give that, in samples per update): linear for "
        "SGD, sqrt for Adam and its kin.",
        """\
- class_path: LearningRateScaling
  init_args: {reference_batch_size: 32, lr_rule: linear, warmup_epochs: 1}""",
    ),
    "fine-tuning": (
        "Fine-tuning a pretrained model: each layer's rate is 0.8 times that of the one above.",
        """\
- class_path: LayerwiseLRDecay
  init_args: {decay: 0.8}""",
    ),
}
"""What troubles the user: why its callback, and the callback."""

HEAD = """\
# Made by `lightning-lr init` for {model}. Look at the run, train it, look at it again:
#   lightning-lr plan --config {path}
#   lightning-lr fit --config {path}
#   lightning-lr report {runs}/{name}
seed_everything: 1
trainer:
  max_epochs: 10  # the curves end with the run, whatever its length is
  # accumulate_grad_batches: 4  # samples per update: batch x this x devices
  # strategy: checkpointed  # out of memory for activations; for optimizer and gradients: zero_2 (needs deepspeed)
  logger:
    class_path: CSVLogger  # or TensorBoardLogger, WandbLogger, MLFlowLogger
    init_args: {{save_dir: {runs}, name: {name}}}
  callbacks:
"""

RUNS = "runs"


def init(words: Sequence[str]) -> None:
    """Write the configuration.

    Args:
        words: the options.

    Raises:
        ConfigurationError: for a class that does not exist or is another kind of class, and for a file that exists.
    """
    parser = argparse.ArgumentParser(
        "lightning-lr init",
        description="Write a first configuration for `plan` and `fit`, with a comment for every choice.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH", help="import path of the LightningModule: package.module.Class"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="of the LightningDataModule; else the module has its own loaders"
    )
    parser.add_argument(
        "--for",
        dest="problem",
        choices=[*CHOICES],
        default="schedule",
        help="which callback is attached; the others are comments",
    )
    parser.add_argument("--out", type=Path, default=Path("config.yaml"), metavar="YAML", help="default: config.yaml")
    given = parser.parse_args(list(words))
    text = configuration(given.model, given.data, given.problem, given.out)
    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigurationError(f"init: {given.out} exists; give another file (--out), or move it away") from error
    except OSError as error:
        raise ConfigurationError(f"init: {given.out} cannot be written ({error.strerror or error})") from error
    terminal().print(cell(f"written: {given.out}; next: lightning-lr plan --config {given.out}"))


def configuration(model: str, data: str | None, problem: str, path: Path) -> str:
    """The text of a configuration.

    Args:
        model: import path of the module.
        data: import path of the data module, if there is one.
        problem: a key of :data:`CHOICES`.
        path: where it will be, for the commands in its first lines.

    Raises:
        ConfigurationError: for a class that does not exist, or is another kind of class.
    """
    module = _class_at(model, LightningModule, "--model")
    sections = [_section("model", model, module)]
    if data is not None:
        sections.append(_section("data", data, _class_at(data, LightningDataModule, "--data")))
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", module.__name__).lower()
    text = HEAD.format(model=model, path=path, runs=RUNS, name=name)
    for key, (why, callback) in CHOICES.items():
        if "curve:" in callback and _has_scheduler(module):
            callback += REPLACE.replace("\n", "\n  ")
        comment = textwrap.fill(why, 112, initial_indent="# ", subsequent_indent="# ")
        shown = callback if key == problem else textwrap.indent(callback, "# ")
        text += textwrap.indent(f"{comment}\n{shown}\n", "    ")
    return text + "".join(sections)


def _class_at(path: str, kind: type, option: str) -> type:
    """The class of an import path.

    Raises:
        ConfigurationError: with the nearest name, or with what the class is instead.
    """
    found = find_class(path, [kind]) if "." in path else None
    if found is None:
        hint = nearest_class(path, [kind]) if "." in path else "; give package.module.Class, as in an import"
        raise ConfigurationError(f"init: there is no class {path!r} at {option}{hint}")
    if not issubclass(found, kind):
        other = {"--model": (LightningDataModule, "--data"), "--data": (LightningModule, "--model")}[option]
        hint = f"; it belongs at {other[1]}" if issubclass(found, other[0]) else ""
        raise ConfigurationError(f"init: {path} at {option} is no {kind.__name__} of lightning.pytorch{hint}")
    return found


def _section(heading: str, path: str, kind: type) -> str:
    """A class with the arguments of its constructor: defaults as they are, the others to be filled in."""
    lines = [f"{heading}:", f"  class_path: {path}"]
    given, wanted = [], []
    for parameter in list(inspect.signature(kind).parameters.values()):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            annotation = parameter.annotation
            of = getattr(annotation, "__name__", str(annotation)) if annotation is not parameter.empty else "a value"
            wanted.append(f"    {parameter.name}:  # no default: give {of}")
        elif _is_plain(parameter.default):
            value = yaml.safe_dump(parameter.default, default_flow_style=True).removesuffix("...\n").strip()
            given.append(f"    {parameter.name}: {value}")
    return "\n".join([*lines, *(["  init_args:"] if given or wanted else []), *wanted, *given, ""])


def _is_plain(value: Any) -> bool:
    """Whether YAML holds a value as it is."""
    return isinstance(value, bool | int | float | str) or (isinstance(value, list) and all(map(_is_plain, value)))


def _has_scheduler(module: type) -> bool:
    """Whether a module's ``configure_optimizers`` seems to return an LR scheduler, read off its source."""
    try:
        return "sched" in inspect.getsource(module.configure_optimizers).lower()  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return False
