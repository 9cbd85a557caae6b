"""The plan of a run against the run itself: the same learning rate at every update, without training or data."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LinearLR, OneCycleLR, StepLR
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from lightning_lr import Cosine, CosineRestarts, LearningRateScaling, LearningRateSchedule, Step, WarmupStableDecay
from lightning_lr.cli import main
from lightning_lr.cli.figure import Panel
from lightning_lr.cli.plan import picture as plan_picture
from lightning_lr.cli.plan import walk as planning
from lightning_lr.cli.plan.command import PlanCLI
from lightning_lr.cli.plan.configured_run import PlanOptions, plan_run
from lightning_lr.cli.plan.epoch import epoch_of, limited
from lightning_lr.cli.plan.walk import Plan, make_plan
from lightning_lr.cli.report.logger_files import read_csv
from lightning_lr.progress import EpochShape, RunShape

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.randn(45, 3))


class Samples(LightningDataModule):
    """45 samples, so that a batch of 8 leaves a short one."""

    def __init__(self, batch_size: int = 8, drop_last: bool = False, stream: bool = False) -> None:
        super().__init__()
        self.batch_size, self.drop_last, self.stream = batch_size, drop_last, stream

    def train_dataloader(self) -> DataLoader[Any]:
        data: Dataset[Any] = Stream() if self.stream else TensorDataset(torch.randn(45, 3))
        return DataLoader(data, batch_size=self.batch_size, drop_last=self.drop_last)


class Elsewhere(LightningDataModule):
    """Data that would have to be downloaded."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def prepare_data(self) -> None:
        raise AssertionError("a plan downloads nothing")

    def setup(self, stage: str) -> None:
        raise FileNotFoundError("no images in ./data; fetch them first")


class Model(LightningModule):
    """One layer, in two parameter groups, with a choice of what configure_optimizers returns."""

    def __init__(self, configure: str = "plain", blocks: int = 2) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 1) for _ in range(blocks))
        self.configure = configure

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        return sum(layer(x).square().mean() for layer in self.layers)  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        optimizer = SGD([{"params": p.parameters(), "lr": 0.1 / (i + 1)} for i, p in enumerate(self.layers)], lr=0.1)
        if self.configure == "linear warm-up":
            return [optimizer], [{"scheduler": LinearLR(optimizer, 0.1, 1.0, total_iters=7), "interval": "step"}]
        if self.configure == "steps":
            return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, step_size=1, gamma=0.5)}
        if self.configure == "needs a trainer":
            scheduler = OneCycleLR(optimizer, 1.0, int(self.trainer.estimated_stepping_batches))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        if self.configure == "needs a fit":
            raise RuntimeError("no data yet")
        if self.configure == "two optimizers":
            return [SGD(layer.parameters(), lr=0.1) for layer in self.layers]
        return optimizer


def config(
    callbacks: list[Any], data: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
            "callbacks": callbacks,
        },
        "model": {"class_path": f"{__name__}.Model", "init_args": model or {}},
        "data": {"class_path": f"{__name__}.Samples", "init_args": data or {}},
    }


def schedule(curve: str, **arguments: Any) -> dict[str, Any]:
    init_args = {"curve": {"class_path": curve, "init_args": arguments}}
    return {"class_path": "LearningRateSchedule", "init_args": init_args}


