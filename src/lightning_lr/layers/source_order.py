"""In which order the text of a module's ``forward`` uses its children: what is left where the code cannot be run."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from typing import Any

from torch import nn

NO_USE = ("len", "isinstance", "hasattr", "getattr", "print", "type", "id", "range")
"""Functions that look at a module without using it."""


def source_order(module: nn.Module) -> dict[str, int]:
    """Names of attributes that ``forward`` calls, iterates over or passes on, to the place where it first does.

    What it calls of the class's own methods is followed. A LightningModule without a forward has its ``training_step``.
    """
    name = "forward"
    if type(module).forward.__module__.startswith("lightning") and hasattr(type(module), "training_step"):
        name = "training_step"
    kind: Any = type(module)
    return {used: place for place, used in enumerate(dict.fromkeys(_uses_in(kind, name)))}


@functools.cache
def _uses_in(kind: Any, method: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
    try:
        # a decorator of transformers may replace the function
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(kind, method)))))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return ()
    function = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
    if function is None or not function.args.args:
        return ()
    finder = _Uses(function.args.args[0].arg, kind, (*above, method))
    for statement in function.body:
        finder.visit(statement)
    return tuple(finder.found)


def _is_own_method(kind: type[nn.Module], name: str) -> bool:
    found = inspect.getattr_static(kind, name, None)
    return isinstance(found, types.FunctionType) and not found.__module__.startswith(("torch.nn", "lightning."))


def value_of_a_check(code: types.CodeType, line: int) -> bool | None:
    """The value with which an ``assert`` in that line passes, or an ``if`` that does nothing but raise."""
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert | ast.If):
            start, end = node.lineno + first - 1, (node.test.end_lineno or node.lineno) + first - 1
            if start <= line <= end:
                if isinstance(node, ast.Assert):
                    return True
                return False if all(isinstance(statement, ast.Raise) for statement in node.body) else None
    return None


class _Uses(ast.NodeVisitor):
    def __init__(self, this: str, kind: Any, methods: tuple[str, ...]) -> None:
        self.this, self.kind, self.methods = this, kind, methods
        self.found: list[str] = []

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in NO_USE:
            return
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.visit(argument)  # what is called to make an argument comes first
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self._use(argument)
        name = self._attribute(node.func)
        if name is not None and _is_own_method(self.kind, name):
            if name not in self.methods:
                self.found += _uses_in(self.kind, name, self.methods)
        elif name is not None:
            self.found.append(name)
        else:
            self.visit(node.func)

    def visit_For(self, node: ast.For) -> None:
        self._use(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._use(node.iter)
        self.generic_visit(node)

    def _use(self, node: ast.expr) -> None:
        if isinstance(node, ast.Starred):
            node = node.value
        while isinstance(node, ast.Subscript):  # self.layers[: n]
            node = node.value
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.this:
            self.found.append(node.attr)

    def _attribute(self, node: ast.expr) -> str | None:
        """X of ``self.X``, ``self.X[0]``, ``self.X.inner``."""
        name = None
        while isinstance(node, ast.Attribute | ast.Subscript):
            if isinstance(node, ast.Attribute):
                name = node.attr
            node = node.value
        return name if isinstance(node, ast.Name) and node.id == self.this else None
