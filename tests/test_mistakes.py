"""What new users got wrong in their first hour: each mistake is answered in a sentence, or does what was meant.

Every message names what was given, what is allowed and what to do. Where a mistake used to be passed over in silence,
the test is that the run does the right thing, or warns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lightning_lr as lr
from lightning_lr.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


class Samples(Dataset[Any]):
    def __init__(self, size: int = 64) -> None:
        self.x = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": (self.x[index].sum() > 0).long()}


class Stream(IterableDataset[Any]):
    def __init__(self, size: int | None = None) -> None:
        if size is not None:
            self.__class__ = type("Sized", (Stream,), {"__len__": lambda self: size})

    def __iter__(self) -> Any:
        return iter(Samples())


class Module(LightningModule):
    def __init__(self, optimizer: str = "adamw", scheduler: str | None = None, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.hparams["optimizer"]]
        optimizer = kind(self.parameters(), lr=1e-2)
        if self.hparams["scheduler"] is None:
            return optimizer
        if self.hparams["scheduler"] == "onecycle":
            scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=16)
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Two(Module):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[2].parameters(), 0.1)]


class Data(LightningDataModule):
    def __init__(self, n_train: int = 64, batch_size: int = 8) -> None:
        super().__init__()
        self.n_train, self.batch_size = n_train, batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(Samples(self.n_train), self.batch_size)


class Seen(Callback):
    """The rate, and its product with the weight decay, of each update."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.products: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.rates.append(group["lr"])
        self.products.append(group["lr"] * group["weight_decay"])


class Elsewhere(Logger):
    """Like W&B's: all runs share a directory."""

    def __init__(self, directory: str | None, version: str = "abc") -> None:
        super().__init__()
        self._directory, self._version = directory, version

    name = "project"

    @property
    def version(self) -> str:
        return self._version

    @property
    def save_dir(self) -> str | None:
        return self._directory

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def fit(
    *callbacks: Any, module: Any = None, size: int = 64, batch: int = 8, loader: Any = None, **more: Any
) -> Trainer:
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "default_root_dir": "runs",
        **more,
    }
    trainer = Trainer(
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        log_every_n_steps=1, **settings,
    )  # fmt: skip
    trainer.fit(module or Module(), DataLoader(Samples(size), batch, shuffle=True) if loader is None else loader)
    return trainer


