"""No configuration is accepted that fails later for a reason that was known, and every refusal says what and why."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI

from lightning_lr.cli.errors import root_cause
from tests.support.constructors import CONSTRUCTORS, WILD, Constructor, train
from tests.support.toy import Probe, Toy

pytestmark = pytest.mark.filterwarnings("ignore")
REFUSAL = (ValueError, TypeError, MisconfigurationException)
constructors = pytest.mark.parametrize("constructor", CONSTRUCTORS, ids=lambda c: c.name)
attached = pytest.mark.parametrize("constructor", [c for c in CONSTRUCTORS if c.attach], ids=lambda c: c.name)

ELSEWHERE = {
    ("RampPlan", "max_epochs"): "milestones",
    ("Step", "warmup"): "milestones",
    ("StepRamp", "milestones"): "max_micro_batch_size",
}
"""Arguments that a refusal speaks of by the name of another, with which they do not fit together."""
ALLOWED = (
    "give",
    "allowed",
    "is in",
    "set ",
    "from 1",
    "raise",
    "lower",
    "train longer",
    "name its blocks",
    "needs",
    "it has",
    "see ",
    "Log it",
)
"""How our refusals say what would do."""


def names(constructor: Constructor, argument: str, value: Any, message: str) -> list[str]:
    """What a refusal fails to name: the argument, the value, what is allowed."""
    inside = value if isinstance(value, list) else []
    missing = []
    if argument not in message and ELSEWHERE.get((constructor.name, argument), "?") not in message:
        missing.append("the argument")
    if value is not None and not any(repr(one) in message for one in [value, *inside]):
        missing.append("the value")
    if not any(word in message for word in ALLOWED):
        missing.append("what is allowed")
    return missing


def attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call returned, or how it was refused."""
    try:
        return call(), None
    except (*REFUSAL, argparse.ArgumentError, RuntimeError) as error:
        return None, error


@constructors
def test_what_is_refused_at_construction_is_named(constructor: Constructor) -> None:
    refused = 0
    for argument in constructor.arguments:
        for value in WILD:
            _, error = attempt(partial(constructor, **{argument: value}))
            if error is not None:
                refused += 1
                assert isinstance(error, REFUSAL)
                assert not names(constructor, argument, value, str(error)), (argument, value, str(error))
    assert refused > 10


@cache
def accepted(constructor: Constructor, argument: str) -> list[Any]:
    """The values that the constructor takes for one argument, where all others are as usual."""
    return [value for value in WILD if attempt(partial(constructor, **{argument: value}))[1] is None]


def fits_or_is_refused_before_training(constructor: Constructor, values: dict[str, Any]) -> None:
    """Whether what the constructor took fails, if at all, before training, with its name and its argument's."""
    made, refusal = attempt(partial(constructor, **values))
    if refusal is not None:  # arguments that do not fit together
        assert any(argument in str(refusal) for argument in values), (values, str(refusal))
        return
    probe = Probe()
    _, error = attempt(partial(train, constructor, made, probe))
    if isinstance(error, RuntimeError):  # found by the loss or the gradient, not by looking at the configuration
        assert "not finite" in str(error), (values, str(error))
        assert probe.series, (values, str(error))
    elif error is not None:
        said = str(error)
        assert isinstance(error, MisconfigurationException), (values, said)
        late = "which this training_step did not log" in said  # known from the first batch on
        assert late or not probe.series, ("refused in the middle", values, said)
        words = [*values, *filter(None, (ELSEWHERE.get((constructor.name, a)) for a in values))]
        assert any(word in said for word in [*words, constructor.name]), (values, said)
        assert any(word in said for word in ALLOWED), (values, said)


def combinations(constructor: Constructor) -> st.SearchStrategy[dict[str, Any]]:
    drawn = {argument: st.sampled_from(accepted(constructor, argument)) for argument in constructor.arguments
             if accepted(constructor, argument)}  # fmt: skip
    return st.fixed_dictionaries({}, optional=drawn)


@attached
def test_what_is_accepted_trains_or_is_refused_before_training(constructor: Constructor) -> None:
    @settings(max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(combinations(constructor))
    def holds(values: dict[str, Any]) -> None:
        fits_or_is_refused_before_training(constructor, values)

    holds()


@pytest.mark.slow
@attached
def test_many_that_are_accepted_train_or_are_refused_before_training(constructor: Constructor) -> None:
    for argument in constructor.arguments:
        for value in accepted(constructor, argument):
            fits_or_is_refused_before_training(constructor, {argument: value})

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(combinations(constructor))
    def holds(values: dict[str, Any]) -> None:
        fits_or_is_refused_before_training(constructor, values)

    holds()


# ---------------------------------------------------------------------- from YAML
IN_YAML = (
    "LearningRateScaling",
    "BatchSizeRamp",
    "GhostBatchNorm",
    "GradientNoiseScale",
    "AdaptiveWarmup",
    "LayerwiseLRDecay",
    "GradualUnfreezing",
    "HypergradientDescent",
    "NormalizedWeightDecay",
    "ActivationCompression",
)
CALLBACKS = [c for c in CONSTRUCTORS if c.name in IN_YAML]
NEEDED = {"BatchSizeRamp": {"schedule": {"class_path": "StepRamp", "init_args": {"milestones": [1.0]}}}}


@pytest.fixture(scope="module")
def cli() -> LightningCLI:
    """The parser of a LightningCLI, made once."""
    return LightningCLI(
        Toy, run=False, save_config_callback=None, args=[], auto_configure_optimizers=False,
        seed_everything_default=False, parser_kwargs={"exit_on_error": False},
        trainer_defaults={"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    )  # fmt: skip


def from_yaml(cli: LightningCLI, name: str, arguments: dict[str, Any]) -> Any:
    """The callback that a configuration in YAML makes."""
    text = yaml.safe_dump({"trainer": {"callbacks": [{"class_path": name, "init_args": arguments}]}})
    config = cli.parser.parse_string(text)
    return cli.parser.instantiate_classes(config).trainer.callbacks[0]


@pytest.mark.parametrize("constructor", CALLBACKS, ids=lambda c: c.name)
def test_yaml_refuses_what_python_refuses_and_names_it(constructor: Constructor, cli: LightningCLI) -> None:
    sayable = [value for value in WILD if value != 1j and not (isinstance(value, int) and abs(value) > 2**63)]

    @settings(max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(constructor.arguments), st.sampled_from(sayable))
    def holds(argument: str, value: Any) -> None:
        _, refused = attempt(partial(constructor, **{argument: value}))
        arguments = {**NEEDED.get(constructor.name, {}), argument: value}
        made, error = attempt(partial(from_yaml, cli, constructor.name, arguments))
        if error is not None:
            assert argument in f"{error} {root_cause(error)}", (argument, value, str(error))
            return
        assert type(made).__name__ == constructor.name
        # a parser may read a value as another type (1 as 1.0, a word as a name of a class); it never takes more
        assert refused is None or isinstance(value, str | bool | int), (argument, value)

    holds()


def test_a_nan_survives_yaml_and_is_refused_there_as_well(cli: LightningCLI) -> None:
    with pytest.raises((argparse.ArgumentError, *REFUSAL)) as refused:
        from_yaml(cli, "NormalizedWeightDecay", {"norm": math.nan})
    assert "norm=nan" in f"{refused.value} {root_cause(refused.value)}"
