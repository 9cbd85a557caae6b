"""``lightning-lr doctor``: what is installed, what is missing, and whether a configuration would start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_lr.cli import doctor, main

REPOSITORY = Path(__file__).parents[1]


def test_versions_and_missing_extras_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "deepspeed" else found(name))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert "2." in printed
    line = next(line for line in printed.splitlines() if line.startswith("deepspeed"))
    assert "not installed; for ZeROStrategy: pip install 'deepspeed>=" in line


def test_each_package_that_is_missing_is_named_with_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    asked = ["wandb>=0.19 ; extra == 'loggers'", "mlflow>=2.20 ; extra == 'loggers'", "deepspeed==1 ; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: [*asked, "scikit-learn>=1.5 ; extra == 'examples'"])
    missing = doctor.missing_extras()
    assert missing["wandb"] == "not installed; for WandbLogger: pip install 'wandb>=0.19'"
    assert missing["mlflow"] == "not installed; for MLFlowLogger: pip install 'mlflow>=2.20'"
    assert missing["scikit-learn"].endswith("pip install 'scikit-learn>=1.5'")
    assert missing["deepspeed"].endswith("pip install 'deepspeed'")


@pytest.mark.parametrize("curve", ["Cosine", "Cosin"])
def test_a_configuration_that_would_start_and_one_that_would_not(
    curve: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "digits.yaml").read_text(encoding="utf-8"))
    config["trainer"]["callbacks"] = [
        {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": curve}}}
    ]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    code = main(["doctor", "--config", str(path)])
    printed = capsys.readouterr().out
    if curve == "Cosine":
        assert code == 0
        assert "LearningRateSchedule" in printed
        assert "`fit` would start" in printed
    else:
        assert code == 2
        assert "refused" in printed
        assert "Cosine" in printed
