"""Copies of a trained network in the same module: an EMA or momentum encoder, a teacher, a target network.

A copy is no layer of the network that it copies. It is left out while the order of layers is read, and its parameters
get the places of those that they mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_lr.layers import roles
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.names import all_parameters, children, is_leaf, joined, unwrapped
from lightning_lr.layers.stand_ins import copied

COPY = re.compile(
    r"(.*_)?(ema|target|teacher|momentum|avg|average|averaged|swa|shadow|slow|key|k|ref|reference|frozen|copy|old|prev"
    r"|previous|offline|moving)(_.*)?"
)
"""Names of copies."""


def copies(model: nn.Module, passes: Passes) -> dict[str, str]:
    """Path of each copy to the path of what it copies.

    A copy has the class and the parameters of the original by name and shape. It is called a copy, or it is frozen and
    a forward pass shows that neither feeds the other. Elements of lists and numbered siblings are blocks, not copies.
    A part of a larger network is none, though it looks like a part of the other: of a module that is called a copy, all
    parts are copies or none is.
    """
    alike: dict[object, list[tuple[str, nn.Module]]] = {}
    for path, module in _sub_models(model, ""):
        shapes = tuple((name, tuple(p.shape)) for name, p in all_parameters(module))
        if len(shapes) > 1:
            alike.setdefault((type(module), shapes), []).append((path, module))
    found: dict[str, str] = {}
    for same in alike.values():
        originals = [(path, m) for path, m in same if not _is_called_copy(path, model) and _trains(m)]
        for path, module in same if originals else ():
            original, of_one_name = _counterpart(path, [other for other, _ in originals])
            if is_leaf(module) and not of_one_name and not COPY.fullmatch(path.rpartition(".")[2]):
                continue
            apart = not any(path.startswith(f"{done}.") for done in found) and path != original
            called = _is_called_copy(path, model)
            if apart and (called or not _trains(module)) and _shares_nothing(module, originals[0][1]):
                linked = _linked(model, passes, path, original)
                if linked is False or (linked is None and called):
                    found[path] = original
    return {path: original for path, original in found.items() if _of_whole_copies(path, found, model)}


def _counterpart(path: str, originals: list[str]) -> tuple[str, bool]:
    """The original that has the copy's own name, and whether there is one; else the first."""
    own = path.rpartition(".")[2]
    named = [other for other in originals if other.rpartition(".")[2] == own]
    return (named or originals)[0], bool(named)


def _of_whole_copies(path: str, found: Mapping[str, str], model: nn.Module) -> bool:
    """Whether the module that holds a copy is no copy by its name, or has nothing but copies."""
    parent = path.rpartition(".")[0]
    if not parent or not _is_called_copy(parent, model):
        return True
    module = model
    for part in parent.split("."):
        module = unwrapped(module)._modules[part]  # type: ignore[assignment]
    return all(joined(parent, name) in found for name, _ in children(module))


def without(model: nn.Module, left_out: Mapping[str, str], passes: Passes, path: str = "") -> nn.Module:
    """The model without some sub-models; what is on the way to them is a copy, and ``model`` stays as it is."""
    if not any(gone == path or gone.startswith(f"{path}." if path else "") for gone in left_out):
        return model
    stand_in = copied(unwrapped(model))
    stand_in.__dict__["_modules"] = {
        name: None
        if child is None or joined(path, name) in left_out
        else without(unwrapped(child), left_out, passes, joined(path, name))
        for name, child in unwrapped(model)._modules.items()
    }
    passes.stands_for(stand_in, unwrapped(model))
    return stand_in


def _sub_models(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Sub-models from the outside to the inside, but nothing in lists."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return
    inside = list(children(module))
    counted = roles.numbered(inside)
    for name, child in inside:
        if name not in counted:
            yield joined(path, name), child
            yield from _sub_models(child, joined(path, name))


def _is_called_copy(path: str, model: nn.Module) -> bool:
    parts = path.split(".")
    if any(COPY.fullmatch(part) for part in parts):
        return True
    module = model
    for part in parts:
        module = unwrapped(module)._modules[part]  # type: ignore[assignment]
        if isinstance(module, AveragedModel):
            return True
    return False


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _shares_nothing(one: nn.Module, other: nn.Module) -> bool:
    return {id(p) for p in one.parameters()}.isdisjoint(id(p) for p in other.parameters())


def _linked(model: nn.Module, passes: Passes, one: str, other: str) -> bool | None:
    """Whether one feeds the other, in the module that holds both; ``None`` where no forward pass calls the original."""
    path, module, a, b = "", model, one.split("."), other.split(".")
    while a[0] == b[0]:
        path, module = joined(path, a[0]), unwrapped(module)._modules[a[0]]  # type: ignore[assignment]
        a, b = a[1:], b[1:]
    visits = passes.of(unwrapped(module), path)
    if visits is None or not visits.has(b[0]):
        return None
    return visits.reaches([a[0]], [b[0]]) or visits.reaches([b[0]], [a[0]])
