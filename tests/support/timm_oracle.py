"""timm, as an oracle: it lies apart from the environment, and is put on the path only for the tests that ask for it.

It needs torchvision, which has no build for a CPU torch: its compiled operators do not load beside one, and as soon as
it can be imported, torchmetrics (and so Lightning) tries to. ``make test`` therefore installs both into a folder of
their own. Here the names of torchvision's operators are declared without an implementation, which is all that its
import asks for.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  # with torchmetrics, before torchvision can be found
import pytest
import torch

FOLDER = Path(os.environ.get("LIGHTNING_LR_PEERS", Path(sys.prefix) / "peers"))
_libraries: list[Any] = []
"""Declarations live as long as their library object."""


def import_timm() -> Any:
    """The module ``timm``, or skip the test where it is not installed."""
    if "timm" in sys.modules:
        return sys.modules["timm"]
    if not (FOLDER / "timm").is_dir():
        pytest.skip(f"timm is not in {FOLDER}; `make test` installs it there, LIGHTNING_LR_PEERS names another folder")
    if not _operators_load():
        _declare_operators(FOLDER / "torchvision" / "_meta_registrations.py")
    sys.path.append(str(FOLDER))
    try:
        timm = importlib.import_module("timm")
        importlib.import_module("timm.optim")
        importlib.import_module("torchvision.models")
        return timm
    finally:
        sys.path.remove(str(FOLDER))


def import_torchvision_models() -> Any:
    """The module ``torchvision.models``, or skip the test where it is not installed."""
    import_timm()
    return sys.modules["torchvision.models"]


def _operators_load() -> bool:
    """Whether this is a build for the torch that is here, whose operators need no declaration."""
    for library in (FOLDER / "torchvision").glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _declare_operators(registrations: Path) -> None:
    names = set(re.findall(r"register_meta\(\"(\w+)\"", registrations.read_text()))
    names |= set(re.findall(r"torchvision::(\w+)", registrations.read_text()))
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(names):
        library.define(f"{name}(Tensor x) -> Tensor")
    _libraries.append(library)
