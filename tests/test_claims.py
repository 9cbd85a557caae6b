"""The numbers that the documents claim are those of the committed results, and of the very call that stands with them.

`tests/support/claims_of_documents.py` has the table: a sentence or a table's row, and what computes its numbers again
from ``benchmarks/results``. An interval in the evidence, in a card or in README.md that no line of the table covers is
an error.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lightning_lr
from benchmarks import headline_arms
from benchmarks.hypergradient import ARMS
from lightning_lr import AdaptiveWarmup, HypergradientDescent
from lightning_lr.callbacks import resume_checks
from tests.support import committed_runs as runs
from tests.support.claims import AtMost, Claim, read
from tests.support.claims_of_documents import CLAIMS, EVIDENCE

REPOSITORY = Path(__file__).parents[1]
CARDS = [f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))]
TABLES = sorted(path.name for path in runs.RESULTS.glob("*.md"))
INTERVAL = re.compile(r"([-+]?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)|(\d+(?:\.\d+)?) \[([\d.]+), ([\d.]+)\]")
FINDINGS = "## What was found"


# ---------------------------------------------------------------------- numbers
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{Path(claim.document).stem}: {claim.text[:50]}")
def test_the_results_give_the_numbers(claim: Claim) -> None:
    assert claim.wrong() == []


def test_at_least_seven_hundred_numbers_are_computed_again() -> None:
    assert sum(claim.text.count("{}") for claim in CLAIMS) >= 700


@pytest.mark.parametrize("document", CARDS)
def test_every_interval_of_a_document_is_computed_again(document: str) -> None:
    spans = [claim.span for claim in CLAIMS if claim.document == document]
    text = read(document)
    for interval in INTERVAL.finditer(text):
        line = text.count("\n", 0, interval.start()) + 1
        inside = any(begin <= interval.start() and interval.end() <= end for begin, end in spans)
        assert inside, f"{document}:{line}: no claim of the table covers {interval[0]}"


def test_every_interval_of_the_readme_is_one_of_the_evidence_or_a_card() -> None:
    known = {numbers(found) for document in CARDS for found in INTERVAL.finditer(" ".join(read(document).split()))}
    for found in INTERVAL.finditer(" ".join(read("README.md").split())):
        assert numbers(found) in known, f"README.md: {found[0]} is in no document that is computed again"


def numbers(interval: re.Match[str]) -> tuple[str, ...]:
    """As they are printed, but for the sign: a loss of 0.17 is a difference of -0.17."""
    return tuple(number.lstrip("+-") for number in interval.groups() if number is not None)


def test_a_number_that_is_wrong_is_named_with_its_place_and_the_right_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\nIt ends at 83.2 ± 0.4 %,\n  at most 0.9 points behind, after 27 732 updates.\n")
    text = "It ends at {} ± {} %, at most {} points behind, after {} updates"
    assert Claim(str(page), text, lambda: [83.249, 0.36, AtMost(0.9), 27732]).wrong() == []
    said = Claim(str(page), text, lambda: [83.26, 0.36, AtMost(0.95), 27733]).wrong()
    assert [line.split(": It ends")[0] for line in said] == [
        f"{page}:3: 83.2, but the results give 83.260",
        f"{page}:3: 0.9, but the results give 0.950",
        f"{page}:3: 27 732, but the results give 27733.00",
    ]
    assert "does not have: It began at" in Claim(str(page), "It began at {}", lambda: [1.0]).wrong()[0]
    assert "4 numbers, 1 values" in Claim(str(page), text, lambda: [83.2]).wrong()[0]


# ---------------------------------------------------------------------- findings and their tables
@pytest.mark.parametrize("name", TABLES)
def test_findings_quote_the_intervals_of_a_table(name: str) -> None:
    """A finding's interval is one of a table's, at the digits it is written with, or computed again by a claim."""
    tables = " ".join((runs.RESULTS / other).read_text(encoding="utf-8").partition(FINDINGS)[0] for other in TABLES)
    known = [tuple(map(float, numbers(found))) for found in INTERVAL.finditer(tables)]
    document = f"benchmarks/results/{name}"
    text, begin = read(document), read(document).find(FINDINGS)
    spans = [claim.span for claim in CLAIMS if claim.document == document]
    for found in INTERVAL.finditer(text, max(begin, 0)) if begin >= 0 else ():
        if any(first <= found.start() and found.end() <= last for first, last in spans):
            continue
        printed = numbers(found)
        assert any(len(k) == len(printed) and all(map(rounds_to, k, printed)) for k in known), (
            f"{name}: no table has {found[0]}"
        )


def rounds_to(value: float, printed: str) -> bool:
    digits = len(printed.partition(".")[2])
    return abs(value - float(printed)) <= 0.5 * 10**-digits + 1e-9


@pytest.mark.parametrize("name", TABLES)
def test_findings_do_not_call_a_setting_the_defaults_that_is_not(name: str) -> None:
    """``restore_best`` and the rollback of the runs are no defaults; findings say so where they name the settings."""
    measured = {"adaptive_warmup.md": AdaptiveWarmup(on_divergence="rollback", restore_best=True)}
    (callback,) = headline_arms.ARMS["AdaptiveWarmup"].callbacks()
    measured |= {"headline.md": callback, "headline_why.md": callback}  # type: ignore[dict-item]
    if name not in measured or settings(measured[name]) == settings(AdaptiveWarmup()):
        return
    findings = " ".join(read(f"benchmarks/results/{name}").partition(FINDINGS)[2].split())
    for phrase in (
        "at its defaults",
        "with the defaults",
        "with its defaults",
        "than the defaults",
        "above the defaults",
    ):
        assert phrase not in findings.replace("the range at its defaults", ""), f"{name}: {phrase}"


# ---------------------------------------------------------------------- the call beside a number
def settings(callback: Any) -> dict[str, Any]:
    """A callback's arguments, as it writes them into a checkpoint."""
    return resume_checks.settings_of(callback)


