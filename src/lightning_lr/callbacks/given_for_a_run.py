"""What a function such as ``plan`` is given for a run: a Trainer, a module and data, each in its place."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer


def check_run(caller: str, trainer: Any, module: Any, data: Any = None) -> None:
    """Refuse what is no Trainer, or no module: swapped, a class, or of another package."""
    for argument, value, kind in (("trainer", trainer, Trainer), ("module", module, LightningModule)):
        if not isinstance(value, kind):
            order = "; the order is (trainer, module, data)" if isinstance(value, Trainer | LightningModule) else ""
            wanted = f"give a {kind.__name__} of lightning.pytorch{order}"
            raise TypeError(f"{caller}: got {described_briefly(value)} as {argument}; {wanted}")
    if isinstance(data, type):
        raise TypeError(f"{caller}: got {described_briefly(data)} as data; give an object, {data.__name__}(...)")


def described_briefly(value: Any) -> str:
    """What somebody gave, in a few words: the class ``X``, an object of it, or a short value."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__}"
