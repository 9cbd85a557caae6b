"""docs/architecture.md holds: floors, circles, one writer, private attributes of Lightning and DeepSpeed, public names.

What is read is the code itself, by its syntax tree, and what a fresh interpreter imports.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

import lightning_lr as lr
from lightning_lr import optim

SOURCE = Path(__file__).parents[1] / "src" / "lightning_lr"
ROOMS = ("batch_size", "warmup", "search", "branches", "layers", "hypergradient", "optim", "activations")
SHARED = (
    "curves",
    "progress",
    "learning_rate",
    "multiplied",
    "base_rates",
    "c_library",
    "gaussian_process",
    "shards",
    "journal",
    "checks",
    "saved_state",
    "nested",
    "panels",
    "search_picture",
    "optimizer_copy",
    "patching",
)
METHODS = (*ROOMS, "scaling", "weight_decay", "memory", "sharded_memory", "step_time", "stopwatch")
PUBLIC = {
    **{name: getattr(lr, name) for name in lr.__all__},
    **{f"optim.{name}": getattr(optim, name) for name in optim.__all__},
}


def trees(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    """Path below the sources and syntax tree of every module, or of those of some rooms."""
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if not rooms or place.parts[0].removesuffix(".py") in rooms:
            yield place, ast.parse(path.read_text(encoding="utf-8"))


def running(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node of a module but those under ``if TYPE_CHECKING:``, which no interpreter runs."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imports(tree: ast.Module) -> Iterator[str]:
    """Every name that a module imports, in full."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(room: str) -> set[str]:
    """What the modules of a room import, by the first two parts of its path."""
    return {".".join(name.split(".")[:2]) for _, tree in trees(room) for name in imports(tree)}


# ---------------------------------------------------------------------- floors
@pytest.mark.parametrize("room", [*METHODS, *SHARED])
def test_methods_import_neither_lightning_nor_each_other(room: str) -> None:
    allowed = {f"lightning_lr.{name}" for name in (*SHARED, room, *(["activations"] if room == "memory" else []))}
    imported = imports_of(room)
    assert imported, "nothing was read"
    assert {name for name in imported if name.startswith("lightning_lr")} <= allowed
    assert not {name for name in imported if name.split(".")[0] in ("lightning", "pytorch_lightning")}


@pytest.mark.parametrize("room", ["callbacks", "strategies", "lightning_internals"])
def test_adapters_do_not_import_the_command_line(room: str) -> None:
    assert "lightning_lr.cli" not in imports_of(room)


def test_every_room_is_on_a_floor() -> None:
    here = {place.parts[0].removesuffix(".py") for place, _ in trees()} - {"__init__"}
    assert here == {"cli", "callbacks", "strategies", "lightning_internals", *METHODS, *SHARED}


def test_no_module_imports_one_that_imports_it() -> None:
    names = {".".join(("lightning_lr", *place.with_suffix("").parts)).removesuffix(".__init__") for place, _ in trees()}
    arrows: dict[str, set[str]] = {}
    for place, tree in trees():
        name = ".".join(("lightning_lr", *place.with_suffix("").parts)).removesuffix(".__init__")
        found = {full if full in names else full.rpartition(".")[0] for full in imports(tree)}
        arrows[name] = (found & names) - {name}
    while ground := {name for name, below in arrows.items() if not below & set(arrows)}:
        arrows = {name: below for name, below in arrows.items() if name not in ground}
    assert not arrows


# ---------------------------------------------------------------------- who may touch what
def test_learning_rates_are_written_in_one_module() -> None:
    writers = set()
    for place, tree in trees():
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else targets
            for target in targets:
                if isinstance(target, ast.Subscript) and ast.unparse(target.slice) == "'lr'":
                    writers.add(str(place))
    assert writers == {"learning_rate.py"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_privates_of_lightning_are_touched_in_one_room() -> None:
    theirs = ("trainer", "loop", "strategy", "plugin", "connector", "logger")
    touched: dict[str, list[str]] = {}
    for place, tree in trees():
        found = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and any(word in ast.unparse(node.value).rpartition(".")[2] for word in theirs)
        ]
        found += [
            name for name in imports(tree) if name.startswith("lightning.") and any(map(is_private, name.split(".")))
        ]
        if found:
            touched.setdefault(place.parts[0], []).extend(found)
    assert set(touched) == {"lightning_internals"}


def test_deepspeed_is_imported_by_strategies_alone() -> None:
    rooms = {
        place.parts[0] for place, tree in trees() if any(name.split(".")[0] == "deepspeed" for name in imports(tree))
    }
    assert rooms == {"strategies"}


