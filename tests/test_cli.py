"""The command line: short names, what a refused configuration says and leaves, a run repeated from its config."""

from __future__ import annotations

import csv
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr.cli import COMMANDS, main

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

Run = Callable[..., int]


class Numbers(LightningDataModule):
    """48 samples; may be missing or corrupt."""

    def __init__(self, batch_size: int = 8, state: str = "there") -> None:
        super().__init__()
        self.batch_size = batch_size
        self.state = state

    def setup(self, stage: str) -> None:
        if self.state == "missing":
            raise FileNotFoundError("numbers.gz is not in ./data; fetch it with make numbers")
        if self.state == "corrupt":
            raise ValueError("numbers.gz: sha256 is 12ab, it should be 34cd; fetch it again")

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        x = torch.randn(44, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size, shuffle=True)

    val_dataloader = test_dataloader = train_dataloader


class Line(LightningModule):
    """Least squares."""

    def __init__(self, lr: float = 0.1, fails: bool = False, adam: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.lr, self.fails, self.adam = lr, fails, adam

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.fails:
            raise ValueError("a bug in the user's training step")
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW if self.adam else torch.optim.SGD
        return optimizer(self.parameters(), lr=self.lr)


SCHEDULE = {
    "class_path": "LearningRateSchedule",
    "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.05}}},
}


def config() -> dict[str, dict[str, object]]:
    """A configuration that trains for a moment."""
    return {
        "seed_everything": 3,  # type: ignore[dict-item]
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
            "callbacks": [SCHEDULE],
        },
        "model": {"class_path": f"{__name__}.Line"},
        "data": {"class_path": f"{__name__}.Numbers"},
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on a configuration (or on the text of one) in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(command: str, content: object = None, *options: str) -> int:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        Path("c.yaml").write_text(text)
        return main([command, "--config", "c.yaml", *options])

    return run


def left_behind() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()} - {"c.yaml"}