Cosine, Schedule = lr.Cosine, lr.LearningRateSchedule

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a curve by its name": (lambda: Schedule("cosine"), r"'cosine'.*Cosine"),  # type: ignore[arg-type]
    "the class of a curve": (lambda: Schedule(Cosine), r"Cosine.*give a Curve, for example Cosine\("),  # type: ignore[arg-type]
    "a function for a curve": (lambda: Schedule(lambda p: 1 - p), r"curve=.*Curve"),  # type: ignore[arg-type]
    "a warm-up in epochs": (lambda: Cosine(warmup=5), r"warmup=5.*share of the run.*\[0, 1\)"),
    "a negative warm-up": (lambda: Cosine(warmup=-0.1), r"warmup=-0.1.*\[0, 1\)"),
    "an argument of a curve that is none": (
        lambda: Cosine(warmup_epochs=1),  # type: ignore[call-arg]
        r"Cosine has no argument 'warmup_epochs'; did you mean 'warmup'\?",
    ),
    "an argument of a callback that is none": (
        lambda: lr.LearningRateScaling(reference_batch=8),  # type: ignore[call-arg]
        r"LearningRateScaling has no argument 'reference_batch'; did you mean 'reference_batch_size'\?",
    ),
    "a negative decay": (lambda: lr.LayerwiseLRDecay(-0.8), r"decay=-0.8; the factor .* is in \(0, 1\]"),
    "a decay in quotes": (lambda: lr.LayerwiseLRDecay("0.8"), r"decay='0.8'; the factor .* is in \(0, 1\]"),  # type: ignore[arg-type]
    "a decay above 1": (lambda: lr.LayerwiseLRDecay(1.2), r"decay=1.2; the factor .* is in \(0, 1\]"),
    "a reference batch of 0": (
        lambda: lr.LearningRateScaling(0),
        r"reference_batch_size=0; a batch is a whole number from 1",
    ),
    "a reference batch with a point": (
        lambda: lr.LearningRateScaling(256.0),
        r"reference_batch_size=256.0; a batch is a whole number from 1",
    ),  # type: ignore[arg-type]
    "a rule misspelt": (lambda: lr.HypergradientDescent(rule="normalised"), r"rule='normalised'.*'?normalized"),  # type: ignore[arg-type]
    "3 bits": (lambda: lr.ActivationCompression(bits=3), r'bits=3; give 8, 4, 2 or "auto"'),  # type: ignore[arg-type]
    "bits in quotes": (lambda: lr.ActivationCompression(bits="4"), r"bits='4'; give 8, 4, 2"),  # type: ignore[arg-type]
    "milestones for a ramp": (lambda: lr.BatchSizeRamp([2, 3]), r"schedule=\[2, 3\].*StepRamp"),  # type: ignore[arg-type]
    "half an epoch per layer": (
        lambda: lr.GradualUnfreezing(epochs_per_layer=0.5),
        r"epochs_per_layer=0.5.*whole number",
    ),  # type: ignore[arg-type]
    "layers as one string": (
        lambda: lr.LayerwiseLRDecay(layers="net.0"),
        r"layers='net.0'; give .auto., or a list of regular expressions",
    ),  # type: ignore[arg-type]
    "milestones past the end": (
        lambda: fit(lr.BatchSizeRamp(lr.StepRamp([30, 60])), max_epochs=4),
        r"milestones \[30.0, 60.0\].*4 epochs.*give milestones below that, or train longer",
    ),
    "layers that the model has not": (
        lambda: fit(lr.LayerwiseLRDecay(layers=["backbone", "head"])),
        r"backbone.*net\.0",
    ),
    "a run without an end": (lambda: fit(Schedule(Cosine()), max_epochs=-1), r"max_epochs=-1.*set"),
    "a stream without a length": (
        lambda: fit(Schedule(Cosine()), loader=DataLoader(Stream(), 8)),
        r"length.*max_steps",
    ),
    "the same callback twice": (
        lambda: fit(Schedule(Cosine()), Schedule(Cosine())),
        r"two of them are attached.*keep one",
    ),
    "two methods that decay": (
        lambda: fit(Schedule(Cosine()), lr.AdaptiveWarmup()),
        r"LearningRateSchedule.*AdaptiveWarmup|AdaptiveWarmup.*LearningRateSchedule",
    ),
    "a scheduler of the module's own": (
        lambda: fit(Schedule(Cosine()), module=Module(scheduler="cosine")),
        r"CosineAnnealingLR.*module_scheduler='replace'|CosineAnnealingLR.*\"replace\"|replace.*multiply",
    ),
    "two optimizers without manual optimization": (
        lambda: fit(Schedule(Cosine()), module=Two()),
        r"multiple optimizers|several optimizers|manual optimization",
    ),
    "normalized decay without a decoupled one": (
        lambda: fit(lr.NormalizedWeightDecay(), module=Module("sgd")),
        r"weight_decay=0, which stays 0; give",
    ),
    "ghost batch norm without batch norm": (lambda: fit(lr.GhostBatchNorm(4)), r"batch norm"),
    "a stage of ZeRO that is none": (lambda: fit(strategy="zero_4"), r"zero_4"),
    "checkpointed on two devices": (
        lambda: fit(strategy="checkpointed", devices=2),
        r"has 2 devices.*set devices=1, or take strategy=.ddp_checkpointed.",
    ),
    "a monitor of rates without a logger": (lambda: fit(Schedule(Cosine()), LearningRateMonitor()), r"logger"),
    "early stopping without validation": (
        lambda: fit(Schedule(Cosine()), EarlyStopping("val_loss")),
        r"val_loss",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_in_python_is_answered(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempt, said = REFUSED[mistake]
    with pytest.raises((ValueError, TypeError, RuntimeError, MisconfigurationException)) as refused:
        attempt()
    text = " ".join(str(refused.value).split())
    assert re.search(said, text), text
    assert "AttributeError" not in text


# ---------------------------------------------------------------------- what used to be silent
def test_normalized_decay_follows_the_peak_of_a_one_cycle_scheduler() -> None:
    plain, one_cycle = Seen(), Seen()
    fit(lr.NormalizedWeightDecay(0.025), plain)
    fit(lr.NormalizedWeightDecay(0.025), one_cycle, module=Module(scheduler="onecycle"))
    assert max(one_cycle.products) == pytest.approx(plain.products[0], rel=0.02)


def test_two_runs_of_a_logger_with_one_directory_keep_their_journals(tmp_path: Path) -> None:
    for number in (1, 2):
        fit(Schedule(Cosine(warmup=number / 10)), logger=Elsewhere(str(tmp_path), f"run{number}"))
    kept = sorted(path.parent.parent.name for path in tmp_path.rglob("schedule.jsonl"))
    assert kept == ["run1", "run2"]


def test_two_runs_without_a_logger_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        fit(Schedule(Cosine(warmup=number / 10)), default_root_dir=tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_runs_that_differ_by_a_callback_say_so(tmp_path: Path) -> None:
    fit(logger=CSVLogger(tmp_path, name="without"))
    fit(Schedule(Cosine()), logger=CSVLogger(tmp_path, name="with"))
    compared = lr.report(tmp_path / "without", tmp_path / "with")
    assert "no LearningRateSchedule" in compared.table


def test_a_batch_whose_first_tensor_is_not_of_its_samples_bends_no_curve() -> None:
    def collate(items: list[Any]) -> dict[str, Any]:
        return {"temperature": torch.ones(3), **torch.utils.data.default_collate(items)}

    seen = Seen()
    fit(Schedule(Cosine()), seen, loader=DataLoader(Stream(64), 8, collate_fn=collate))
    assert seen.rates[-1] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 15 / 16)) / 2, rel=1e-6)


