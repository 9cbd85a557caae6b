"""Which value in a configuration is of another type than its argument, and what that takes, in words.

jsonargparse knows what it accepts, so each value is given to it alone; its answer about the whole file lists every
way in which an object might have been written.
"""

from __future__ import annotations

import collections.abc
import types
import typing
import warnings
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from yaml.nodes import MappingNode, Node, ScalarNode

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def is_accepted(node: Node, annotation: Any) -> bool:
    """Whether jsonargparse takes a value for this annotation; true for what it cannot judge alone."""
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=annotation)
    except Exception:  # a type that it does not know
        return True
    text = yaml.serialize(MappingNode("tag:yaml.org,2002:map", [(_key("value"), node)]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.parse_string(text)
    except Exception:  # argparse's errors and jsonargparse's own
        return False
    return True


def _key(name: str) -> ScalarNode:
    return ScalarNode("tag:yaml.org,2002:str", name)


def written(node: Node) -> str:
    """The value as it stands in the file, on one line."""
    text = node.value if isinstance(node, ScalarNode) else str(yaml.safe_load(yaml.serialize(node)))
    return " ".join(str(text).split())[:60]


def in_words(annotation: Any) -> str:
    """What an annotation takes: ``a number``, ``one of linear, sqrt``; empty where there are no plain words."""
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (typing.Union, types.UnionType):
        parts = [in_words(part) for part in arguments]
        return " or ".join(dict.fromkeys(parts)) if all(parts) else ""
    if origin in (list, collections.abc.Sequence, tuple, collections.abc.Iterable):
        items = list(dict.fromkeys(in_words(part) for part in arguments if part is not Ellipsis))
        one = items[0] if len(items) == 1 else ""
        plurals = {"a number": "numbers", "a whole number": "whole numbers", "a text": "texts"}
        return f"a list of {plurals[one]}" if one in plurals else "a list"
    return ""
