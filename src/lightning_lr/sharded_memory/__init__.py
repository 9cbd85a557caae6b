r"""What parameters, gradients and optimizer hold on each rank, by ZeRO stage, and what the ranks send each other.

Two models stand side by side, because one formula cannot be both. :func:`paper_bytes` is that of the ZeRO paper.
:func:`engine_bytes` is what DeepSpeed's engine holds at the end of a backward: it keeps an fp32 master of each shard
even where the model is fp32, its stage 1 holds as little as its stage 2 without accumulation, and there are buckets.
`benchmarks/zero_memory.py` measures it. Activations are not here: see :mod:`lightning_lr.memory`. Pure torch.

Source: Rajbhandari, Rasley, Ruwase & He 2020, arXiv:1910.02054; for offload Ren et al. 2021, arXiv:2101.06840.
"""

from lightning_lr.sharded_memory.engine_memory import EngineSettings, Held, ddp_bytes, engine_bytes
from lightning_lr.sharded_memory.model_size import HALF, STAGES, WHOLE, ModelSize, Stage, state_bytes
from lightning_lr.sharded_memory.zero_paper import communication_bytes, communication_rounds, paper_bytes

__all__ = [
    "HALF",
    "STAGES",
    "WHOLE",
    "EngineSettings",
    "Held",
    "ModelSize",
    "Stage",
    "communication_bytes",
    "communication_rounds",
    "ddp_bytes",
    "engine_bytes",
    "paper_bytes",
    "state_bytes",
]
