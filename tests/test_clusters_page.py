"""docs/clusters.md: its YAML is what the parser takes, its commands run, its shell scripts are shell."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_lr.cli import main
from lightning_lr.cli.plan.command import PlanCLI

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]
REPOSITORY = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs/clusters.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    Path("configs").symlink_to(REPOSITORY / "configs")
    (content,) = [text for kind, text in BLOCKS if kind == "yaml"]
    assert yaml.safe_load(content) == yaml.safe_load(Path("configs/cluster.yaml").read_text())


def test_the_second_file_makes_a_cluster_of_the_first() -> None:
    configured = PlanCLI(["--config", "configs/zero_2.yaml", "--config", "configs/cluster.yaml"])
    given = yaml.safe_load(Path("configs/cluster.yaml").read_text())["trainer"]
    assert {name: configured.settings[name] for name in given} == given
    assert configured.strategy == "zero_2"
    assert configured.settings["max_steps"] == 100


def _commands() -> list[list[str]]:
    lines = "".join(text for kind, text in BLOCKS if kind != "yaml").replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if "lightning" in line and not line.startswith("#")]


@pytest.mark.parametrize("words", [c for c in _commands() if c[1] == "plan"], ids=" ".join)
def test_plans_of_the_page_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words[1:]) == 0
    printed = capsys.readouterr().out
    if "--device-memory" in words:
        assert "first to fit" in printed
    else:
        assert "time to finish" in printed


def test_every_command_names_files_that_are_there() -> None:
    commands = _commands()
    assert len(commands) == 5
    for words in commands:
        files = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
        assert files
        assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind != "yaml"])
def test_scripts_are_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
