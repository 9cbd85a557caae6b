"""Strategies that decide about memory, registered by name when the package is imported."""

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from lightning_lr.strategies.checkpointed import CheckpointedDDPStrategy, CheckpointedStrategy
from lightning_lr.strategies.zero.strategy import ZeROStrategy
from lightning_lr.strategies.zero.universal import consolidate, to_universal

for _strategy, _description in (
    (CheckpointedStrategy, "One device; activations are kept for backward or computed again by plan"),
    (CheckpointedDDPStrategy, "DDP; activations are kept for backward or computed again by plan"),
):
    StrategyRegistry.register(_strategy.strategy_name, _strategy, description=_description, override=True)

_ZERO: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("zero_1", "ZeRO: optimizer state in shards", {"stage": 1}),
    ("zero_2", "ZeRO: optimizer state and gradients in shards", {"stage": 2}),
    ("zero_3", "ZeRO: optimizer state, gradients and parameters in shards", {"stage": 3}),
    ("zero_2_offload", "ZeRO 2, the optimizer on the host", {"stage": 2, "offload_optimizer": True}),
    (
        "zero_3_offload",
        "ZeRO 3, optimizer and parameters on the host",
        {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    ),
)
for _name, _description, _arguments in _ZERO:
    StrategyRegistry.register(_name, ZeROStrategy, description=_description, override=True, **_arguments)

__all__ = ["CheckpointedDDPStrategy", "CheckpointedStrategy", "ZeROStrategy", "consolidate", "to_universal"]
