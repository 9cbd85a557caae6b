"""Which name or value in a configuration is wrong, where it stands, and what is nearest to it.

Runs only after jsonargparse has refused a configuration. The file is walked along the signatures of the classes that
it names, so the answer does not depend on the wording of anybody's error message.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_lr.batch_size.schedules import RampSchedule
from lightning_lr.cli.nearest import did_you_mean
from lightning_lr.cli.values import in_words, is_accepted, written
from lightning_lr.curves import Curve

KINDS = (Callback, Curve, Strategy, Optimizer, LightningModule, LightningDataModule, RampSchedule)
SECTIONS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Known:
    """The names that a command accepts: options, and the classes that some of them take.

    Args:
        command: the subcommand, under which a file may nest its options.
        options: all options, with dots (``trainer.max_epochs``).
        types: the annotation of those options that take an object, for example ``trainer.callbacks``.
        bases: classes whose subclasses may be given by their name alone.
    """

    command: str
    options: Sequence[str]
    types: Mapping[str, Any]
    bases: Sequence[type]

    @property
    def groups(self) -> set[str]:
        """Options that stand for several (``trainer``)."""
        return {option.split(".")[0] for option in self.options if "." in option}


def complaints_of(words: Sequence[str], known: Known) -> list[str]:
    """A sentence for every wrong name or value in the options and in the files that ``--config`` names."""
    options = list(_options(words))
    walk = _Walk(known, [option.lstrip("-") for option, _ in options])
    complaints = [
        complaint
        for option, value in options
        if option in ("-c", "--config") and value is not None and Path(value).is_file()
        for complaint in walk.file(value)
    ]
    for option, value in options:
        if option.startswith("--"):
            complaints += [*walk.given_class(option.lstrip("-"), value), *walk.option(option, value)]
    return list(dict.fromkeys(complaints))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for word, after in zip(words, [*words[1:], None], strict=True):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            yield name, value if equals else after


class _Walk:
    """Walks configuration files and options along what is known."""

    def __init__(self, known: Known, options: Sequence[str] = ()) -> None:
        self.known, self.given = known, options
        self.path = ""
        self.objects: dict[str, type] = {}
        """The class that the files give to an option."""

    def file(self, path: str) -> Iterator[str]:
        self.path = path
        try:
            root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            yield f"{path} is not valid YAML: {error}"
        else:
            if isinstance(root, MappingNode):
                yield from self._options(root)

    def option(self, option: str, value: str | None) -> Iterator[str]:
        name = option.lstrip("-").rstrip("+")
        node = None if value is None else ScalarNode("tag:yaml.org,2002:str", value)
        if name in self.known.options and node is not None:
            yield from self._type(node, self.known.types.get(name), option)
        if name in self.known.options or name in self.known.groups or name in ("help", "print_config"):
            return
        leaf, _, rest = name.partition(".")
        if leaf not in self.known.options:
            yield f"there is no option {option!r}{did_you_mean(name, self.known.options, '--')}"
        elif leaf in self.objects and rest not in SECTIONS:
            argument = rest.removeprefix("init_args.").split(".")[0]
            arguments = _arguments(self.objects[leaf])
            if argument not in arguments:
                owner, hint = self.objects[leaf].__name__, did_you_mean(argument, arguments, f"--{leaf}.")
                yield f"{owner} has no argument {argument!r} ({option}){hint}"
            elif node is not None:
                yield from self._type(node, arguments[argument], option)

    def given_class(self, option: str, value: str | None) -> Iterator[str]:
        """Of an option such as ``--model PATH``: whether there is such a class, and of the right kind."""
        classes, plain = _classes_in(self.known.types.get(option))
        if value is None or not classes or plain or value.startswith(("{", "[", "-")) or Path(value).is_file():
            return
        found = find_class(value, classes)
        if found is None:
            yield f"there is no class {value!r} at {option}{nearest_class(value, classes)}"
        elif not issubclass(found, tuple(classes)):
            yield self._wrong_kind(found, option, classes)
        else:
            self.objects[option] = found
            missing = self._missing(found, [], option)
            if missing:
                options = ", ".join(f"--{option}.{name}" for name in missing)
                yield f"{found.__name__} needs {', '.join(missing)}; give {options}, or init_args in a file"

    def _missing(self, found: type, given: Sequence[str], where: str) -> list[str]:
        """The arguments without a default that neither a file nor an option gives."""
        options = [option.removeprefix(f"{where}.").removeprefix("init_args.") for option in self.given]
        parameters = list(inspect.signature(found).parameters.values())
        return [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            and not {p.name, f"{p.name}.class_path"} & {*given, *options}
        ]

    def _wrong_kind(self, found: type, where: str, classes: Sequence[type]) -> str:
        others = (
            other
            for other, annotation in self.known.types.items()
            if "." not in other and (kinds := _classes_in(annotation)[0]) and issubclass(found, tuple(kinds))
        )
        hint = next((f"; it belongs at --{other}" for other in others), "")
        return (
            f"{found.__name__} at {where} is no subclass of {' or '.join(kind.__name__ for kind in classes[:2])}{hint}"
        )

    # ------------------------------------------------------------------ inside a file
    def _options(self, node: MappingNode, prefix: str = "") -> Iterator[str]:
        here = {option[len(prefix) :].split(".")[0] for option in self.known.options if option.startswith(prefix)}
        for key, value in node.value:
            name = prefix + key.value
            if not prefix and key.value == self.known.command and isinstance(value, MappingNode):
                yield from self._options(value)
            elif key.value not in here:
                above = [group for group in sorted(self.known.groups) if f"{group}.{key.value}" in self.known.options]
                hint = f"; it belongs under {above[0]}" if above and not prefix else ""
                yield self._at(key, f"there is no option {name!r}", hint or did_you_mean(key.value, here, prefix))
            elif name in self.known.groups and isinstance(value, MappingNode):
                yield from self._options(value, f"{name}.")
            else:
                yield from self._value(value, self.known.types.get(name), name)

    def _value(self, node: Node, annotation: Any, where: str) -> Iterator[str]:
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                yield from self._value(item, annotation, f"{where}[{index}]")
        elif isinstance(node, MappingNode):
            entries = {key.value: value for key, value in node.value}
            if "class_path" in entries:
                yield from self._object(node, entries["class_path"], annotation, where)
            elif _classes_in(annotation)[0] and not _classes_in(annotation)[1]:
                yield self._without_class(node, _classes_in(annotation)[0], where)
            else:
                for key, value in node.value:
                    yield from self._value(value, None, f"{where}.{key.value}")
        elif isinstance(node, ScalarNode):
            classes, plain = _classes_in(annotation)
            if classes and not plain and node.tag.endswith(":str"):
                yield from self._class(node, classes, where)
                found = find_class(node.value, classes)
                missing = [] if found is None else self._missing(found, [], where)
                if missing:
                    hint = f"; write class_path: {node.value}, and {', '.join(missing)} below init_args"
                    yield self._at(node, f"{node.value} at {where} needs {', '.join(missing)}", hint)
            elif where in self.known.types:
                yield from self._type(node, annotation, where)

    def _type(self, node: Node, annotation: Any, where: str) -> Iterator[str]:
        """Of a value for a plain argument: whether it is of the right type."""
        takes = in_words(annotation)
        if takes and not is_accepted(node, annotation):
            place = f" ({self.path}, line {node.start_mark.line + 1})" if node.start_mark is not None else ""
            yield f"{where} is {written(node)!r}{place}; give {takes}"

    def _object(self, node: MappingNode, class_path: Node, annotation: Any, where: str) -> Iterator[str]:
        classes = _classes_in(annotation)[0] or list(self.known.bases)
        yield from self._class(class_path, classes, where)
        found = find_class(str(class_path.value), classes)
        if found is None or not issubclass(found, tuple(classes)):
            return
        self.objects[where] = found
        arguments = _arguments(found)
        entries = {key.value: value for key, value in node.value}
        inside = entries.get("init_args")
        given = [key.value for key, _ in inside.value] if isinstance(inside, MappingNode) else []
        are_known = {*entries} <= {*SECTIONS} and {*given} <= {*arguments}
        missing = self._missing(found, given, where) if are_known else []
        if missing:
            hint = f"; write {' and '.join(missing)} below init_args"
            yield self._at(node, f"{found.__name__} at {where} needs {', '.join(missing)}", hint)
        for key, value in node.value:
            if key.value not in SECTIONS:
                hint = "; it belongs under init_args" if key.value in arguments else did_you_mean(key.value, SECTIONS)
                yield self._at(key, f"there is no key {key.value!r} at {where}", hint)
            elif key.value == "init_args" and isinstance(value, MappingNode):
                for name, content in value.value:
                    if name.value in arguments:
                        yield from self._type(content, arguments[name.value], f"{found.__name__}: {name.value}")
                        yield from self._value(content, arguments[name.value], f"{where}.{name.value}")
                    else:
                        hint = did_you_mean(name.value, arguments)
                        yield self._at(name, f"{found.__name__} has no argument {name.value!r} at {where}", hint)

    def _without_class(self, node: MappingNode, classes: Sequence[type], where: str) -> str:
        """An object that is written as its arguments alone, or under the name of its class."""
        keys = [str(key.value) for key, _ in node.value]
        if len(keys) == 1 and find_class(keys[0], classes) is not None:
            hint = f"; write class_path: {keys[0]}, and its arguments below init_args"
            return self._at(node, f"{where} is an object, and {keys[0]!r} is no key of one", hint)
        near = get_close_matches("class_path", keys, n=1, cutoff=0.7)
        if near:
            return self._at(node, f"there is no key {near[0]!r} at {where}", "; did you mean 'class_path'?")
        hint = f"; write class_path: a {classes[0].__name__}, and {', '.join(keys)} below init_args"
        return self._at(node, f"{where} is an object, which needs class_path", hint)

    def _class(self, node: Node, classes: Sequence[type], where: str) -> Iterator[str]:
        name = str(node.value)
        found = find_class(name, classes)
        other = _subclasses(KINDS).get(name) if found is None else found
        if isinstance(other, type) and not issubclass(other, tuple(classes)):
            subclasses = [
                n
                for n, kind in _subclasses(classes).items()
                if kind.__module__.startswith("lightning_lr.") and not inspect.isabstract(kind)
            ]
            hint = f"; known are {', '.join(sorted(subclasses))}" if 0 < len(subclasses) <= 12 else ""
            kinds = " or ".join(dict.fromkeys(kind.__name__ for kind in classes[:2]))
            yield self._at(node, f"{name} at {where} is no {kinds}, but {_kind_of(other)}", hint)
        elif found is None:
            yield self._at(node, f"there is no class {name!r} at {where}", nearest_class(name, classes))

    def _at(self, node: Node, sentence: str, hint: str) -> str:
        return f"{sentence} ({self.path}, line {node.start_mark.line + 1}){hint}"


def _kind_of(found: type) -> str:
    """What a class is, by the nearest of its bases that has a name for users."""
    kinds = (*KINDS, *(base for base in found.__mro__[1:-1] if not base.__name__.startswith("_")))
    kind = next((kind for kind in kinds if issubclass(found, kind)), found)
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


def nearest_class(name: str, classes: Sequence[type]) -> str:
    """What to say behind the name of a class that does not exist: the nearest one, or why its module has none."""
    module, dot, attribute = name.rpartition(".")
    try:
        inside = vars(importlib.import_module(module)) if dot else _subclasses(classes)
    except ImportError as error:
        return f": {error}{_nearest_module(error, module)}"
    return did_you_mean(attribute, [n for n, value in inside.items() if isinstance(value, type)], module + dot)


def _nearest_module(error: ImportError, module: str) -> str:
    """The nearest module in the working directory, or in the package that does exist."""
    parents, _, missing = (error.name or module).rpartition(".")
    names = [info.name for info in pkgutil.iter_modules(_package_path(parents) if parents else [str(Path.cwd())])]
    near = get_close_matches(missing, names, n=1)
    return f"; did you mean {'.'.join(filter(None, (parents, near[0])))!r}?" if near else ""


def _package_path(name: str) -> list[str]:
    try:
        return list(getattr(importlib.import_module(name), "__path__", []))
    except ImportError:
        return []


def _classes_in(annotation: Any) -> tuple[list[type], bool]:
    """The classes of objects that an annotation allows, and whether it allows plain strings as well."""
    if annotation is None:
        return [], True
    if isinstance(annotation, type) and not typing.get_args(annotation):
        is_plain = annotation.__module__ == "builtins" or issubclass(annotation, Path)
        return ([], annotation is str or annotation is object) if is_plain else ([annotation], False)
    if typing.get_origin(annotation) is typing.Literal or annotation is Any:
        return [], True
    parts = [_classes_in(part) for part in typing.get_args(annotation) if part is not type(None)]
    return [c for classes, _ in parts for c in classes], any(plain for _, plain in parts)


def _subclasses(bases: Sequence[type]) -> dict[str, type]:
    """All loaded subclasses by their name, the bases included."""
    found: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        cls = waiting.pop()
        waiting += type.__subclasses__(cls)
        if not cls.__name__.startswith("_"):
            found.setdefault(cls.__name__, cls)
    return found


def find_class(name: str, classes: Sequence[type]) -> type | None:
    """The class of an import path, or of a subclass's name alone; ``None`` where there is none."""
    if "." not in name:
        return _subclasses(classes).get(name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def _arguments(cls: type) -> dict[str, Any]:
    """The arguments of a class with their annotations; those of its bases too where it passes ``**kwargs`` on."""
    arguments: dict[str, Any] = {}
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if init is None or owner is object:
            continue
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # an annotation that cannot be evaluated only costs the check of what is below it
            hints = {}
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                arguments.setdefault(parameter.name, hints.get(parameter.name))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments
