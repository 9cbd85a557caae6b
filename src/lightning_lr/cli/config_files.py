"""A configuration file that is none, or that says one thing twice: refused before it is parsed.

YAML lets the last of two equal keys win, so that a second ``callbacks:`` would drop the first in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from lightning_lr.cli.errors import ConfigurationError


def check_files(words: Sequence[str]) -> None:
    """Look at every file that ``--config`` names and that is there.

    Args:
        words: the command and its options.

    Raises:
        ConfigurationError: for a directory, a file without text, YAML that is no mapping, and a key given twice.
    """
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("-c", "--config"):
            path = Path(value or after or "-")
            try:
                there = path.exists()
            except OSError:  # a configuration that is written out, and no name of a file
                there = False
            if there:
                _check(path)


def _check(path: Path) -> None:
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory; give the YAML file of a configuration")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text; give the YAML file of a configuration") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {in_one_line(error)}") from error
    if root is None:
        raise ConfigurationError(
            f"{path} is empty; `lightning-lr init --model package.module.Class` writes a first one"
        )
    if not isinstance(root, MappingNode):
        raise ConfigurationError(f"{path} is no mapping; a configuration has keys such as trainer, model and data")
    twice = next(_twice(root), None)
    if twice is not None:
        first, second = twice
        raise ConfigurationError(
            f"{path}: {second.value!r} in line {second.start_mark.line + 1} stands in line "
            f"{first.start_mark.line + 1} already, and YAML would drop that one; keep one of them"
        )


def in_one_line(error: yaml.YAMLError) -> str:
    """What YAML says of a file, without the name that it has for every text."""
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def _twice(node: Node) -> Iterator[tuple[Node, Node]]:
    """Pairs of equal keys of one mapping."""
    if isinstance(node, MappingNode):
        seen: dict[str, Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                yield seen[name], key
            seen.setdefault(name, key)
            yield from _twice(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _twice(item)
