"""What ``plan`` prints about machines: model states by stage, what fits, and time to finish."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from lightning_lr.activations import CheckpointPolicy
from lightning_lr.activations.compression import ActivationCompressor
from lightning_lr.cli import main
from lightning_lr.cli.plan.activation_memory import configured_policy, saved_bytes
from lightning_lr.cli.plan.options import parse_options
from lightning_lr.cli.plan.state_memory import WAYS, Sharding, StatesOf, configured_sharding, fitting, size
from lightning_lr.memory import measure_saved
from lightning_lr.sharded_memory import EngineSettings, ModelSize
from lightning_lr.step_time import StepTime

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without lines."""
    rows = [line for line in text.split(heading)[1].splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


# ---------------------------------------------------------------------- the configurations of the example
@pytest.mark.parametrize("name", ["zero_2", "zero_3_offload"])
def test_the_examples_plan_shows_both_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["--config", str(REPOSITORY / f"configs/{name}.yaml")], capsys)
    rows = {row[0]: row[1:] for row in cells(text, "Model states per rank")}
    numbers = int(re.search(r"Model states per rank: ([\d,]+) parameters", text)[1].replace(",", ""))  # type: ignore[index]
    assert rows["ddp  engine"] == [size(16 * numbers)] * 5
    assert rows["zero_2  engine"][:2] == [size(20 * numbers), size(12 * numbers)]
    assert "of activations" in text
    assert "zero_1 2, zero_2 2, zero_3 3" in text


def test_the_papers_figure_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(REPOSITORY / "configs/zero_2.yaml"), "--parameters=7.5e9", "--device-memory=24GB"]
    text = printed([*words, "--trainer.precision=bf16-mixed"], capsys)
    rows = cells(text, "Model states per rank")
    papers = {before[0].split()[0]: row for before, row in pairwise(rows) if row[0] == "paper"}
    on_64 = {way: row[4] for way, row in papers.items()}
    assert on_64 == {"ddp": "120 GB", "zero_1": "31.4 GB", "zero_2": "16.6 GB", "zero_3": "1.88 GB"}
    assert (
        "first to fit 24.0 GB at its peak: zero_2_offload on 1, zero_2_offload on 2, zero_3 on 8, zero_1 on 64"
        in " ".join(text.split())
    )


def test_nothing_is_said_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["--config", str(REPOSITORY / "configs/digits.yaml")], capsys)
    assert "Model states" not in text
    assert "time" not in text
    text = printed(["--config", str(REPOSITORY / "configs/digits.yaml"), "--memory"], capsys)
    assert "4 bytes of optimizer state for each" in text  # SGD with momentum


# ---------------------------------------------------------------------- time
def test_time_from_given_and_from_measured_costs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(REPOSITORY / "configs/batch_size_ramp.yaml"), "--dataset-size=60000"]
    text = printed([*words, "--micro-batch-time=10ms+0.1ms*n", "--update-time=5ms", "--world-size=8"], capsys)
    assert re.search(r"time to finish +\d+.* at the fixed batch of 1,024, 1\.\d+ times as long", text)
    assert "┃" in text
    assert "time" in text.split("┡")[0].split("phase")[1]
    text = printed(["--config", str(REPOSITORY / "configs/digits.yaml"), "--micro-batch-time=measure"], capsys)
    assert re.search(r"s per sample for a micro-batch, \d\S* s for an update", text)


# ---------------------------------------------------------------------- what fits
def test_the_first_that_fits_shards_least() -> None:
    states = StatesOf(ModelSize((100_000_000,) * 75), "bf16-mixed")
    assert fitting(states, 200e9, 1) == "ddp"
    assert fitting(states, 24e9, 64) == "zero_1", "as little as stage 2, without accumulation"
    assert fitting(replace(states, accumulation=4), 24e9, 64) == "zero_2"
    assert fitting(states, 24e9, 8) == "zero_3"
    assert fitting(states, 24e9, 1) == "zero_2_offload"
    assert fitting(states, 8e9, 1) == "zero_3_offload"
    assert fitting(states, 1e9, 1) is None
    full = StatesOf(states.model, "bf16-mixed", activations=22e9)
    assert fitting(full, 24e9, 64) is None
    assert all(full.peak(way, 8) == states.peak(way, 8) + 22e9 for way in WAYS)


