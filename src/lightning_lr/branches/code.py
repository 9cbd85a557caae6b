"""What code keeps outside of objects: attributes of classes, variables of closures and global ones.

A counter that a training step raises may be any of these. They are found from the classes of the objects that are
walked, by the names that their functions use; code of libraries is not looked at.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

LARGE = 65_536
"""Elements of a tensor, and items of a container, from which on it is taken for data where code alone leads to it."""


def functions_in(thing: Any) -> Iterator[types.FunctionType]:
    """The Python functions that something is, or is made of."""
    if isinstance(thing, types.FunctionType):
        yield thing
    elif isinstance(thing, types.MethodType | staticmethod | classmethod):
        yield from functions_in(thing.__func__)
    elif isinstance(thing, functools.partial):
        yield from functions_in(thing.func)
    elif isinstance(thing, property):
        for part in (thing.fget, thing.fset):
            yield from functions_in(part)


def held_by(thing: Any) -> list[Any]:
    """The object of a bound method, the arguments of a partial function."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    return [*thing.args, *thing.keywords.values(), thing.func] if isinstance(thing, functools.partial) else []


def attributes_of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Names and values of what a class itself has, without what Python puts there."""
    for name, value in list(vars(kind).items()):
        if not (name.startswith("__") or name.startswith("_abc_")):
            yield name, value


def put_attribute_back(kind: type, name: str, value: Any) -> Callable[[], None]:
    """What sets an attribute of a class where it is another one now."""

    def restore() -> None:
        if vars(kind).get(name, restore) is not value:
            setattr(kind, name, value)

    return restore


def cells_of(function: types.FunctionType) -> Iterator[tuple[Callable[[], None], Any]]:
    """Of each variable that a closure keeps, what puts it back, and its value."""
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue

        def restore(cell: Any = cell, value: Any = value) -> None:
            if cell.cell_contents is not value:
                cell.cell_contents = value

        yield restore, value


def globals_of(function: types.FunctionType) -> Iterator[tuple[Callable[[], None], Any]]:
    """The same of the global variables that a function, or one inside of it, names."""
    there = function.__globals__
    for name in _names_in(function.__code__):
        if name not in there:
            continue
        value = there[name]

        def restore(name: str = name, value: Any = value) -> None:
            if there.get(name, restore) is not value:
                there[name] = value

        yield restore, value


def _names_in(code: types.CodeType) -> set[str]:
    names, waiting = set(code.co_names), [*code.co_consts]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, types.CodeType):
            names.update(inner.co_names)
            waiting.extend(inner.co_consts)
    return names