@pytest.mark.parametrize("logger", [False, True])
def test_a_directory_that_cannot_be_written_does_not_end_training(logger: bool) -> None:
    trainer = fit(
        Schedule(Cosine()), logger=Elsewhere("/proc/nope") if logger else False, default_root_dir="/proc/nope"
    )
    assert trainer.global_step == 16


def test_a_run_that_ends_by_time_ends_its_curve() -> None:
    seen = Seen()
    fit(Schedule(Cosine()), seen, max_time={"seconds": 1}, max_epochs=100_000)
    assert seen.rates[-1] < 0.2 * seen.rates[0]


def test_a_short_warm_up_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"AdaptiveWarmup.*updates"):
        fit(lr.AdaptiveWarmup())


def test_a_batch_larger_than_the_data_scales_by_what_an_update_holds() -> None:
    seen = Seen()
    fit(lr.LearningRateScaling(8, warmup_epochs=0), seen, size=16, batch=512)
    assert seen.rates == pytest.approx([2e-2, 2e-2])


def test_a_ramp_over_less_than_a_batch_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"512.*16|16.*512"):
        fit(lr.BatchSizeRamp(lr.StepRamp([1])), size=16, batch=512)


# ---------------------------------------------------------------------- the command line
def config(callbacks: Any = None, text: str | None = None, **trainer: Any) -> str:
    if text is not None:
        return text
    given = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "callbacks": callbacks, **trainer}
    return yaml.safe_dump({"trainer": {name: value for name, value in given.items() if value is not None}})


def schedule(curve: Any = None, **more: Any) -> list[Any]:
    return [{"class_path": "LearningRateSchedule", "init_args": {"curve": curve, **more}}]


