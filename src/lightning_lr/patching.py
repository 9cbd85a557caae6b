"""Another method for one instance, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def override_on_instance(module: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Let this one instance have another method; returns a function that undoes this."""
    before = module.__dict__.get(name)
    module.__dict__[name] = replacement

    def undo() -> None:
        if module.__dict__.get(name) is replacement:
            if before is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = before

    return undo
