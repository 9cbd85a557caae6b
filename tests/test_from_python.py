"""``lightning_lr.plan`` before ``fit``, and ``lightning_lr.report`` after it: the same as the commands show."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import lightning_lr as lr
from lightning_lr.cli.errors import ConfigurationError


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = batch[0]
        for block in self.blocks:
            x = block(x)
        loss = x.square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(24, 3)), batch_size=4)


def trainer(root: Path, *callbacks: Any, **more: Any) -> Trainer:
    return Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(root), log_every_n_steps=1, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **more,
    )  # fmt: skip


def test_a_plan_is_what_the_run_then_does(tmp_path: Path) -> None:
    made = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine(warmup=0.25)), lr.LayerwiseLRDecay(0.5))
    module, data = Module(), Data()
    before = [p.clone() for p in module.parameters()]
    drawn = torch.get_rng_state()
    planned = lr.plan(made, module, data)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert "forward" not in vars(module)
    assert "configure_optimizers" not in vars(module)
    assert planned.data.shape.total_updates == 12
    made.fit(module, data)
    reported = lr.report(made)
    for group, values in zip(planned.data.groups, planned.data.lr, strict=True):
        assert reported.data.metrics[f"lr/{group}"].values == pytest.approx(values, rel=1e-6)


class Downloaded(LightningDataModule):
    def prepare_data(self) -> None:
        self.here = True

    def setup(self, stage: str) -> None:
        if not hasattr(self, "here"):
            raise FileNotFoundError("no images in ./data")

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


def test_data_that_is_not_here_is_asked_for_in_the_words_of_python(tmp_path: Path) -> None:
    made, data = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine())), Downloaded()
    with pytest.raises(ConfigurationError, match=r"no images in ./data.*call its prepare_data\(\) before") as refused:
        lr.plan(made, Module(), data)
    assert "--" not in str(refused.value)
    data.prepare_data()
    assert lr.plan(made, Module(), data).data.shape.total_updates == 12


class Drawing(Dataset[Any]):
    """Samples that depend on how many were read before, and on every random generator that there is."""

    def __init__(self) -> None:
        self.reads, self.own = 0, numpy.random.default_rng(1)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads += 1
        drawn = self.own.random() + numpy.random.rand() + random.random() + float(torch.rand(()))
        return torch.full((3,), self.reads / 24 + drawn)


class Keeping(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.drawing, self.generator = Drawing(), torch.Generator().manual_seed(3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.drawing, batch_size=4, shuffle=True, generator=self.generator)


@pytest.mark.parametrize("source", [Keeping, lambda: Keeping().train_dataloader()])
@pytest.mark.parametrize("reads", ["checkpointed", "compression", "nothing"])
def test_a_plan_reads_a_batch_that_the_run_does_not_miss(reads: str, source: Any, tmp_path: Path) -> None:
    """Activations are planned on a batch; reading it moves generators, samplers and what the data set counts."""

    def trained(planned: bool) -> list[float]:
        seed_everything(2, verbose=False)
        compression = [lr.ActivationCompression(bits=8)] if reads == "compression" else []
        strategy = "checkpointed" if reads == "checkpointed" else "auto"
        made, module, data = trainer(tmp_path, *compression, strategy=strategy), Module(), source()
        if planned:
            lr.plan(made, module, data)
        made.fit(module, data)
        return [*torch.cat([p.detach().flatten() for p in module.parameters()]).tolist(), random.random()]

    assert trained(planned=True) == trained(planned=False)


@pytest.mark.parametrize(("dealt", "updates"), [(True, 6), (False, 12)])
def test_whether_devices_share_the_samples_is_the_trainers_to_say(dealt: bool, updates: int, tmp_path: Path) -> None:
    schedule = lr.LearningRateSchedule(lr.Cosine())
    made = trainer(tmp_path, schedule, devices=2, strategy="ddp", use_distributed_sampler=dealt)
    assert lr.plan(made, Module(), loader()).data.shape.total_updates == updates


@pytest.mark.parametrize(("share", "updates"), [(2, 2), (0.5, 3)])
def test_overfitting_reads_the_data_set_in_order_whatever_its_sampler_draws(
    share: Any, updates: int, tmp_path: Path
) -> None:
    """24 samples by 4 are 6 batches, though the sampler would draw 48."""
    twice = DataLoader(loader().dataset, 4, sampler=WeightedRandomSampler([1.0] * 24, 48))
    made = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine()), overfit_batches=share)
    assert lr.plan(made, Module(), twice).data.shape.total_updates == 2 * updates
    made.fit(Module(), twice)
    assert made.global_step == 2 * updates


@pytest.mark.parametrize(
    ("callbacks", "arguments", "said"),
    [
        ([lr.BatchSizeRamp(lr.StepRamp([1]))], {"accumulate_grad_batches": 2}, "the ramp decides about accumulation"),
        ([lr.BatchSizeRamp(lr.AdaptiveRamp())], {}, "attach GradientNoiseScale too"),
        ([lr.BatchSizeRamp(lr.AdaptiveRamp()), lr.GradientNoiseScale()], {"max_steps": 9}, "end it by max_epochs"),
    ],
)
def test_arguments_of_the_trainer_that_fit_refuses_are_refused_by_the_plan(
    callbacks: list[Any], arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made = trainer(tmp_path, *callbacks, **arguments)
    with pytest.raises(MisconfigurationException, match=said):
        lr.plan(made, Module(), loader())
    with pytest.raises(MisconfigurationException, match=said):
        made.fit(Module(), loader())


def test_a_loader_stands_where_a_data_module_would(tmp_path: Path) -> None:
    planned = lr.plan(
        trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine()), accumulate_grad_batches=2), Module(), loader()
    )
    assert (planned.data.shape.total_updates, planned.data.rows[0].batch.size) == (6, 8)


def test_both_show_themselves_in_a_terminal_a_notebook_and_on_disk(tmp_path: Path) -> None:
    made = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine()))
    module = Module()
    planned = lr.plan(made, module, loader())
    made.fit(module, loader())
    for shown, word in ((planned, "Plan of Module"), (lr.report(tmp_path), "train_loss")):
        assert word in str(shown)
        assert word in shown.table
        assert "<img" in shown._repr_html_()
        page = shown.save(tmp_path / f"{word.split()[0]}.html").read_text(encoding="utf-8")
        assert word in page
        assert page.startswith("<!doctype html>")
        assert "http" not in page.replace("http://www.w3.org", ""), "a page that needs no network"
        assert shown.save(tmp_path / "picture.png").stat().st_size > 10_000
        assert word in shown.save(tmp_path / "text.txt").read_text(encoding="utf-8")
        assert len(shown.figure.axes) >= 2  # type: ignore[union-attr]


def test_several_runs_are_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = trainer(tmp_path / name, lr.LearningRateSchedule(lr.Cosine(warmup=0.1 if name == "a" else 0.2)))
        made.fit(Module(), loader())
    compared = lr.report(tmp_path / "a", tmp_path / "b")
    assert "train_loss of 2 runs" in compared.title
    assert "warmup=0.2" in compared.table


def test_a_run_without_metrics_has_no_picture_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "lightning_lr").mkdir()
    (tmp_path / "lightning_lr" / "schedule.jsonl").write_text('{"update": 0, "event": "start"}\n')
    shown = lr.report(tmp_path)
    assert shown.figure is None
    with pytest.raises(ValueError, match="nothing to draw yet"):
        shown.save(tmp_path / "x.png")


def test_what_fit_would_refuse_is_refused_by_the_plan(tmp_path: Path) -> None:
    made = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine()), lr.AdaptiveWarmup())
    with pytest.raises(MisconfigurationException, match="LearningRateSchedule"):
        lr.plan(made, Module(), loader())


def test_a_directory_without_a_run_is_an_error_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is empty"):
        lr.report(tmp_path)


class SumsItsBatches(Module):
    """Reads a dict of batches, some of which may have ended."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        batch = batch[0] if isinstance(batch, tuple) else batch
        return torch.stack(
            [super(SumsItsBatches, self).training_step(part, 0) for part in batch.values() if part is not None]
        ).sum()


