"""Strategies that decide about memory, registered by name when the package is imported."""

from lightning.pytorch.strategies import StrategyRegistry

from lightning_lr.strategies.checkpointed import CheckpointedDDPStrategy, CheckpointedStrategy

for _strategy, _description in (
    (CheckpointedStrategy, "One device; activations are kept for backward or computed again by plan"),
    (CheckpointedDDPStrategy, "DDP; activations are kept for backward or computed again by plan"),
):
    StrategyRegistry.register(_strategy.strategy_name, _strategy, description=_description, override=True)

__all__ = ["CheckpointedDDPStrategy", "CheckpointedStrategy"]
