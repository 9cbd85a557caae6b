"""The command line's error for a configuration that cannot work: one paragraph instead of a traceback.

What was refused before anything was trained is the configuration's fault and gets one sentence; whatever goes wrong
later is unexpected and keeps its traceback. With ``LIGHTNING_LR_DEBUG=1`` everything does.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

EXPLAINED = (ValueError, OSError, ImportError)
"""What constructors, data modules and callbacks raise for a configuration that cannot work."""


class ConfigurationError(Exception):
    """A configuration that cannot work; the message states what was given and what to do."""


def debugging() -> bool:
    """Whether the user wants to see tracebacks."""
    return os.environ.get("LIGHTNING_LR_DEBUG", "0") not in ("", "0")


def root_cause(error: BaseException) -> BaseException:
    """The exception with which it began: jsonargparse wraps what a constructor raised into layers of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def refusing(prefix: str = "", kinds: tuple[type[Exception], ...] = EXPLAINED) -> Iterator[None]:
    """Inside, what a configuration can be blamed for becomes :class:`ConfigurationError`."""
    try:
        yield
    except kinds as error:
        raise ConfigurationError(f"{prefix}{described(error)}") from error


def described(error: BaseException) -> str:
    """The message of the root cause; with its type and place where the message alone is too short."""
    cause = root_cause(error)
    text = str(cause).strip()
    if len(text.split()) > 3:
        return text
    frames = traceback.extract_tb(cause.__traceback__)[-1:]
    place = "".join(f" (in {frame.name}, {frame.filename}, line {frame.lineno})" for frame in frames)
    return f"{type(cause).__name__}: {text}".rstrip(": ") + place
