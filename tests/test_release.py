"""A release holds the package and its pages, and every place names the same version."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import lightning_lr as lr
from lightning_lr.cli.doctor import versions
from scripts.release_contents import LARGEST, faults_of

REPOSITORY = Path(__file__).parents[1]


def test_every_place_names_the_same_version() -> None:
    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == lr.__version__
    assert versions()["lightning-lr"] == lr.__version__
    assert "src/lightning_lr_command/__init__.py" in (REPOSITORY / "pyproject.toml").read_text()


def wheel(folder: Path, *names: str) -> Path:
    path = folder / "lightning_lr-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "")
    return path


def archive(folder: Path, *names: str, size: int = 0) -> Path:
    path = folder / "lightning_lr-1.2.3.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=0) as file:
        for name in names:
            member = tarfile.TarInfo(f"lightning_lr-1.2.3/{name}")
            member.size = size
            file.addfile(member, io.BytesIO(bytes(size)))
    return path


def test_what_belongs_into_a_release_is_no_fault(tmp_path: Path) -> None:
    assert not faults_of(wheel(tmp_path, "lightning_lr/py.typed", "lightning_lr-1.2.3.dist-info/METADATA"))
    assert not faults_of(archive(tmp_path, "src/lightning_lr/py.typed", "README.md", "PKG-INFO"))


@pytest.mark.parametrize("name", ["benchmarks/results/a.json", "tests/test_a.py", "docs/images/a.png"])
def test_what_does_not_belong_there_is_named(name: str, tmp_path: Path) -> None:
    (fault,) = faults_of(archive(tmp_path, "src/lightning_lr/py.typed", name))
    assert f"{name} does not belong into the source archive" in fault
    (fault,) = faults_of(wheel(tmp_path, "lightning_lr/py.typed", name))
    assert f"{name} does not belong into the wheel" in fault


def test_a_release_that_has_grown_or_lost_its_types_is_refused(tmp_path: Path) -> None:
    (fault,) = faults_of(archive(tmp_path, "src/lightning_lr/py.typed", size=LARGEST + 1))
    assert "bytes; at most" in fault
    (fault,) = faults_of(wheel(tmp_path, "lightning_lr/a.py"))
    assert "py.typed is missing" in fault


def test_the_changelog_has_a_dated_heading_for_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(lr.__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])