def test_true_half_precision_halves_ddp_too() -> None:
    sizes = {
        p: StatesOf(ModelSize((1000,)), p).held("ddp", 8).model_states for p in ("32-true", "bf16-mixed", "bf16-true")
    }
    assert sizes == {"32-true": 16_000, "bf16-mixed": 16_000, "bf16-true": 8_000}


# ---------------------------------------------------------------------- what the configuration says
def test_stage_and_settings_are_read_from_the_strategy() -> None:
    assert configured_sharding("zero_2") == Sharding(2)
    assert configured_sharding("zero_3_offload") == Sharding(3, EngineSettings(True, True))
    assert configured_sharding("deepspeed_stage_2_offload") == Sharding(2, EngineSettings(True))
    assert configured_sharding("ddp") == configured_sharding(None) == Sharding()
    zero = {"stage3_param_persistence_threshold": 7, "overlap_comm": False}
    init_args: dict[str, Any] = {"stage": 3, "reduce_bucket_size": 5, "config": {"zero_optimization": zero}}
    found = configured_sharding({"class_path": "lightning_lr.ZeROStrategy", "init_args": init_args})
    assert found == Sharding(3, EngineSettings(reduce_bucket_size=5, persistence_threshold=7, overlap_comm=False))
    policy = {"class_path": "ZeROStrategy", "init_args": {"checkpointing": {"segments": 3}}}
    assert configured_policy(policy) == CheckpointPolicy(segments=3)
    assert configured_policy({"class_path": "ZeROStrategy", "init_args": {}}) is None


# ---------------------------------------------------------------------- options
def test_units_are_those_of_people() -> None:
    words = ["--device-memory", "24GiB", "--parameters", "7.5B", "--bandwidth", "25GB/s", "--latency", "20us"]
    options, rest = parse_options([*words, "--micro-batch-time", "20ms + 1e-3n", "--trainer.max_epochs", "3"])
    assert options.device_memory == 24 * 2**30
    assert options.parameters == 7_500_000_000
    assert (options.network.bandwidth, options.network.latency) == pytest.approx((25e9, 20e-6))
    assert options.step_time == StepTime(0.02, 1e-3)
    assert rest == ["--trainer.max_epochs", "3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device-memory", "24 pounds"], "as 24GB or 24GiB"),
        (["--device-memory", "0GB"], "more than 0"),
        (["--parameters", "0"], "at least 1"),
        (["--micro-batch-time", "fast"], "for example 0.02"),
        (["--bandwidth", "1GB"], "have no effect without --micro-batch-time"),
    ],
)
def test_what_is_no_quantity_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(words)
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------- activations
class Deep(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Tanh()) for _ in range(6)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        for block in self.blocks:
            batch = block(batch)
        return batch.square().mean()  # type: ignore[no-any-return]


def test_saved_bytes_are_extrapolated_to_the_planned_micro_batch() -> None:
    model, batch = Deep(), torch.randn(16, 64)
    buffers = [b.clone() for b in model.buffers()]
    found = saved_bytes(None, None, model, batch, 256, "32-true", [])
    fresh = Deep()
    measured = measure_saved(fresh, lambda: fresh.training_step(torch.randn(256, 64), 0)).saved_at_end_of_forward
    assert found == pytest.approx(measured, rel=0.1)
    policy = CheckpointPolicy(segments=3)
    cut = saved_bytes(policy, None, model, batch, 256, "32-true", [])
    packed = saved_bytes(None, ActivationCompressor(model, 4), model, batch, 256, "32-true", [])
    assert cut is not None
    assert packed is not None
    assert found is not None
    assert cut < 0.8 * found
    assert packed < 0.5 * found
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def test_example_configurations_are_alike_but_for_the_strategy() -> None:
    made = [yaml.safe_load((REPOSITORY / f"configs/{name}.yaml").read_text()) for name in ("zero_2", "zero_3_offload")]
    assert [config["trainer"]["strategy"] for config in made] == ["zero_2", "zero_3_offload"]
    assert made[0]["model"] == made[1]["model"]
    assert made[0]["data"] == made[1]["data"]