RUN = ["--model", f"{__name__}.Module", "--data", f"{__name__}.Data"]
COMMANDS: dict[str, tuple[list[str], str, str]] = {
    "a command misspelt": (["plna"], "", r"no command 'plna'; did you mean 'plan'\?"),
    "a module misspelt": (
        ["plan", "--model", "tests.test_mistake.Module"],
        "",
        r"did you mean 'tests.test_mistakes'\?",
    ),
    "a class misspelt": (["plan", "--model", f"{__name__}.Modul"], "", rf"did you mean '{__name__}.Module'\?"),
    "the data's class misspelt": (
        ["plan", "--model", f"{__name__}.Module", "--data", f"{__name__}.Dat"],
        "",
        r"did you mean '.*\.Data'\?",
    ),
    "model and data swapped": (
        ["plan", "--model", f"{__name__}.Data", "--data", f"{__name__}.Module"],
        "",
        r"Data at model is no subclass of LightningModule.*belongs at --data",
    ),
    "a configuration that is not there": (["plan", "--config", "cfg/nothere.yaml"], "", r"cfg/nothere.yaml"),
    "plan with nothing": (["plan"], "", r"give --config.*or --model package\.module\.Class.*lightning-lr init"),
    "fit with nothing": (["fit"], "", r"give --config.*or --model package\.module\.Class.*lightning-lr init"),
    "a report of nothing": (["report", "nonexistent"], "", r"nonexistent does not exist; give the directory of a run"),
    "a report of an empty folder": (["report", "."], "", r"holds no run|is empty"),
    "a checkpoint that is not there": (
        ["fit", *RUN, "--config", "C", "--ckpt_path", "nope.ckpt"],
        config(),
        r"nope.ckpt",
    ),
    "a picture that cannot be written": (
        ["plan", *RUN, "--config", "C", "--out", "/proc/plan.png"],
        config(),
        r"/proc/plan.png",
    ),
    "a picture of another format": (["plan", *RUN, "--config", "C", "--out", "plan.docx"], config(), r"docx.*png"),
    "a callback misspelt": (
        ["plan", *RUN, "--config", "C"],
        config([{"class_path": "LearningRateShedule"}]),
        r"did you mean 'LearningRateSchedule'\?",
    ),
    "a curve misspelt": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"class_path": "Cosin"})),
        r"did you mean 'Cosine'\?",
    ),
    "an argument misspelt": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"class_path": "Cosine", "init_args": {"warmpu": 0.1}})),
        r"Cosine has no argument 'warmpu'.*did you mean 'warmup'\?",
    ),
    "callbacks outside of trainer": (
        ["plan", *RUN, "--config", "C"],
        config(text="callbacks:\n- class_path: LearningRateSchedule\n"),
        r"there is no option 'callbacks'.*it belongs under trainer",
    ),
    "a callback without class_path": (
        ["plan", *RUN, "--config", "C"],
        config([{"LearningRateSchedule": {"curve": {"class_path": "Cosine"}}}]),
        r"write class_path: LearningRateSchedule.*init_args",
    ),
    "a curve's arguments without its class": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"warmup": 0.05})),
        r"curve.*needs class_path",
    ),
    "a decimal comma": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"class_path": "Cosine", "init_args": {"warmup": "0,8"}})),
        r"warmup.*'?0,8",
    ),
    "a warm-up in epochs": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"class_path": "Cosine", "init_args": {"warmup_epochs": 1}})),
        r"Cosine has no argument 'warmup_epochs'.*did you mean 'warmup'\?",
    ),
    "a run without an end": (
        ["plan", *RUN, "--config", "C"],
        config(schedule({"class_path": "Cosine"}), max_epochs=-1),
        r"max_epochs=-1",
    ),
    "tabs": (["plan", *RUN, "--config", "C"], config(text="trainer:\n\tmax_epochs: 2\n"), r"not valid YAML.*line 2"),
    "a strategy misspelt": (
        ["plan", *RUN, "--config", "C"],
        config(strategy="zero2"),
        r"there is no strategy 'zero2'.*did you mean 'zero_2'\?",
    ),
    "a trainer's option misspelt": (
        ["plan", *RUN, "--config", "C"],
        config(max_epoch=2),
        r"there is no option 'trainer.max_epoch'.*did you mean 'trainer.max_epochs'\?",
    ),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_on_the_command_line_is_answered(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, text, said = COMMANDS[mistake]
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert main(["c.yaml" if word == "C" else word for word in words]) == 2
    answer = capsys.readouterr().err
    assert re.search(said, " ".join(answer.split())), answer
    assert "Traceback" not in answer
    assert len(answer) < 1200, answer


def test_what_looks_like_a_mistake_and_works_as_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    curve_by_name = config(schedule("Cosine"))
    one_callback = yaml.safe_dump({"trainer": {"max_epochs": 2, "callbacks": schedule({"class_path": "Cosine"})[0]}})
    for text in (curve_by_name, one_callback):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        assert main(["plan", *RUN, "--config", "c.yaml"]) == 0
    assert main(["--help"]) == main(["--version"]) == 0
