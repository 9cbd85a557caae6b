"""`make demo` trains three ways, draws one picture and says in three lines what came of each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples.demo import demo

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


def test_the_demo_trains_three_ways_and_says_what_each_was_worth(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    fixed, cosine, ours = demo(tmp_path, epochs=2, grid=(1e-3, 3e-3))
    assert fixed.startswith("fixed rate 0.001: test accuracy ")
    assert "40 updates, 2,518 samples" in fixed
    assert "from a grid of 2: " in cosine
    assert "5,036 samples with the grid (2.0 x)" in cosine
    assert ours.startswith("found rate ")
    spent = int(ours.partition(" samples with the search")[0].rpartition(" ")[2].replace(",", ""))
    assert 2518 <= spent < 1.4 * 2518  # in so few updates there may be no race
    for line in (cosine, ours):
        assert re.search(r", (\d+ of \d{3} images (gained|lost)|no difference); ", line)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "val_acc" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
