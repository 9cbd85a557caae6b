"""Where in the model a tensor is saved: the module that runs, and the index among its operation's saved tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class ModuleNames:
    """Follows which module of a model runs.

    Args:
        model: whose modules have names.
        skip: names of modules whose tensors, and those of the modules in them, are kept as they are.

    Raises:
        ValueError: for a name in ``skip`` that no module has.
    """

    def __init__(self, model: nn.Module, skip: Iterable[str] = ()) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        known = set(self._names.values())
        for name in skip:
            if name not in known or not name:
                near = sorted(known - {""})
                shown = ", ".join(near[:8]) + (", ..." if len(near) > 8 else "")
                raise ValueError(f"skip has {name!r}, but {type(model).__name__} has no such module; it has {shown}")
        self._skipped = {
            module
            for module, name in self._names.items()
            if any(name == skipped or name.startswith(f"{skipped}.") for skipped in skip)
        }
        self._running: list[nn.Module] = []
        self._saved: Counter[str] = Counter()

    @contextmanager
    def following(self) -> Iterator[None]:
        """While entered, modules that are called are followed; counts begin anew."""
        self._running, self._saved = [], Counter()
        hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._running = []

    @property
    def skipped(self) -> bool:
        """Whether the module that runs, or one around it, is to be skipped."""
        return any(module in self._skipped for module in self._running)

    @property
    def running(self) -> str:
        """Name of the module that runs; ``training_step`` outside of all."""
        return (self._names.get(self._running[-1], "") if self._running else "") or "training_step"

    def next_name(self, operation: str) -> str:
        """``module/operation/count`` for the tensor that is saved now; counts from 0."""
        stem = f"{self.running}/{operation}"
        self._saved[stem] += 1
        return f"{stem}/{self._saved[stem] - 1}"

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self._names:
            self._running.append(module)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
