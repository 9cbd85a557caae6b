"""Modules and parameters by the names they have without wrappers: DDP, FSDP, ``torch.compile``, checkpointing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

WRAPPED = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
"""Where FSDP, ``torch.compile`` and the checkpoint wrapper keep the module that they wrap."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module inside of whatever wraps it."""
    while True:
        inner = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
        if inner is None and isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Attribute name and unwrapped module of each child that has parameters, in definition order."""
    for name, child in unwrapped(module)._modules.items():
        if child is not None and any(True for _ in child.parameters()):
            yield name, unwrapped(child)


def all_parameters(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter in definition order; a tied weight comes once for each of its names."""
    for name, parameter in unwrapped(module)._parameters.items():
        if parameter is not None:
            yield joined(path, name), parameter
    for name, child in children(module):
        yield from all_parameters(child, joined(path, name))


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter under the first of its names in the unwrapped module, as in ``LayerMap``."""
    first = {id(parameter): name for name, parameter in reversed(list(all_parameters(module)))}
    return {name: p for name, p in all_parameters(module) if first[id(p)] == name}


def names_in(module: nn.Module, path: str) -> list[str]:
    """Names of all parameters in ``module``, which is called ``path``."""
    return [name for name, _ in all_parameters(module, path)]


def joined(path: str, name: str) -> str:
    """``path.name``, or ``name`` at the root."""
    return f"{path}.{name}" if path else name


def outer_paths(path: str) -> list[str]:
    """A path and those of the modules around it, the outermost first."""
    parts = path.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def within(path: str, outer: str) -> bool:
    """Whether a path is in a module, or it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has parameters of its own only, also where they are made of others (``weight_norm``)."""
    return all(isinstance(child, nn.ModuleDict) and is_parametrized(module) for _, child in children(module))


def is_single_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch, or one with vectors alone; a graph convolution with a weight is a block."""
    return is_leaf(module) and (type(module).__module__.startswith("torch.") or is_normalization(module))


def leafs_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in ``module`` (or itself) that have parameters of their own only."""
    if is_leaf(module):
        yield module
    for _, child in children(module):
        yield from leafs_of(child)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module is a layer like batch norm: no parameter has more than one dimension, or it is called so."""
    return is_leaf(module) and (
        "norm" in type(module).__name__.lower() or all(p.ndim <= 1 for p in module.parameters())
    )