SCALING = {"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 4, "warmup_epochs": 1.5}}
GROWING = {
    "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
    "init_args": {"scheduling": {1: 2, 2: 4}},
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Writes a configuration into an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(content: dict[str, Any]) -> str:
        Path("c.yaml").write_text(yaml.safe_dump(content))
        return "c.yaml"

    return write


def planned(path: str, *options: str, given: PlanOptions | None = None) -> Plan:
    configured = PlanCLI(["--config", path, *options])
    return plan_run(configured.settings, configured.model, configured.datamodule, given or PlanOptions())


# ---------------------------------------------------------------------- plan and run
RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ragged epochs": (config([schedule("Cosine", warmup=0.2)]), []),
    "dropped last batch": (config([schedule("Cosine", warmup=0.2)], {"drop_last": True}), []),
    "accumulation": (config([schedule("Polynomial")]), ["--trainer.accumulate_grad_batches=4"]),
    "max_steps within an epoch": (config([schedule("Step")]), ["--trainer.max_steps=11", "--trainer.max_epochs=-1"]),
    "growing accumulation": (config([GROWING, schedule("SlantedTriangle")]), []),
    "a share of the batches": (config([schedule("Cosine")]), ["--trainer.limit_train_batches=0.7"]),
    "some of the batches": (config([schedule("Cosine")]), ["--trainer.limit_train_batches=4"]),
    "a stream": (config([schedule("Cosine")], {"stream": True}), ["--trainer.limit_train_batches=4"]),
    "scaling and schedule": (config([SCALING, schedule("CosineRestarts", first_cycle=0.3)]), []),
    "a linear warm-up of the user": (config([schedule("Cosine")], model={"configure": "linear warm-up"}), []),
    "the user's steps per epoch": (config([SCALING], model={"configure": "steps"}), []),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_run_has_the_learning_rate_of_the_plan_at_every_update(
    case: str, write: Callable[[dict[str, Any]], str]
) -> None:
    content, options = RUNS[case]
    path = write(content)
    plan = planned(path, *options)
    assert main(["fit", "--config", path, *options]) == 0
    logged = read_csv(Path("logs/lightning_logs/version_0/metrics.csv"))
    for group, lr in zip(plan.groups, plan.lr, strict=True):
        assert logged[f"lr/{group}"].values == lr  # the same floats: the same objects computed them
    assert logged["progress/updates"].values == [float(update + 1) for update in plan.updates]
    assert logged["progress/samples"].values == [float(units) for units in [*plan.units[1:], plan.shape.total_units]]
    assert len(set(plan.lr[0])) > 3


def test_rows_cover_the_run_without_gaps_and_change_with_phase_or_batch(
    write: Callable[[dict[str, Any]], str],
) -> None:
    plan = planned(write(RUNS["growing accumulation"][0]))
    for before, row in zip(plan.rows, plan.rows[1:], strict=False):
        assert before.updates[1] == row.updates[0]
        assert before.units[1] == row.units[0]
        assert (before.phases, before.batch.accumulation) != (row.phases, row.batch.accumulation)
    assert plan.rows[0].updates[0] == 0
    assert plan.rows[-1].updates[1] == plan.shape.total_updates == 6 + 3 + 2
    assert plan.rows[-1].units[1] == plan.shape.total_units == 3 * 45
    assert [row.batch.accumulation for row in plan.rows] == [1, 1, 2, 4]
    assert [row.batch_size for row in plan.rows] == [8, 8, 16, 32]
    assert [row.phases for row in plan.rows] == [("climb",), ("decay",), ("decay",), ("decay",)]
    for row in plan.rows:
        assert row.lr_first == tuple(lr[row.updates[0]] for lr in plan.lr)
        assert row.lr_last == tuple(lr[row.updates[1] - 1] for lr in plan.lr)


def test_two_callbacks_cut_the_run_where_either_changes_its_phase() -> None:
    shape = RunShape(EpochShape(100, 10, 1000), max_epochs=10)
    plan = make_plan(shape, [LearningRateScaling(5, warmup_epochs=2), LearningRateSchedule(Step([0.1, 0.5]))])
    assert [(row.phases, row.updates) for row in plan.rows] == [
        (("scaling climb", "step 1"), (0, 100)),
        (("scaling climb", "step 2"), (100, 200)),
        (("scaled", "step 2"), (200, 500)),
        (("scaled", "step 3"), (500, 1000)),
    ]
    assert plan.rows[2].epochs == (2.0, 5.0)


def test_a_long_run_is_evaluated_at_some_updates_and_at_every_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = RunShape(EpochShape(1000, 10, 10_000), max_epochs=1)
    methods = [LearningRateSchedule(WarmupStableDecay(0.0505, 0.2))]
    every = make_plan(shape, methods)
    monkeypatch.setattr(planning, "MAX_POINTS", 30)
    some = make_plan(shape, methods)
    assert len(every.updates) == 1000
    assert 30 <= len(some.updates) <= 40
    assert some.rows == every.rows
    assert some.lr[0] == [every.lr[0][update] for update in some.updates]


def test_a_phase_shorter_than_an_update_is_noted() -> None:
    plan = make_plan(RunShape(EpochShape(10, 8, 80), max_epochs=1), [LearningRateSchedule(Cosine(warmup=0.01))])
    assert [row.phases for row in plan.rows] == [("warm-up",), ("cosine",)]  # the first update begins in it
    plan = make_plan(RunShape(EpochShape(10, 8, 80), max_epochs=1), [LearningRateSchedule(Step([0.31, 0.32]))])
    assert plan.notes == ("the phase 'step 2' is shorter than one update and does not happen",)


# ---------------------------------------------------------------------- size of the run, without a Trainer
@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 200),
    batch=st.integers(1, 20),
    world=st.integers(1, 5),
    drop_last=st.booleans(),
    limit=st.one_of(st.integers(1, 30), st.floats(0.1, 1.0)),
)
def test_an_epoch_is_split_as_torch_splits_it(
    samples: int, batch: int, world: int, drop_last: bool, limit: int | float
) -> None:
    dataset = TensorDataset(torch.zeros(samples))
    sampler = DistributedSampler(dataset, num_replicas=world, rank=0)
    batches = [len(indices) for indices in BatchSampler(sampler, batch, drop_last)]
    kept = batches[: limit if isinstance(limit, int) else int(len(batches) * limit)]
    epoch = limited(epoch_of(samples, batch, world, drop_last), limit)
    assert epoch.micro_batches == len(kept)
    assert [epoch.units(i) for i in range(len(kept))] == [size * world for size in kept]


