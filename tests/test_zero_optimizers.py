"""Which optimizers ZeRO's flat shards suit, tried out without an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import optim

from lightning_lr.optim import LAMB, LARS
from lightning_lr.strategies.zero.optimizer_checks import check_acts_on_elements, differs_on_shards
from tests.support.toy import Toy, two_groups

ELEMENTS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda ps: optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda ps: optim.Adam(ps, lr=0.1, amsgrad=True),
    "AdamW": lambda ps: optim.AdamW(ps, lr=0.1, weight_decay=0.1),
    "AdamW fused": lambda ps: optim.AdamW(ps, lr=0.1, fused=True),
    "AdamW foreach": lambda ps: optim.AdamW(ps, lr=0.1, foreach=True),
    "AdamW at lr 0": lambda ps: optim.AdamW(ps, lr=torch.tensor(0.0)),
    "NAdam": lambda ps: optim.NAdam(ps),
    "RAdam": lambda ps: optim.RAdam(ps),
    "Adamax": lambda ps: optim.Adamax(ps),
    "Adadelta": lambda ps: optim.Adadelta(ps),
    "Adagrad": lambda ps: optim.Adagrad(ps),
    "RMSprop": lambda ps: optim.RMSprop(ps, momentum=0.9, centered=True),
    "Rprop": lambda ps: optim.Rprop(ps),
    "ASGD": lambda ps: optim.ASGD(ps),
}
WHOLE = ("AdamP", "SGDP", "Lamb", "LARS", "AdaFactor", "Muon", "Prodigy", "DAdaptAdam", "SOAP")
"""Of pytorch_optimizer."""


@pytest.mark.parametrize("name", ELEMENTS)
def test_one_that_treats_each_element_by_itself_is_taken(name: str) -> None:
    check_acts_on_elements("ZeROStrategy", ELEMENTS[name](list(Toy().parameters())))


@pytest.mark.parametrize("name", WHOLE)
def test_one_that_looks_at_whole_tensors_is_refused(name: str) -> None:
    made = getattr(pytest.importorskip("pytorch_optimizer"), name)
    parameters = list(Toy().parameters())
    optimizer = made([{"params": parameters, "use_muon": True}]) if name == "Muon" else made(parameters)
    with pytest.raises(MisconfigurationException, match=f"ZeROStrategy: {name} looks at a tensor's shape or norm"):
        check_acts_on_elements("ZeROStrategy", optimizer)


@pytest.mark.parametrize("made", [optim.Adafactor, LARS, LAMB], ids=lambda made: made.__module__ + made.__name__)
def test_torchs_adafactor_differs_and_ours_know_of_shards(made: Any) -> None:
    optimizer = made(Toy().parameters(), lr=0.1)
    assert differs_on_shards(optimizer)
    if made is not optim.Adafactor:
        check_acts_on_elements("ZeROStrategy", optimizer)


def test_the_optimizer_is_as_it_was() -> None:
    module = Toy()
    optimizer = two_groups(module)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = optim.lr_scheduler.LinearLR(optimizer)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    state = torch.get_rng_state()
    check_acts_on_elements("ZeROStrategy", optimizer)
    assert not calls
    assert not optimizer.state
    assert scheduler.last_epoch == 0
    assert getattr(optimizer.step, "_wrapped_by_lr_sched", False)
    assert all(map(torch.equal, before, module.parameters()))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_one_that_cannot_be_tried_out_is_let_through() -> None:
    class Closure(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return closure()

    check_acts_on_elements("ZeROStrategy", Closure(Toy().parameters(), lr=0.1))
