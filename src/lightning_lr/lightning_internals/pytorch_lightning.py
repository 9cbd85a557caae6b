"""``pytorch_lightning``: the package that holds the code of ``lightning.pytorch`` once more, under other module paths.

Its classes are not the ones that ours inherit from, so ``isinstance`` does not recognise them. What a user gave is
distinguished by where its classes come from; the package itself is never imported.
"""

from __future__ import annotations

import sys
from typing import Any

MIRROR = "pytorch_lightning"
INSTEAD = "lightning.pytorch"


def class_of_mirror(thing: Any) -> type | None:
    """The class of ``pytorch_lightning`` that ``thing`` is of, be it through a user's class; or ``None``."""
    return next((cls for cls in type(thing).__mro__ if cls.__module__.partition(".")[0] == MIRROR), None)


def mirror_is_imported() -> bool:
    """Whether somebody, a user's module for one, has imported ``pytorch_lightning``."""
    return MIRROR in sys.modules


def mirror_refuses_unasked() -> bool:
    """Whether a Trainer of ``pytorch_lightning`` would refuse our callbacks before they could explain why.

    Up to 2.5.6 its constructor ends with "Expected a parent" for a callback of the other package; 2.6.0 and later take
    it, and its ``setup`` is called. The two packages need not be of one version.
    """
    version = getattr(sys.modules.get(MIRROR), "__version__", None)
    return version is not None and tuple(int(part) for part in version.split(".")[:2]) < (2, 6)