# ---------------------------------------------------------------------- the commands
@pytest.mark.parametrize("as_module", [False, True])
def test_help_lists_every_command_with_a_line(
    as_module: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-lr", "--help"])
    if as_module:
        with pytest.raises(SystemExit) as exit_code:
            runpy.run_module("lightning_lr.cli", run_name="__main__")
        assert exit_code.value.code == 0
    else:
        assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    for command, what in COMMANDS.items():
        assert sum(line.split() == [command, *what.split()] for line in lines) == 1
    assert set(COMMANDS) == {"fit", "validate", "test", "predict", "plan", "report", "doctor", "init"}


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    assert "no command 'fti'; did you mean 'fit'?" in capsys.readouterr().err


def test_names_need_no_module_path_and_a_curve_no_class_path(run: Run) -> None:
    content = config()
    content["trainer"]["callbacks"] = [
        {"class_path": "LearningRateSchedule", "init_args": {"curve": "WarmupStableDecay"}},
        {"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 8}},
    ]
    assert run("fit", content) == 0
    saved = yaml.safe_load(Path("logs/lightning_logs/version_0/config.yaml").read_text())
    curve, scaling = saved["trainer"]["callbacks"]
    assert curve["init_args"]["curve"] == {
        "class_path": "lightning_lr.WarmupStableDecay",
        "init_args": {"warmup": 0.05, "decay": 0.2, "floor": 0.0},
    }
    assert scaling["class_path"] == "lightning_lr.LearningRateScaling"


def test_classes_in_the_working_directory_are_found(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_models.py").write_text("from tests.test_cli import Line\n\nclass Mine(Line):\n    pass\n")
    content = config()
    content["model"]["class_path"] = "my_models.Mine"
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(tmp_path))]  # as of a console script
    try:
        assert run("fit", content) == 0
    finally:
        sys.modules.pop("my_models", None)


def test_a_saved_config_gives_the_same_run(run: Run) -> None:
    def metrics(version: int) -> list[dict[str, str]]:
        with Path(f"logs/lightning_logs/version_{version}/metrics.csv").open() as file:
            return list(csv.DictReader(file))

    assert run("fit", config()) == 0
    saved = "logs/lightning_logs/version_0/config.yaml"
    assert main(["fit", "--config", saved]) == 0
    assert len(metrics(0)) >= 2 * 6
    assert metrics(1) == metrics(0)
    assert main(["fit", "--config", saved, "--seed_everything", "4"]) == 0  # the comparison can fail
    assert metrics(2) != metrics(0)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_saves_its_config_beside_its_logs_only(run: Run, command: str) -> None:
    assert run(command, config(), "--trainer.logger", "false") == 0
    assert left_behind() == set()
    assert run(command, config()) == 0
    assert "logs/lightning_logs/version_0/config.yaml" in left_behind()


# ---------------------------------------------------------------------- what is refused
BAD_NAMES = {
    "class": ("LearningRateSchedule", "LearningRateShedule", "'LearningRateSchedule'", "trainer.callbacks[0]"),
    "curve": ("class_path: Cosine", "class_path: Cosin", "'Cosine'", "trainer.callbacks[0].curve"),
    "argument": ("warmup", "warmpu", "'warmup'", "Cosine has no argument"),
    "argument of a callback": ("curve:", "curv:", "'curve'", "LearningRateSchedule has no argument"),
    "trainer option": ("max_epochs", "max_epoch", "'trainer.max_epochs'", "no option 'trainer.max_epoch'"),
    "option": ("data:", "dta:", "'data'", "no option 'dta'"),
    "class with a module": ("tests.test_cli.Line", "tests.test_cli.Lime", "'tests.test_cli.Line'", "model"),
    "module": ("tests.test_cli.Line", "c_module.Lime", "'c_modul'", "No module named 'c_module'"),
}


@pytest.mark.parametrize(("command", "case"), [*(("fit", case) for case in BAD_NAMES), ("plan", "argument")])
def test_an_unknown_name_is_answered_with_the_nearest(
    command: str, case: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong, nearest, where = BAD_NAMES[case]
    Path("c_modul.py").touch()
    text = yaml.safe_dump(config(), sort_keys=False)
    assert right in text
    assert run(command, text.replace(right, wrong)) == 2
    error = capsys.readouterr().err
    line = 1 + next(i for i, line in enumerate(Path("c.yaml").read_text().splitlines()) if wrong in line)
    assert where in error
    assert f"did you mean {nearest}?" in error
    assert f"(c.yaml, line {line})" in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert left_behind() == {"c_modul.py"}


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--trainer.max_epohcs=3", "--trainer.max_epochs"),
        ("--dat=x", "--data"),
        ("--data.batch_sise=3", "--data.batch_size"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(
    option: str, nearest: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", config(), option) == 2
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


def test_a_wrong_value_is_shown_with_what_is_allowed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = config()
    content["trainer"]["max_epochs"] = "two"
    assert run("fit", content) == 2
    error = capsys.readouterr().err
    assert "trainer.max_epochs is 'two' (c.yaml, line " in error
    assert "give a whole number or null" in error


def test_no_yaml_and_no_file_are_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "trainer: {max_epochs: 1: 2}") == 2
    assert "c.yaml is not valid YAML" in capsys.readouterr().err
    assert main(["fit", "--config", "nothing.yaml"]) == 2
    assert "nothing.yaml" in capsys.readouterr().err


def _two_that_decay(content: dict[str, dict[str, object]]) -> None:
    content["trainer"]["callbacks"] = [SCHEDULE]
    content["lr_scheduler"] = {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 3}}
    content["optimizer"] = {"class_path": "SGD", "init_args": {"lr": 0.1}}


def _out_of_range(content: dict[str, dict[str, object]]) -> None:
    curve = {"class_path": "Cosine", "init_args": {"warmup": 1.5}}
    content["trainer"]["callbacks"] = [{"class_path": "LearningRateSchedule", "init_args": {"curve": curve}}]


def _square_root_too_large(content: dict[str, dict[str, object]]) -> None:
    scaling = {"reference_batch_size": 1, "lr_rule": "sqrt", "warmup_epochs": 0}
    content["trainer"]["callbacks"] = [{"class_path": "LearningRateScaling", "init_args": scaling}]
    content["model"]["init_args"] = {"adam": True}
    content["data"]["init_args"] = {"batch_size": 44}


def _missing_data(content: dict[str, dict[str, object]]) -> None:
    content["data"]["init_args"] = {"state": "missing"}


def _corrupt_data(content: dict[str, dict[str, object]]) -> None:
    content["data"]["init_args"] = {"state": "corrupt"}


REFUSED = {
    "by a constructor": (_out_of_range, "warmup=1.5"),
    "by a callback in on_fit_start": (_two_that_decay, "CosineAnnealingLR"),
    "by a callback in on_train_start": (_square_root_too_large, "the square-root rule turns beta=0.9 into"),
    "for missing data": (_missing_data, "numbers.gz is not in ./data; fetch it with make numbers"),
    "for corrupt data": (_corrupt_data, "sha256 is 12ab, it should be 34cd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_said_in_a_paragraph_and_leaves_nothing(
    case: str, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = REFUSED[case]
    content = config()
    change(content)
    assert run("fit", content) == 2
    error = capsys.readouterr().err
    message = error[error.index("error: ") :]
    assert said in message
    assert "Traceback" not in error
    assert len(message) < 500
    assert left_behind() == set()

    monkeypatch.setenv("LIGHTNING_LR_DEBUG", "1")
    with pytest.raises(Exception, match=said.split(";")[0].replace("(", r"\(")):
        run("fit", content)


def test_a_bug_in_training_keeps_its_traceback(run: Run) -> None:
    content = config()
    content["model"]["init_args"] = {"fails": True}
    with pytest.raises(ValueError, match="a bug in the user's training step"):
        run("fit", content)


def test_the_config_of_an_earlier_run_is_not_overwritten(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = config()
    content["trainer"]["logger"] = False
    content["trainer"]["default_root_dir"] = "here"
    assert run("fit", content) == 0
    before = {path: Path(path).read_bytes() for path in left_behind()}
    assert set(before) == {"here/config.yaml"}, "without a logger no journal"
    assert run("fit", content, "--trainer.max_epochs=1") == 2
    assert "config.yaml of an earlier run" in capsys.readouterr().err
    assert {path: Path(path).read_bytes() for path in left_behind()} == before


def test_a_trial_run_leaves_nothing(run: Run) -> None:
    assert run("fit", config(), "--trainer.fast_dev_run=2") == 0
    assert left_behind() == set()