CALLS: list[tuple[str, str, Callable[[], Any]]] = [
    (EVIDENCE, "AdaptiveWarmup(restore_best=True)", lambda: headline_arms.ARMS["AdaptiveWarmup"].callbacks()[0]),
    (
        EVIDENCE,
        'HypergradientDescent(rule="normalized", bounds=(1e-6, 1e6))',
        lambda: headline_arms.ARMS["HypergradientDescent from 1e-5"].callbacks()[-1],
    ),
    (
        EVIDENCE,
        'AdaptiveWarmup(restore_best=True, on_divergence="rollback")',
        lambda: AdaptiveWarmup(on_divergence="rollback", restore_best=True),  # as in benchmarks/adaptive_warmup.py
    ),
    *[
        (document, call, lambda arm=arm: _hypergradient_arm(arm))  # type: ignore[misc]
        for document in (EVIDENCE, "docs/hypergradient_descent.md")
        for call, arm in (
            ('HypergradientDescent(rule="normalized", bounds=(1e-6, 1e6))', "normalized, wide"),
            ("HypergradientDescent()", "additive"),
        )
    ],
    (EVIDENCE, 'HypergradientDescent(rule="normalized")', lambda: _hypergradient_arm("normalized")),
]


def _hypergradient_arm(arm: str) -> HypergradientDescent:
    chosen = ARMS[arm]
    assert chosen is not None
    return HypergradientDescent(rule=chosen[0], bounds=chosen[1])


@pytest.mark.parametrize(("document", "call", "measured"), CALLS)
def test_the_call_in_the_text_is_the_one_that_was_measured(
    document: str, call: str, measured: Callable[[], Any]
) -> None:
    assert f"`{call}`" in " ".join(read(document).split())
    made = eval(call, vars(lightning_lr).copy())
    assert settings(made) == settings(measured())


def test_settings_tell_calls_apart() -> None:
    assert settings(AdaptiveWarmup()) != settings(AdaptiveWarmup(restore_best=True))
    assert settings(HypergradientDescent()) != settings(HypergradientDescent(rule="normalized"))
    assert settings(HypergradientDescent()) != settings(HypergradientDescent(bounds=(1e-6, 1e6)))


def test_the_benchmark_of_the_warm_up_has_the_settings_of_its_row() -> None:
    source = read("benchmarks/adaptive_warmup.py")
    assert 'AdaptiveWarmup(on_divergence="rollback", restore_best=config.restore_best)' in source


# ---------------------------------------------------------------------- what results were made with
def test_sections_with_results_of_local_changes_are_marked() -> None:
    sections = re.split(r"^## ", read(EVIDENCE), flags=re.MULTILINE)[1:]
    for section in sections:
        title = section.splitlines()[0]
        names = set(re.findall(r"`python -m benchmarks\.(\w+)", section))
        files = [
            path
            for name in names
            for path in [*runs.RESULTS.glob(f"{name}/*.json"), *runs.RESULTS.glob(f"{name}.json")]
        ]
        local = any("with local changes" in path.read_text(encoding="utf-8") for path in files)
        assert title.endswith("†") == local, title


# ---------------------------------------------------------------------- commands
def test_the_compression_benchmark_tells_its_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.compression", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("benchmarks.compression", run_name="__main__")
    assert end.value.code in (None, 0)
    assert "memory | speed | accuracy" in capsys.readouterr().out