def test_what_tests_share_is_imported_from_the_support_package() -> None:
    tests = Path(__file__).parent
    alone = {path.name for path in tests.glob("*.py")} - {"__init__.py", "conftest.py"}
    assert not {name for name in alone if not name.startswith("test_")}, "move it into tests/support"
    helpers = {path.stem for path in (tests / "support").glob("*.py")} | {path.stem for path in tests.glob("test_*.py")}
    helpers |= {"loops", "several", "peers", "deep", "ddp", "zero", "valley", "configurations"}  # names they had before
    by_bare_name = {
        f"{path.name}: {name}"
        for path in tests.rglob("*.py")
        for name in imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] in helpers
    }
    assert not by_bare_name, "import it from tests.support, see tests/support/__init__.py"


# ---------------------------------------------------------------------- public names
@pytest.fixture(scope="module")
def fresh() -> dict[str, list[str]]:
    """What a fresh interpreter has imported with Lightning and with the package, and what it was told: imported once
    for all questions, since that takes seconds."""
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
import lightning.pytorch
before = set(sys.modules)
import lightning_lr
after = set(sys.modules)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always", UserWarning)
    lightning_lr.GhostBatchNorm(), lightning_lr.GradientNoiseScale()
print(json.dumps({"new": sorted(after - before), "all": sorted(sys.modules), "told": [str(w.message) for w in told]}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts: dict[str, list[str]] = json.loads(ran.stdout.splitlines()[-1])
    return facts


def test_importing_the_package_loads_nothing_heavy_that_lightning_does_not(fresh: dict[str, list[str]]) -> None:
    heavy = {"gpytorch", "linear_operator", "matplotlib", "deepspeed", "triton", "transformers", "pytorch_optimizer"}
    assert not heavy & set(fresh["new"])


def test_where_only_lightning_is_imported_nothing_is_said_of_pytorch_lightning(fresh: dict[str, list[str]]) -> None:
    assert "pytorch_lightning" not in fresh["all"]
    assert not fresh["told"]


@pytest.mark.parametrize(("words", "begins"), [(["--help"], "usage: lightning-lr"), (["--version"], "lightning-lr ")])
def test_help_and_version_answer_without_torch(words: list[str], begins: str) -> None:
    script = re.search(
        r'^lightning-lr = "(\w+):main"$', (SOURCE.parents[1] / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert script is not None
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", script[1], *words], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ran.stderr.splitlines()}
    assert ran.stdout.startswith(begins)
    assert "lightning_lr_command" in imported
    assert not imported & {"torch", "lightning", "lightning_lr", "numpy", "matplotlib", "jsonargparse"}


def test_a_star_import_brings_the_public_names_alone() -> None:
    names: dict[str, Any] = {}
    exec("from lightning_lr import *", names)
    assert set(names) - {"__builtins__"} == set(lr.__all__)
    assert not [name for name in lr.__all__ if name.startswith("_")]


@pytest.mark.parametrize(
    "name", [n for n, value in PUBLIC.items() if isinstance(value, type) or inspect.isfunction(value)]
)
def test_every_public_name_is_documented(name: str) -> None:
    value = PUBLIC[name]
    assert value.__doc__
    parameters = inspect.signature(value).parameters
    if parameters and name != "Curve":  # whose arguments are its subclasses'
        assert "Args:" in value.__doc__
    for argument in parameters.values():
        if argument.kind is argument.POSITIONAL_OR_KEYWORD:
            assert f"{argument.name}" in value.__doc__
    for member in vars(value) if isinstance(value, type) else ():
        foreign = any(hasattr(base, member) for base in value.__mro__[1:] if "lightning_lr" not in base.__module__)
        if not member.startswith("_") and inspect.isroutine(getattr(value, member)) and not foreign:
            assert inspect.getdoc(getattr(value, member)), member


class Messages(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if isinstance(value, type)])
def test_every_argument_is_checked_when_it_comes_from_yaml(name: str) -> None:
    """A type that jsonargparse cannot resolve accepts anything, and is only said to its debug log."""
    if inspect.isabstract(PUBLIC[name]):
        pytest.skip("is not made from YAML itself")
    messages = Messages()
    logger = logging.Logger(name, logging.DEBUG)
    logger.addHandler(messages)
    ArgumentParser(logger=logger).add_class_arguments(PUBLIC[name], "made")
    assert not [text for text in messages.texts if "validated" in text]