def test_a_plan_for_gpus_that_are_not_here_reads_no_data_and_writes_only_the_picture(
    write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = config([SCALING, schedule("Cosine")])
    content["trainer"] |= {"accelerator": "gpu", "devices": 4, "num_nodes": 2, "strategy": "ddp"}
    content["data"] = {"class_path": f"{__name__}.Elsewhere"}
    path = write(content)
    assert main(["plan", "--config", path, "--dataset-size", "60000", "--out", "plots/plan.png"]) == 0
    printed = capsys.readouterr().out
    assert "512 = 64 x 1 x 8" in printed
    assert "354 updates, 180,000 samples in 3 epochs" in printed  # 118 of 512 an epoch, the last one short
    assert "lr x 128 for batch 512" in printed
    files = {str(file) for file in Path().rglob("*") if file.is_file()}
    assert files == {"c.yaml", "plots/plan.png"}
    assert Path("plots/plan.png").read_bytes()[16:20] == (1200).to_bytes(4, "big")  # width in the header of a PNG

    assert main(["plan", "--config", path, "--dataset-size=600", "--batch-size=10", "--world-size=3"]) == 0
    assert "30 = 10 x 1 x 3" in capsys.readouterr().out


def test_data_that_is_not_here_asks_for_its_size(
    write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = config([schedule("Cosine")])
    content["data"] = {"class_path": f"{__name__}.Elsewhere"}
    assert main(["plan", "--config", write(content)]) == 2
    error = capsys.readouterr().err
    assert "no images in ./data" in error
    assert "give --dataset-size N" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("trainer", "world", "noted"),
    [
        ({"devices": 2}, 2, False),
        ({"devices": "3", "num_nodes": 2}, 6, False),
        ({"devices": [0, 2]}, 2, False),
        ({"devices": "auto"}, 1, False),
        ({"devices": "auto", "accelerator": "auto"}, 1, True),
        ({"devices": -1, "accelerator": "gpu", "num_nodes": 3}, 3, True),
    ],
)
def test_devices_are_read_from_the_configuration(
    trainer: dict[str, Any], world: int, noted: bool, write: Callable[[dict[str, Any]], str]
) -> None:
    content = config([schedule("Cosine")])
    content["trainer"] |= trainer
    plan = planned(write(content))
    assert plan.shape.epoch.world_size == world
    assert plan.shape.epoch.device_samples == math.ceil(45 / world)
    assert any("set --world-size" in note for note in plan.notes) == noted


def test_without_a_limit_the_plan_has_lightnings_thousand_epochs(write: Callable[[dict[str, Any]], str]) -> None:
    content = config([schedule("Cosine")])
    content["trainer"]["max_epochs"] = None
    plan = planned(write(content))
    assert plan.shape.total_updates == 6000
    assert any("1000 epochs" in note for note in plan.notes)


# ---------------------------------------------------------------------- what cannot be planned
def test_an_optimizer_that_cannot_be_made_leaves_factors(
    write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config([schedule("Cosine", warmup=0.2)], model={"configure": "needs a fit"}))
    plan = planned(path)
    assert plan.relative
    curve = Cosine(warmup=0.2)
    total = plan.shape.total_updates
    assert plan.lr == [pytest.approx([curve(t / total, 1 / total) for t in range(total)], rel=1e-12)]
    assert main(["plan", "--config", path, "--out", "plan.png"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "factor on lr" in printed
    assert "Model.configure_optimizers does not work before training" in printed


@pytest.mark.parametrize("strategy", ["checkpointed", {"class_path": "lightning_lr.CheckpointedStrategy"}])
def test_a_strategy_of_one_device_is_refused_with_several_as_by_fit(
    strategy: Any, write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = config([schedule("Cosine")])
    content["trainer"] |= {"strategy": strategy, "devices": 2, "accelerator": "cpu"}
    assert main(["plan", "--config", write(content)]) == 2
    assert "the Trainer has 2 devices, and this strategy uses one; set devices=1" in capsys.readouterr().err
    content["trainer"]["devices"] = 1
    assert main(["plan", "--config", write(content)]) == 0
    content["trainer"] |= {"strategy": "ddp_checkpointed", "devices": 2}
    assert main(["plan", "--config", write(content)]) == 0


def test_a_strategy_that_does_not_exist_is_refused_with_the_nearest(
    write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = config([schedule("Cosine")])
    content["trainer"]["strategy"] = "zero2"
    assert main(["plan", "--config", write(content)]) == 2
    assert "there is no strategy 'zero2'" in capsys.readouterr().err
    content["trainer"]["strategy"] = "zero_2"
    assert main(["plan", "--config", write(content)]) == 0


def test_a_scheduler_that_asks_the_trainer_for_the_length_is_drawn(write: Callable[[dict[str, Any]], str]) -> None:
    def drawn(callbacks: list[Any]) -> list[float]:
        plan = planned(write(config(callbacks, model={"configure": "needs a trainer"})))
        assert not plan.relative
        return plan.lr[0]

    alone = drawn([])
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, wanted = OneCycleLR(optimizer, 1.0, len(alone)), []
    for _ in alone:
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(wanted) < len(alone):
            scheduler.step()
    assert alone == wanted
    with pytest.raises(MisconfigurationException, match=r"OneCycleLR.*module_scheduler"):
        drawn([schedule("Cosine")])
    curve = [(1 + math.cos(math.pi * update / len(alone))) / 2 for update in range(len(alone))]
    chosen = schedule("Cosine")
    chosen["init_args"]["module_scheduler"] = "replace"
    assert drawn([chosen]) == pytest.approx(curve, rel=1e-12), "from max_lr"
    chosen["init_args"]["module_scheduler"] = "multiply"
    assert drawn([chosen]) == pytest.approx([a * b for a, b in zip(alone, curve, strict=True)], rel=1e-12)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (config([schedule("Cosine")], model={"configure": "steps"}), "also returns a StepLR"),
        (config([schedule("Cosine")], model={"configure": "two optimizers"}), "2 optimizers; Lightning trains"),
        (config([SCALING]) | {"trainer": config([SCALING])["trainer"] | {"max_epochs": 1}}, "only 1 epochs"),
        (
            config([schedule("Cosine"), SCALING], {"stream": True}),
            "counts epochs, and the train dataloader has",
        ),
        (config([schedule("Cosine")] * 2), "two of them are attached"),
    ],
)
def test_what_fit_refuses_plan_refuses(
    content: dict[str, Any], said: str, write: Callable[[dict[str, Any]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", write(content)]) == 2
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------- the picture
def many_groups(count: int) -> Optimizer:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.8**i} for i in range(count)], lr=1.0)


@pytest.mark.parametrize("groups", [1, 3, 30])
def test_a_later_method_adds_its_panel_to_the_picture(
    groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = RunShape(EpochShape(20, 8, 157), max_epochs=4)
    plan = make_plan(shape, [LearningRateSchedule(CosineRestarts(0.02))], [many_groups(groups)])
    drawn: list[Plan] = []
    added = Panel[Plan]("noise scale", lambda plan: True, lambda ax, plan: drawn.append(plan))
    absent = Panel[Plan]("memory", lambda plan: False, lambda ax, plan: pytest.fail("drawn without having it"))
    monkeypatch.setattr(plan_picture, "PANELS", [*plan_picture.PANELS, added, absent])
    plan_picture.save_plan_picture(plan, "Plan", ["a fact"], tmp_path / "plan.png")
    assert drawn == [plan]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trial_run_is_planned_as_it_is_trained(
    accumulation: int, write: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The milestones of a long run are after the end of a fast_dev_run, which is no reason to refuse it."""
    steps = {"class_path": "StepRamp", "init_args": {"milestones": [60, 120], "factor": 2.0}}
    ramp = {"class_path": "BatchSizeRamp", "init_args": {"schedule": steps}}
    path = write(config([ramp if accumulation == 1 else schedule("Cosine", warmup=0.5)]))
    options = ["--trainer.fast_dev_run=3", f"--trainer.accumulate_grad_batches={accumulation}"]
    plan, seen = planned(path, *options), []
    monkeypatch.setattr(
        Model, "on_before_optimizer_step", lambda self, optimizer: seen.append(optimizer.param_groups[0]["lr"])
    )
    assert main(["fit", "--config", path, *options]) == 0
    assert plan.lr[0] == seen
    assert len(seen) == -(-3 // accumulation)
