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

    What it calls of the class's own methods is followed (:func:`entries`).
    """
    kind: Any = type(module)
    uses = [dict.fromkeys(_uses_in(kind, name)) for name in entries(module)]
    most = max(uses, key=lambda used: len(used.keys() & module._modules.keys()), default={})
    return {used: place for place, used in enumerate(most)}


def entries(module: nn.Module) -> list[str]:
    """Methods through which a module is used: ``forward``, and a LightningModule's ``training_step``.

    A module with neither is used through other methods (``act``, ``encode``, ``loss``): those that use some of its
    children, the one that uses most of them first.
    """
    kind: Any = type(module)
    first = [name for name in ("forward", "training_step") if is_defined(getattr(kind, name, None))]
    if kind.__module__.startswith("torch.") or (first and _uses_in(kind, first[0])):
        return first
    own = [name for name in dir(kind) if not name.startswith("_") and _is_own_method(kind, name)]
    count = {name: len({*_uses_in(kind, name)} & {*module._modules}) for name in own}
    return [*first, *sorted((name for name in own if count[name]), key=lambda name: -count[name])[:5]]


def is_defined(method: Any) -> bool:
    """Whether a class has a forward, or another method, of its own; nn.Module and LightningModule only name them."""
    unimplemented = getattr(method, "__name__", "") == "_forward_unimplemented"
    return method is not None and not unimplemented and not str(method.__module__).startswith("lightning")


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


@functools.cache
def kind_of_check(code: types.CodeType, line: int) -> str:
    """What is decided in a line of code.

    ``"yes"`` or ``"no"``: a check, and with which value it passes; ``"while"``; ``"break"``: an ``if`` that only leaves
    a loop; or ``""``: anything else.
    """
    for node, start, _ in _statements(code):
        if not isinstance(node, ast.Assert | ast.If | ast.While):
            continue
        if not start <= line <= start + (node.test.end_lineno or node.lineno) - node.lineno:
            continue
        if isinstance(node, ast.While):
            return "while"
        body = {type(statement) for statement in node.body} if isinstance(node, ast.If) else set()
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        if isinstance(node, ast.Assert) or body == {ast.Raise}:
            return "yes" if isinstance(node, ast.Assert) != negated else "no"
        return "break" if body == {ast.Break} else ""
    return ""


def raises(code: types.CodeType, line: int) -> bool:
    """Whether a line of somebody's own code raises an error or asserts something."""
    if any(part in code.co_filename for part in ("/torch/", "/lightning/", "/lightning_lr/")):
        return False
    return any(
        isinstance(node, ast.Raise | ast.Assert) and start <= line <= end for node, start, end in _statements(code)
    )


def names_in_refusal(code: types.CodeType, line: int) -> list[str]:
    """Names in the condition under which a line raises, as they come."""
    for node, start, end in _statements(code):
        if isinstance(node, ast.If) and start <= line <= end and any(isinstance(s, ast.Raise) for s in node.body):
            return [name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)]
    return []


def _statements(code: types.CodeType) -> list[tuple[ast.stmt, int, int]]:
    """Statements of a function with their first and last lines; none where there is no source."""
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return [(node, node.lineno + first - 1, (node.end_lineno or node.lineno) + first - 1) for node in found]


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
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
            above = next((kind for kind in self.kind.__mro__[1:] if node.func.attr in vars(kind)), None)
            if above is not None and _is_own_method(above, node.func.attr):
                self.found += _uses_in(above, node.func.attr)
            return
        if name is not None and _is_own_method(self.kind, name):
            if name not in self.methods:
                self.found += _uses_in(self.kind, name, self.methods)
        elif name is not None:
            self.found.append(name)
        else:
            self.visit(node.func)

    def visit_For(self, node: ast.For) -> None:
        if isinstance(node.target, ast.Name):  # what the elements of a list are given, each time, comes before it
            for call in ast.walk(ast.Module(node.body, [])):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == node.target.id:
                    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                        self._use(argument)
        self._use(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._use(node.iter)
        self.generic_visit(node)

    def _use(self, node: ast.expr) -> None:
        if isinstance(node, ast.Tuple | ast.List):
            for one in node.elts:
                self._use(one)
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


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
