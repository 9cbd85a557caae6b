"""Replace a method on one instance, and put it back: the one way in which the package changes a user's object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def override_on_instance(instance: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method on this one instance; returns a function that undoes this, unless somebody replaced it since."""
    before = instance.__dict__.get(name)
    instance.__dict__[name] = replacement

    def undo() -> None:
        if instance.__dict__.get(name) is replacement:
            if before is None:
                del instance.__dict__[name]
            else:
                instance.__dict__[name] = before

    return undo