@pytest.mark.parametrize(("mode", "updates"), [("max_size_cycle", 12), ("min_size", 4), ("max_size", 12)])
def test_a_plan_of_several_loaders_counts_a_batch_of_each(mode: Any, updates: int, tmp_path: Path) -> None:
    def both() -> CombinedLoader:
        short = DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)
        return CombinedLoader({"short": short, "long": loader()}, mode)

    schedule, scaling = lr.LearningRateSchedule(lr.Polynomial(1.0)), lr.LearningRateScaling(16, warmup_epochs=0)
    made = trainer(tmp_path, schedule, scaling)
    planned = lr.plan(made, SumsItsBatches(), both())
    assert planned.data.shape.total_updates == updates
    assert planned.data.shape.total_units == updates * 8
    assert planned.data.shape.batch_size == 8
    expected = [0.1 * 8 / 16 * (1 - update / updates) for update in range(updates)]
    assert planned.data.lr[0] == pytest.approx(expected, rel=1e-12)
    made.fit(SumsItsBatches(), both())
    assert lr.report(made).data.metrics["lr/group_0"].values == pytest.approx(expected, rel=1e-6)


def test_a_plan_of_a_run_that_ends_by_time_alone_says_what_to_set(tmp_path: Path) -> None:
    made = trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine()), max_time={"minutes": 1})
    planned = lr.plan(made, Module(), loader())
    assert planned.data.shape.total_updates == 12
    assert any("curves come to their end with the time" in note for note in planned.data.notes)
    made.fit_loop.max_epochs = -1
    with pytest.raises(ValueError, match=r"a time limit alone ends this run.*set max_epochs or max_steps too"):
        lr.plan(made, Module(), loader())


@pytest.mark.parametrize("silent", [{"logger": False}, {"fast_dev_run": 2}])
def test_a_report_of_a_trainer_without_a_logger_is_not_that_of_another_run(
    silent: dict[str, Any], tmp_path: Path
) -> None:
    trainer(tmp_path).fit(Module(), loader())  # a run of somebody else, below the same directory
    other = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", callbacks=[lr.LearningRateSchedule(lr.Cosine())],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **silent,
    )  # fmt: skip
    other.fit(Module(), loader())
    with pytest.raises(ConfigurationError, match="this Trainer has no logger"):
        lr.report(other)


def test_a_notebook_shows_a_plan_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console
    import rich.jupyter

    displayed: list[object] = []
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich.jupyter, "display", lambda *shown: displayed.append(shown))
    shown = lr.plan(trainer(tmp_path, lr.LearningRateSchedule(lr.Cosine())), Module(), loader())
    page = shown._repr_html_()
    assert "monospace" in page
    assert "updates" in shown.table
    assert not displayed, "next to what _repr_html_ returns"
    assert all(line == line.rstrip() for line in shown.table.splitlines())
