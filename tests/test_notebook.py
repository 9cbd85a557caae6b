"""The notebook in ``examples/`` runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


def cells(kind: str) -> list[dict[str, Any]]:
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    return [cell for cell in read["cells"] if cell["cell_type"] == kind]


def run(cell: dict[str, Any], names: dict[str, Any]) -> Any:
    """Run a cell as a kernel would; returns the value of its last line, which a notebook shows."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, cell["id"], "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), cell["id"], "exec"), names)
    return eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)


def test_the_notebook_runs_and_shows_plan_report_and_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    shown = {cell["id"]: run(cell, names) for cell in cells("code")}
    for name in ("plan", "report", "again"):
        assert "<img" in shown[name]._repr_html_(), name
    assert shown["plan"].data.shape.total_updates == names["trainer"].global_step == 320
    assert "train_loss" in shown["report"].table
    assert 1e-4 < names["found"].rate < 1
    assert '"name": "train_loss"' in Path("runs/notebook.html").read_text(encoding="utf-8")


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells("code"))
