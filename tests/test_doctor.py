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
    line = next(line for line in printed.splitlines() if "extra deepspeed" in line)
    assert "needed by ZeROStrategy: pip install 'deepspeed" in line


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
