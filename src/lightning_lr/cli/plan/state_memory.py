"""What ``plan`` shows about the memory of parameters, gradients and optimizer: by ZeRO stage and number of ranks, as
DeepSpeed's engine holds it and as the ZeRO paper counts it, and which strategy fits a device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from lightning_lr.cli.plan.model import Addendum
from lightning_lr.sharded_memory import (
    EngineSettings,
    Held,
    ModelSize,
    Stage,
    communication_rounds,
    ddp_bytes,
    engine_bytes,
    paper_bytes,
)

RANKS = (1, 2, 8, 64, 1024)
WAYS: dict[str, tuple[Stage, bool, bool]] = {
    "ddp": (0, False, False),
    "zero_1": (1, False, False),
    "zero_2": (2, False, False),
    "zero_3": (3, False, False),
    "zero_2_offload": (2, True, False),
    "zero_3_offload": (3, True, True),
}
"""Strategies: stage, and whether optimizer and parameters are offloaded; those that keep most on the device first."""


@dataclass(frozen=True)
class Sharding:
    """What a configured strategy sets in the engine.

    Args:
        stage: of ZeRO; 0 for anything else.
        settings: of the engine.
    """

    stage: Stage = 0
    settings: EngineSettings = field(default_factory=EngineSettings)


def configured_sharding(strategy: Any) -> Sharding:
    """The stage and settings of a strategy, as a configuration has it: a name, or ``class_path`` and more."""
    if isinstance(strategy, str):
        return _named(strategy)
    if strategy is None or not hasattr(strategy, "get"):
        return Sharding()
    name = str(strategy.get("class_path", "")).rsplit(".", 1)[-1]
    if "zero" not in name.lower() and "deepspeed" not in name.lower():
        return Sharding()
    given = {**_mapping(strategy.get("init_args")), **_mapping(strategy.get("dict_kwargs"))}
    zero = _mapping(_mapping(given.get("config")).get("zero_optimization"))
    known = {_DEEPSPEED_NAMES.get(key, key): value for key, value in {**given, **zero}.items() if value is not None}
    settings = EngineSettings(**{f.name: known[f.name] for f in fields(EngineSettings) if f.name in known})
    return Sharding(cast(Stage, int(known.get("stage", 2))), settings)


def _mapping(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    return dict(vars(given)) if hasattr(given, "__dict__") else {}


_DEEPSPEED_NAMES = {
    "stage3_param_persistence_threshold": "persistence_threshold",
    "stage3_prefetch_bucket_size": "prefetch_bucket_size",
    "stage3_max_live_parameters": "max_live_parameters",
}


def _named(name: str) -> Sharding:
    match = re.search(r"(?:zero|deepspeed_stage)_(\d)(_offload)?", name)
    if match is None:
        return Sharding(2) if name == "deepspeed" else Sharding()
    stage, offload = cast(Stage, int(match[1])), match[2] is not None
    return Sharding(stage, EngineSettings(offload, offload and stage == 3))


@dataclass(frozen=True)
class StatesOf:
    """A run, as far as its model states depend on it.

    Args:
        model: sizes, and the optimizer's state.
        precision: the Trainer's.
        accumulation: the most micro-batches per update.
        settings: of the engine.
        activations: bytes that a backward needs, where they are known.
    """

    model: ModelSize
    precision: str = "32-true"
    accumulation: int = 1
    settings: EngineSettings = field(default_factory=EngineSettings)
    activations: float | None = None

    @property
    def half(self) -> bool:
        """Whether an engine would compute in 16 bits; Lightning switches it on for ``-mixed`` and ``-true`` alike."""
        return "16" in self.precision

    def held(self, way: str, ranks: int) -> Held:
        """What a rank holds under a strategy of ``WAYS``."""
        stage, optimizer, parameters = WAYS[way]
        if stage == 0:
            return ddp_bytes(self.model, half=self.half and "true" in self.precision)
        settings = replace(self.settings, offload_optimizer=optimizer, offload_parameters=parameters)
        return engine_bytes(self.model, stage, ranks, half=self.half, accumulation=self.accumulation, settings=settings)

    def peak(self, way: str, ranks: int) -> float:
        """The most at a time, with activations."""
        return self.held(way, ranks).peak + (self.activations or 0.0)


def fitting(states: StatesOf, memory: float, ranks: int) -> str | None:
    """The first strategy of ``WAYS`` whose peak fits into so many bytes of a device; ``None`` where none does."""
    return next((way for way in WAYS if states.peak(way, ranks) <= memory), None)


def states_addendum(states: StatesOf, memory: float | None, ranks: Sequence[int] = RANKS) -> Addendum:
    """The table of model states.

    Args:
        states: of the run.
        memory: bytes of a device, or ``None`` where the question is not what fits.
        ranks: the columns.
    """
    rows = [row for way in WAYS for row in _rows(states, way, ranks)]
    activations = "no activations" if states.activations is None else f"{size(states.activations)} of activations"
    below = [
        "engine: parameters, gradients and optimizer at the end of a backward, as DeepSpeed (ddp: torch) holds them; "
        "paper: the ZeRO paper's model",
        f"peak: engine, buckets and what stage 3 gathers, {activations}; not what a step and its kernels need for a "
        "moment",
        _communication(states),
    ]
    if memory is not None:
        found = [(n, fitting(states, memory, n)) for n in ranks]
        first = ", ".join(f"{way or 'none of these'} on {n:,}" for n, way in found)
        below.append(f"first to fit {size(memory)} at its peak: {first} (ranks)")
    frozen = f" and {states.model.frozen:,} frozen" if states.model.frozen else ""
    title = (
        f"Model states per rank: {states.model.numbers:,} parameters{frozen}, {states.precision}, "
        f"{states.model.state_bytes:.3g} bytes of optimizer state for each"
    )
    return Addendum(title, ("strategy", *(f"{n:,} rank{'s' * (n > 1)}" for n in ranks)), tuple(rows), tuple(below))


def _rows(states: StatesOf, way: str, ranks: Sequence[int]) -> list[tuple[str, ...]]:
    stage, offloaded, _ = WAYS[way]
    held = [states.held(way, n) for n in ranks]
    rows = [(f"{way}  engine", *(size(each.model_states) for each in held))]
    if offloaded:
        rows.append(("  host", *(size(each.host) for each in held)))
    else:
        rows.append(("  paper", *(size(paper_bytes(states.model, stage, n, half=states.half)) for n in ranks)))
    return [*rows, ("  peak", *(size(states.peak(way, n)) for n in ranks))]


def _communication(states: StatesOf) -> str:
    by_stage = {
        f"zero_{stage}" if stage else "ddp": communication_rounds(stage, states.accumulation) for stage in (0, 1, 2, 3)
    }
    multiples = ", ".join(f"{way} {times}" for way, times in by_stage.items())
    windows = f" with {states.accumulation} micro-batches" if states.accumulation > 1 else ""
    return f"sent by a rank for an update{windows}, in multiples of the parameters: {multiples}"


def size(count: float) -> str:
    """Bytes in decimal units, with three digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{count:.0f} B"
