"""Networks written by hand, each with the right order of its layers written down before: none is wrong in silence."""

from __future__ import annotations

import warnings

import pytest

from lightning_lr.layers import discover
from tests.support.nets import NETS, wrong_places

GUESSED = {
    "a scripted part", "a trained copy beside a frozen U-Net, joined by zero convolutions",
    "adapters beside code that decides", "VAE whose code decides", "TreeOfCells",
    "through helpers, decided by a value", "towers in series, decided by a value",
    "towers side by side, decided by a value",
}  # fmt: skip
"""Code that cannot be run on symbols: the order comes from its text and from names, and the table is shown."""
WRONG = {
    "towers side by side, decided by a value",
    "a trained copy beside a frozen U-Net, joined by zero convolutions",
}
"""Of these, the ones whose guess is not the right order."""


@pytest.mark.parametrize("name", NETS)
def test_the_order_is_the_right_one_or_announced_as_a_guess(name: str) -> None:
    model = NETS[name].make()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = discover(model)
    guessed = [str(warning.message) for warning in said if "give layers as" in str(warning.message)]
    distance = {parameter: found.depth - 1 - layer.depth for layer in found.layers for parameter in layer.parameters}
    wrong = wrong_places(name, distance)
    assert bool(wrong) == (name in WRONG), wrong
    assert len(guessed) == (name in GUESSED), guessed
    assert all("from the top  layer" in table for table in guessed), "the table"


def test_there_are_as_many_as_it_takes() -> None:
    assert len(NETS) >= 60
