"""A callback that a module attaches in its own hooks takes part, or is refused: it never sits there without effect."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD

from lightning_lr import (
    ActivationCompression,
    BatchSizeRamp,
    GhostBatchNorm,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateSchedule,
    Polynomial,
    StepRamp,
)
from tests.support.toy import Probe, Toy, fit

pytestmark = pytest.mark.filterwarnings("ignore")

EACH: dict[str, Callable[[], Callback]] = {
    "schedule": partial(LearningRateSchedule, Polynomial(power=1)),
    "hypergradient": HypergradientDescent,
    "layers": partial(LayerwiseLRDecay, 0.5),
    "unfreezing": GradualUnfreezing,
    "ramp": partial(BatchSizeRamp, StepRamp([1], factor=2)),
    "compression": partial(ActivationCompression, 8),
    "ghosts": partial(GhostBatchNorm, 2),
}


class Attaches(Toy):
    def __init__(self, hook: str, make: Callable[[], Callback]) -> None:
        super().__init__(lambda module: SGD(module.parameters(), lr=0.1))
        self.norm = nn.BatchNorm1d(8)
        self.make, self.attached = make, False
        setattr(self, hook, self.attach)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.body(x)))

    def attach(self, *_: Any, **__: Any) -> None:
        if not self.attached:
            self.attached = True
            self.trainer.callbacks.append(self.make())  # type: ignore[attr-defined]


LATE = ["on_train_start", "on_train_epoch_start", "on_train_batch_start"]


@pytest.mark.parametrize("others", [[], [lambda: LearningRateSchedule(Polynomial(power=2))]])
@pytest.mark.parametrize("hook", LATE)
@pytest.mark.parametrize("name", EACH)
def test_one_that_comes_when_training_has_begun_is_refused(name: str, hook: str, others: list[Any]) -> None:
    with pytest.raises(MisconfigurationException, match="attached when training had begun"):
        fit([make() for make in others], module=Attaches(hook, EACH[name]))


@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
@pytest.mark.parametrize("name", EACH)
def test_one_that_comes_before_takes_part_or_is_refused(name: str, hook: str) -> None:
    own, given = Probe(), Probe()
    fit([given, EACH[name]()], module=Attaches("unused", EACH[name]))
    module = Attaches(hook, EACH[name])
    try:
        fit([own], module=module)
    except MisconfigurationException:
        assert name in ("layers", "ramp"), "which act before these hooks"
        return
    assert module.attached
    assert own.series == given.series
