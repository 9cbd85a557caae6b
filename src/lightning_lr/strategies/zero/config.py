"""The complete configuration of DeepSpeed: a value that it would choose by itself can change with its version.

Plain dictionaries, in the names of DeepSpeed's configuration; DeepSpeed is not imported. ``gradient_clipping`` is why
everything is written out: left out, it is 0.0 up to DeepSpeed 0.19.2 and 1.0 from 0.19.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

Settings = dict[str, Any]

OWNED: dict[str, str] = {
    "gradient_accumulation_steps": "Trainer(accumulate_grad_batches=...)",
    "train_batch_size": "the DataLoader's batch_size",
    "gradient_clipping": "Trainer(gradient_clip_val=...)",
    "fp16": "Trainer(precision='16-mixed' or '16-true')",
    "bf16": "Trainer(precision='bf16-mixed' or 'bf16-true')",
    "optimizer": "the module's configure_optimizers",
    "scheduler": "the module's configure_optimizers",
}
"""Settings that Lightning decides about, and where."""

STAGE_3_ONLY = (
    "offload_params_device",
    "params_buffer_count",
    "params_buffer_size",
    "max_in_cpu",
    "remote_device",
    "sub_group_size",
    "load_full_weights",
)
"""Arguments of Lightning's ``DeepSpeedStrategy`` that do nothing before stage 3."""

CHOSEN: Settings = {
    "gradient_accumulation_steps": 1,  # Lightning counts, and the strategy marks where an update ends
    "train_micro_batch_size_per_gpu": 1,  # only for the engine's throughput log, which is off
    "zero_allow_untested_optimizer": True,  # an element-wise optimizer is as right on shards as on whole tensors
    "zero_force_ds_cpu_optimizer": False,  # else offloading refuses torch's optimizers
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "wall_clock_breakdown": False,
}

CHOSEN_ZERO: Settings = {"round_robin_gradients": False, "load_from_fp32_weights": True}

CHOSEN_STAGE_3: Settings = {
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": False,
}


def check_arguments(caller: str, stage: int, offload_parameters: bool, given: Mapping[str, Any]) -> None:
    """Refuse a stage that does not exist, and arguments that would do nothing.

    Raises:
        MisconfigurationException: with what was given, what is allowed and what to do.
    """
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise MisconfigurationException(
            f"{caller}: got stage={stage!r}; allowed are 1 (optimizer state sharded), 2 (and gradients) and 3 (and "
            "parameters); without sharding take strategy='ddp'"
        )
    if "zero_optimization" in given:
        raise MisconfigurationException(
            f"{caller}: got zero_optimization={given['zero_optimization']!r}; this strategy sets it; give "
            "the argument stage instead, or take strategy='ddp'"
        )
    if stage < 3 and offload_parameters:
        raise MisconfigurationException(
            f"{caller}: got offload_parameters=True with stage={stage}, where every device keeps all parameters; set "
            "stage=3, or offload_optimizer=True alone"
        )
    for name in STAGE_3_ONLY:
        if stage < 3 and name in given:
            raise MisconfigurationException(
                f"{caller}: got {name}={given[name]!r} with stage={stage}; it is of stage 3 alone: set stage=3 or "
                "leave it out"
            )


def check_config(caller: str, stage: int, config: Mapping[str, Any]) -> None:
    """Refuse a DeepSpeed configuration that sets what something else decides.

    Raises:
        MisconfigurationException: names the setting and its right place.
    """
    for name, owner in OWNED.items():
        if name in config:
            raise MisconfigurationException(
                f"{caller}: the DeepSpeed configuration has {name!r}; it is decided by {owner}: remove it there"
            )
    zero = config.get("zero_optimization", {})
    if zero.get("stage", stage) != stage:
        raise MisconfigurationException(
            f"{caller}: the DeepSpeed configuration has stage {zero['stage']}, and stage={stage} was given; give one"
        )
    strange = [name for name in zero if stage < 3 and (name.startswith("stage3_") or name == "offload_param")]
    if strange:
        raise MisconfigurationException(
            f"{caller}: the DeepSpeed configuration has {strange[0]!r} with stage={stage}; it is of stage 3 alone: set "
            "stage=3 or remove it"
        )


def written_out(defaults: Settings, given: Mapping[str, Any], stage: int) -> Settings:
    """The whole configuration: Lightning's defaults, what is chosen here, and over them what the user gave.

    Args:
        defaults: as Lightning's ``DeepSpeedStrategy`` makes them of its arguments.
        given: the user's DeepSpeed configuration, whose values win.
        stage: 1, 2 or 3.
    """
    zero = {**CHOSEN_ZERO, **(CHOSEN_STAGE_3 if stage == 3 else {})}
    return _over(_over(defaults, {**CHOSEN, "zero_optimization": zero}), given)


def uses_nvme(settings: Mapping[str, Any]) -> bool:
    """Whether anything is offloaded to NVMe."""
    zero = settings["zero_optimization"]
    return any((zero.get(part) or {}).get("device") == "nvme" for part in ("offload_optimizer", "offload_param"))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = _over(lower, value) if isinstance(lower, Mapping) and isinstance(value, Mapping) else value
    return merged
