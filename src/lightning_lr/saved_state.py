"""What the state of a method must look like in a checkpoint: written down once, where it is saved.

A :class:`Form` answers whether a value is what was saved there; forms nest as states do. :func:`faults_in` holds a
whole state against its form before anything is taken from it, so that a checkpoint that was cut, changed by hand or
saved by another version is answered with the key that is wrong, and not with a ``KeyError`` or by training on NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from itertools import islice
from numbers import Integral, Real
from typing import Any, get_type_hints

from lightning_lr.checks import is_count, is_list, is_real

MOST = 3
"""Faults that a refusal names."""

ROUNDING = 1e-12
"""By how much what was added up or divided in double precision may be above 1."""


@dataclass(frozen=True)
class Form:
    """What a place may hold in a state.

    Args:
        faults: of the place and its value, what is wrong, in words that follow "the state".
        later: whether it may be missing: checkpoints of earlier versions do not have it.
    """

    faults: Callable[[str, Any], Iterator[str]]
    later: bool = False


# ---------------------------------------------------------------------- single values
def value(words: str, holds: Callable[[Any], bool]) -> Form:
    """One value of which ``holds`` is true; ``words`` say what it is."""

    def faults(path: str, found: Any) -> Iterator[str]:
        if not holds(found):
            yield f"has {path} {_shown(found)}, where {words} is expected"

    return Form(faults)


def _is_tensor(found: Any) -> bool:
    return hasattr(found, "dtype") and hasattr(found, "shape")  # without an import of torch


def _is_number(found: Any) -> bool:
    return isinstance(found, Real) and not isinstance(found, bool)


COUNT = value("a number from 0", lambda found: is_count(found, 0) or (is_real(found) and found >= 0 and found % 1 == 0))
"""How many of something; a float where it was saved as one."""
INDEX = value("a whole number from 0", lambda found: is_count(found, 0))
WHOLE = value("a whole number", lambda found: isinstance(found, Integral) and not isinstance(found, bool))
NUMBER = value("a finite number", is_real)
FROM_0 = value("a number from 0", lambda found: is_real(found) and found >= 0)
ABOVE_0 = value("a number above 0", lambda found: is_real(found) and found > 0)
SHARE = value("a number from 0 to 1", lambda found: is_real(found) and 0 <= found <= 1 + ROUNDING)
NOT_NAN = value("a number, perhaps infinite", lambda found: _is_number(found) and not math.isnan(found))
MEASURED = value("a number", _is_number)
"""What was measured, which may have been NaN."""
FLAG = value("true or false", lambda found: isinstance(found, bool))
TEXT = value("a text", lambda found: isinstance(found, str))
TENSOR = value("a tensor", lambda found: _is_tensor(found))
ANYTHING = value("anything", lambda found: True)


def one_of(*allowed: Any) -> Form:
    """One of some values."""
    return value(" or ".join(map(repr, allowed)), lambda found: any(found is a or found == a for a in allowed))


# ---------------------------------------------------------------------- what is made of them
def optional(form: Form) -> Form:
    """``None``, or what ``form`` says."""

    def faults(path: str, found: Any) -> Iterator[str]:
        if found is not None:
            yield from form.faults(path, found)

    return Form(faults)


def later(form: Form) -> Form:
    """What checkpoints of earlier versions do not have."""
    return replace(form, later=True)


def several(form: Form) -> Form:
    """A list, each of whose entries is what ``form`` says."""

    def faults(path: str, found: Any) -> Iterator[str]:
        if not is_list(found):
            yield f"has {path} {_shown(found)}, where a list is expected"
            return
        for index, entry in enumerate(found):
            yield from form.faults(f"{path}[{index}]", entry)

    return Form(faults)


def row(*forms: Form) -> Form:
    """A list with one entry for each of ``forms``."""

    def faults(path: str, found: Any) -> Iterator[str]:
        if not is_list(found) or len(found) != len(forms):
            yield f"has {path} {_shown(found)}, where a list of {len(forms)} is expected"
            return
        for index, (form, entry) in enumerate(zip(forms, found, strict=True)):
            yield from form.faults(f"{path}[{index}]", entry)

    return Form(faults)


def alike(form: Form, *names: str | int) -> Form:
    """What ``form`` says, and the lists at ``names`` are of one length; one that is ``None`` is left out."""

    def faults(path: str, found: Any) -> Iterator[str]:
        wrong = False
        for fault in form.faults(path, found):
            wrong = True
            yield fault
        lengths = {} if wrong else {name: len(found[name]) for name in names if found[name] is not None}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            yield f"has lists of different lengths in {path} ({said})"

    return Form(faults)


def either(key: str, form: Form, otherwise: Form) -> Form:
    """What ``form`` says, of a mapping that has ``key``; anything else is what ``otherwise`` says."""

    def faults(path: str, found: Any) -> Iterator[str]:
        has = isinstance(found, Mapping) and key in found
        yield from (form if has else otherwise).faults(path, found)

    return Form(faults)


def by(kind: type, form: Form) -> Form:
    """A mapping of any keys of a type."""

    def faults(path: str, found: Any) -> Iterator[str]:
        if not isinstance(found, Mapping):
            yield f"has {path} {_shown(found)}, where a mapping is expected"
            return
        for key, entry in found.items():
            if not isinstance(key, kind) or isinstance(key, bool):
                yield f"has the key {_shown(key)} in {path}, where one of type {kind.__name__} is expected"
            else:
                yield from form.faults(f"{path}.{key}" if path else str(key), entry)

    return Form(faults)


def keys(forms: Mapping[str, Form], more: bool = False) -> Form:
    """A mapping with the keys of ``forms``, all of them but the later ones, and no other.

    Args:
        forms: of the values, by key.
        more: whether it may have other keys, too: those of somebody's own subclass.
    """

    def faults(path: str, found: Any) -> Iterator[str]:
        place = f"{path}." if path else ""
        if not isinstance(found, Mapping):
            yield f"{f'has {path}' if path else 'is'} {_shown(found)}, where a mapping is expected"
            return
        for key, form in forms.items():
            if key in found:
                yield from form.faults(f"{place}{key}", found[key])
            elif not form.later:
                yield f"has no {place}{key}"
        for key in [] if more else found:
            if key not in forms:
                yield f"has {place}{key}, which this version does not know"

    return Form(faults)


def record_of(kind: type) -> Form:
    """The fields of a dataclass as a mapping; its numbers, texts and flags by their annotations."""
    simple: dict[Any, Form] = {float: NUMBER, int: WHOLE, str: TEXT, bool: FLAG}
    simple |= {found | None: optional(form) for found, form in simple.items()}
    hints = get_type_hints(kind)
    forms = {}
    for field in fields(kind):
        form = simple.get(hints[field.name], ANYTHING)
        given = field.default is not MISSING or field.default_factory is not MISSING
        forms[field.name] = later(form) if given else form
    return keys(forms)


# ---------------------------------------------------------------------- the answer
def faults_in(state: Any, form: Form) -> str:
    """What is wrong with a state, in words that follow "the state"; empty where nothing is."""
    found = list(islice(form.faults("", state), MOST + 1))
    return ", ".join([*found[:MOST], *(["and more"] if len(found) > MOST else [])])


def _shown(found: Any) -> str:
    if _is_tensor(found):
        return f"a tensor of shape {tuple(found.shape)}"
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."
