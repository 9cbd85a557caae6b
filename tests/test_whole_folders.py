"""A folder that takes another one's place: interrupted at every step, what bears the name of a checkpoint is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_lr.strategies.zero.atomic_directory import beside, publish, remove

SHARDS = ("rank_0.pt", "rank_1.pt")


class Killed(BaseException):
    pass


class Clock:
    """Ends the process, so to speak, at one of its steps on the disk; a removal is ended half way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
        self.left = last
        self._rename, self._rmtree = os.rename, shutil.rmtree
        monkeypatch.setattr(os, "rename", self._step(os.rename))
        monkeypatch.setattr(shutil, "rmtree", self._half)

    def _step(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any) -> None:
            self.tick()
            do(*arguments)

        return stepped

    def _half(self, folder: Path) -> None:
        self.tick()
        (Path(folder) / SHARDS[0]).unlink(missing_ok=True)
        self.tick()
        self._rmtree(folder)

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def write(self, folder: Path, version: int) -> None:
        folder.mkdir()
        for shard in SHARDS:
            self.tick()
            (folder / shard).write_text(str(version))


def _save(clock: Clock, path: Path, version: int) -> None:
    remove(beside(path))
    clock.write(beside(path), version)
    publish(path)


def _versions(folder: Path) -> dict[str, set[str]]:
    return {
        found.name: {(found / s).read_text() if (found / s).exists() else "missing" for s in SHARDS}
        for found in folder.glob("*.ckpt")
    }


@pytest.mark.parametrize("last", range(28))
def test_what_has_the_name_of_a_checkpoint_is_whole(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    begun = 0
    with monkeypatch.context() as patched:
        clock = Clock(patched, last)
        try:
            for begun in range(1, 5):
                _save(clock, path, begun)
            killed = False
        except Killed:
            killed = True
    assert killed == (last < 24), "the steps are counted, else the last ones are not tried"
    found = _versions(tmp_path)
    assert all(len(versions) == 1 and "missing" not in versions for versions in found.values()), found
    newest = max(tmp_path.glob("last*.ckpt"), key=lambda p: p.stat().st_mtime_ns, default=None)  # as Lightning does it
    if begun > 1:
        assert newest is not None
        assert int(*found[newest.name]) in (begun - 1, begun)
    with monkeypatch.context() as patched:  # the run goes on, and leaves nothing behind
        _save(Clock(patched, 100), path, 9)
    assert _versions(tmp_path) == {"last.ckpt": {"9"}}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("last", range(5))
def test_half_of_what_is_removed_is_not_found(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        clock = Clock(patched, 100)
        clock.write(tmp_path / "last.ckpt", 1)
        clock.left = last
        try:
            remove(tmp_path / "last.ckpt")
        except Killed:
            assert last < 3
    assert _versions(tmp_path) in ({}, {"last.ckpt": {"1"}})


def test_a_file_and_a_link_give_way_too(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("a checkpoint of another strategy")
    beside(path).mkdir()
    publish(path)
    assert path.is_dir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link.ckpt").symlink_to("target")
    beside(tmp_path / "link.ckpt").mkdir()
    publish(tmp_path / "link.ckpt")
    assert not (tmp_path / "link.ckpt").is_symlink()
    assert (tmp_path / "target").is_dir()
    remove(tmp_path / "nothing")
