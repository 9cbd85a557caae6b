"""``callbacks=[AdaptiveWarmup]``: a class where an object belongs, which a Trainer takes without a look."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class HookOfObject:
    """A hook of a callback that refuses to be called through the class.

    A Trainer looks a hook up on whatever it was given, and calls it: on a class the hook is a plain function, whose
    arguments are one short.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        functools.update_wrapper(self, hook)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is not None:
            return self.hook.__get__(instance, owner)

        @functools.wraps(self.hook)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not args or not isinstance(args[0], owner):
                raise TypeError(
                    f"{owner.__name__}: callbacks has the class; give an object, such as {owner.__name__}(...)"
                )
            return self.hook(*args, **kwargs)

        return called
