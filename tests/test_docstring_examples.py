"""The numbers in docstrings are what the code returns, and no curve or scaling rule is without some."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import lightning_lr as lr
from lightning_lr import scaling, weight_decay
from lightning_lr.batch_size import BatchRule, RampSchedule, noise_scale

SOURCE = Path(__file__).parents[1] / "src"
WITH_EXAMPLES = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


def module_of(path: Path) -> ModuleType:
    return importlib.import_module(".".join(path.relative_to(SOURCE).with_suffix("").parts))


def functions_of(module: ModuleType) -> list[object]:
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


CURVES = [
    kind for kind in vars(lr).values() if isinstance(kind, type) and issubclass(kind, lr.Curve | RampSchedule)
    and not inspect.isabstract(kind)
]  # fmt: skip
RULES = [
    *functions_of(scaling),
    weight_decay.normalized_weight_decay,
    weight_decay.torch_weight_decay,
    BatchRule,
    lr.scaled_batch_size,
    noise_scale,
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_a_module_print_what_they_say(path: Path) -> None:
    result = doctest.testmod(module_of(path))
    assert result.attempted
    assert result.failed == 0, "the difference is in what was printed"


@pytest.mark.parametrize("thing", [*CURVES, *RULES], ids=lambda thing: thing.__name__)
def test_every_curve_and_scaling_rule_shows_three_numbers(thing: object) -> None:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")
    printed = " ".join(example.want for example in examples)
    assert len(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", printed)) >= 3, printed
