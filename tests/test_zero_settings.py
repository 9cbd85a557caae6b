"""`ZeROStrategy` before its engine: names, YAML, what is written out, and what is refused at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from lightning_lr import CheckpointPolicy, ZeROStrategy
from lightning_lr.strategies.zero import engine as zero_engine
from lightning_lr.strategies.zero.checks import check_all_are_given, check_module
from tests.support.toy import Toy
from tests.support.zero_runs import needs_deepspeed

NAMES = {"zero_1", "zero_2", "zero_3", "zero_2_offload", "zero_3_offload"}


def test_names_are_registered() -> None:
    assert set(StrategyRegistry.available_strategies()) >= NAMES


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=r"pip install 'lightning-lr\[deepspeed\]'"):
        ZeROStrategy()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stage": 0}, "got stage=0; allowed are 1"),
        ({"stage": 4}, "got stage=4; allowed are 1"),
        ({"stage": True}, "got stage=True"),
        ({"stage": 2, "offload_parameters": True}, "got offload_parameters=True with stage=2"),
        ({"stage": 1, "sub_group_size": 100}, "got sub_group_size=100 with stage=1"),
        ({"stage": 2, "zero_optimization": False}, "got zero_optimization=False"),
        ({"config": {"gradient_accumulation_steps": 2}}, r"decided by Trainer\(accumulate_grad_batches"),
        ({"config": {"gradient_clipping": 1.0}}, r"decided by Trainer\(gradient_clip_val"),
        ({"config": {"optimizer": {"type": "Adam"}}}, "decided by the module's configure_optimizers"),
        ({"config": {"zero_optimization": {"stage": 3}}}, "has stage 3, and stage=2 was given"),
        ({"config": {"zero_optimization": {"stage3_max_live_parameters": 1}}}, "it is of stage 3 alone"),
    ],
)
@needs_deepspeed
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(MisconfigurationException, match=says):
        ZeROStrategy(**arguments)


@needs_deepspeed
def test_what_deepspeed_would_choose_is_written_out() -> None:
    config = ZeROStrategy(stage=3, config={"zero_optimization": {"stage3_max_live_parameters": 7}}).config
    assert config is not None
    assert config["gradient_accumulation_steps"] == 1
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False
    zero = config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_max_live_parameters"] == 7, "what the user gave wins"
    assert zero["stage3_param_persistence_threshold"] == 100_000
    assert zero["overlap_comm"] is True
    assert "stage3_prefetch_bucket_size" not in ZeROStrategy(stage=2).config["zero_optimization"]  # type: ignore[index]


@needs_deepspeed
def test_deepspeed_on_another_accelerator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ZeROStrategy()
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "device_name", lambda *args: "cuda")
    with pytest.raises(MisconfigurationException, match="set the environment variable DS_ACCELERATOR=cpu"):
        zero_engine.prepare_cpu("ZeROStrategy")


@needs_deepspeed
@pytest.mark.parametrize("by", ["name", "class path", "class path, stage 2"])
def test_yaml_takes_the_strategy(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-lr"])
    strategy: Any = "zero_3_offload"
    if by != "name":
        policy = {"segments": "every_block", "modules": ["body"]}
        arguments = {"stage": 3, "offload_optimizer": True, "checkpointing": policy, "reduce_bucket_size": 1000}
        arguments["stage"] = 2 if by.endswith("2") else 3
        strategy = {"class_path": "lightning_lr.ZeROStrategy", "init_args": arguments}
    config = {"trainer": {"strategy": strategy, "accelerator": "cpu", "devices": 2, "default_root_dir": str(tmp_path)}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    cli = LightningCLI(
        Toy, run=False, save_config_callback=None, args=["--config", str(file)], auto_configure_optimizers=False,
        seed_everything_default=False,
    )  # fmt: skip
    got = cli.trainer.strategy
    assert isinstance(got, ZeROStrategy)
    assert got.stage == (2 if by.endswith("2") else 3)
    assert got.config is not None
    assert got.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    if by != "name":
        assert got.policy == CheckpointPolicy("every_block", modules=["body"])
        assert got.config["zero_optimization"]["reduce_bucket_size"] == 1000


@needs_deepspeed
@pytest.mark.slow
def test_a_script_with_two_devices_runs_and_ends_by_itself(tmp_path: Path) -> None:
    """As a user starts it: Lightning launches the second process, and both leave by Python's own exit."""
    script = tmp_path / "script.py"
    script.write_text(
        dedent("""
        import sys
        from lightning.pytorch.loggers import CSVLogger
        from lightning.pytorch.callbacks import LearningRateMonitor
        from tests.support.toy import Toy, fit
        from lightning_lr import Cosine, LearningRateSchedule
        callbacks = [LearningRateSchedule(Cosine()), LearningRateMonitor()]
        fit(callbacks, module=Toy(), devices=2, strategy="zero_2", logger=CSVLogger(sys.argv[1]), log_every_n_steps=1)
        """)
    )
    launched = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"}
    env = {name: value for name, value in os.environ.items() if name not in launched}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(script), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    metrics = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    seen = metrics[0].split(",").index("lr-SGD")
    rates = [float(row.split(",")[seen]) for row in metrics[1:] if row.split(",")[seen]]
    assert rates[0] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01, "the monitor sees the effective learning rate"


def test_parameters_without_dimensions_are_refused_by_name() -> None:
    """DeepSpeed's own words are "self.dim() cannot be 0 to view Float as Byte"."""
    module = Toy()
    module.temperature = nn.Parameter(torch.tensor(0.1))
    with pytest.raises(MisconfigurationException, match=r"temperature has 0 dimensions.*of shape \(1,\)"):
        check_module("ZeROStrategy", module)


def test_stage_3_refuses_what_its_checkpoints_would_not_have() -> None:
    module = Toy()
    optimizer = torch.optim.SGD(module.head.parameters(), lr=0.1)
    with pytest.raises(MisconfigurationException, match=r"body.weight, body.bias: not frozen, and in no group"):
        check_all_are_given("ZeROStrategy", module, optimizer)
    module.body.requires_grad_(False)
    check_all_are_given("ZeROStrategy", module, optimizer)
