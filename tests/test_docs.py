"""What README.md and docs/*.md show is so: code runs, configurations are accepted, commands and links exist.

Numbers are in `test_claims.py`.

The prelude of every Python block, and the base to which every YAML block is added: ``model`` (of class ``Model``) and
``data`` are the user's LightningModule and LightningDataModule, here a small network with batch norm on 160 samples;
``Trainer``, ``torch`` and ``LightningModule`` are imported. The blocks of a document share one namespace.
"""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_lr as lr
from lightning_lr.cli import COMMANDS, main
from lightning_lr.cli.plan.command import PlanCLI
from lightning_lr.cli.plan.configured_run import PlanOptions, plan_run
from lightning_lr.cli.plan.options import parse_options
from lightning_lr.cli.trainer_cli import LearningRateCLI
from lightning_lr_command import answer
from tests.support.processes import SERVER
from tests.support.toy import data as samples
from tests.support.toy import quiet

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "lightning_lr"
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *PAGES]
NO_CARDS = (
    "limits",
    "index",
    "guide",
    "migration",
    "methods",
    "api",
    "architecture",
    "clusters",
    "resuming",
    "evidence",
)
CARDS = [path for path in PAGES if path.stem not in NO_CARDS]
FOLDERS = "benchmarks|configs|docs|examples|scripts|src|tests"

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*found in sys.modules"),
]


class Model(LightningModule):
    """Four like blocks with batch norm, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(4))
        self.head = nn.Linear(16, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.stem(batch[0])
        for block in self.blocks:
            hidden = block(hidden)
        loss = nn.functional.mse_loss(self.head(hidden), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Data(LightningDataModule):
    """160 samples."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(160), batch_size=self.batch_size, shuffle=True)


BASE = {
    "trainer": {k: v for k, v in quiet(max_epochs=10).items() if k != "default_root_dir"},
    "model": {"class_path": f"{__name__}.Model"},
    "data": {"class_path": f"{__name__}.Data"},
}


# ---------------------------------------------------------------------- reading a document
@dataclass(frozen=True)
class Block:
    """A piece of a document that stands apart from its text; ``language`` is "" where it is merely indented."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


@cache
def read(document: Path) -> tuple[list[Block], str]:
    """The blocks of a document, and its text without them."""
    blocks, prose = [], []
    lines = iter(enumerate(document.read_text(encoding="utf-8").splitlines(), start=1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            inside = []
            for _, code in lines:
                if code.startswith("```"):
                    break
                inside.append(code)
            else:
                raise AssertionError(f"{document.name}:{number}: the block is not closed")
            blocks.append(Block(document, number + 1, line[3:].strip(), "\n".join(inside)))
        elif line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            blocks.append(Block(document, number, "", line[4:]))
        else:
            prose.append(line)
        before = line
    return blocks, "\n".join(prose)


def blocks_in(language: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in read(document)[0] if block.language == language]


def inline_code(document: Path) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", read(document)[1])]


def commands() -> list[str]:
    """Every command line of ours that is shown, in a block or within the text."""
    shown = [line for block in [*blocks_in("sh"), *blocks_in("")] for line in lines_of(block)]
    shown += [code for document in DOCUMENTS for code in inline_code(document)]
    return sorted({line for line in shown if line.startswith(("make ", "lightning-lr ", "python -m "))})


def lines_of(block: Block) -> list[str]:
    return [line.split(" #")[0].strip() for line in block.text.replace("\\\n", " ").splitlines()]


# ---------------------------------------------------------------------- what is shown runs
@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if any(b.language == "python" for b in read(d)[0])],
    ids=lambda document: document.stem,
)
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not any(needs_deepspeed(block) for block in read(document)[0]):
        run_python_blocks(document)
        return
    pytest.importorskip("deepspeed")
    # in a process of its own: an engine leaves its process group to the end of the process
    process = SERVER.Process(target=run_python_blocks, args=(document,))
    process.start()
    process.join()
    assert process.exitcode == 0, "its error is in what was written to stderr"


def needs_deepspeed(block: Block) -> bool:
    return block.language in ("python", "yaml") and re.search(r"ZeROStrategy|\bzero_[123]", block.text) is not None


def run_python_blocks(document: Path) -> None:
    torch.manual_seed(0)
    namespace: dict[str, Any] = {
        "LightningModule": LightningModule, "Model": Model, "Trainer": partial(Trainer, **quiet()),
        "data": Data(), "model": Model(), "torch": torch,
    }  # fmt: skip
    for block in read(document)[0]:
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.text  # so that a traceback names the document's line
            exec(compile(code, str(block.document), "exec"), namespace)


class Unrun(LearningRateCLI):
    """Parses and instantiates what a command says, and leaves it at that; a command's parser is built once for all."""

    built: ClassVar[dict[str, dict[str, Any]]] = {}

    def setup_parser(self, *arguments: Any) -> None:
        command = next(iter(self.subcommands()))
        if command not in self.built:
            super().setup_parser(*arguments)
            made = ("parser", "parsers", "_subcommand_parsers", "_subcommand_method_arguments")
            self.built[command] = {name: vars(self)[name] for name in made}
        vars(self).update(self.built[command])

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Parsed(Unrun):
    """Parses only."""

    def instantiate_classes(self) -> None:
        pass


class Planned(Unrun, PlanCLI):
    """What ``lightning-lr plan`` makes of a configuration."""


@pytest.mark.parametrize("block", blocks_in("yaml"), ids=str)
def test_yaml_blocks_are_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if needs_deepspeed(block):
        pytest.importorskip("deepspeed")
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("shown.yaml").write_text(block.text)
    words = ["--config", "base.yaml", "--config", "shown.yaml"]
    configured = Planned(words)
    planned = plan_run(configured.settings, configured.model, configured.datamodule, PlanOptions("shown.yaml"))
    assert planned.rows
    if "strategy" in block.text:  # which a plan does not build
        assert isinstance(Unrun(["fit", *words]).trainer, Trainer)


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w.-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
    elif program == "python":
        _, module, *options = words
        if module == "pytest":
            return
        given = {word.split("=")[0] for word in options if word.startswith("--")}
        assert given <= set(re.findall(r"--[\w-]+", help_of(module)))
    else:
        command, *options = words
        if command in ("--help", "--version"):
            assert answer(words) == 0
            return
        assert command in COMMANDS
        if not options:  # the command is only mentioned
            return
        if command == "report":
            assert {word for word in options if word.startswith("--")} <= {"--out"}
            assert [word for word in options if not word.startswith("--")]
        elif command == "init":
            assert {word for word in options if word.startswith("--")} <= {"--model", "--data", "--for", "--out"}
        elif command == "plan":
            Parsed(["fit", *parse_options(options)[1]])
        else:
            Parsed(words)


@cache
def help_of(module: str) -> str:
    """What ``python -m module --help`` prints, without a process of its own."""
    out, words = io.StringIO(), sys.argv
    sys.argv = [module, "--help"]
    try:
        with redirect_stdout(out), pytest.raises(SystemExit) as left:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    finally:
        sys.argv = words
    assert left.value.code in (0, None) or isinstance(left.value.code, str)
    return out.getvalue() + str(left.value.code)


def test_every_line_of_a_shell_block_is_checked() -> None:
    assert {line for block in blocks_in("sh") for line in lines_of(block)} <= set(commands())


def test_every_block_says_what_it_is() -> None:
    for document in DOCUMENTS:
        for block in read(document)[0]:
            assert block.language in ("python", "yaml", "sh", "text", ""), block


# ---------------------------------------------------------------------- what is referred to exists
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_links_and_pictures_resolve(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(document)[1]):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.is_relative_to(REPOSITORY), target
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.stem)
def test_paths_exist(document: Path) -> None:
    for code in inline_code(document):
        if re.fullmatch(rf"({FOLDERS})/[\w./-]+", code):
            assert (REPOSITORY / code).exists(), code


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")))
    assert {path.name for path in CARDS} <= linked


@pytest.mark.parametrize("name", [*lr.__all__, *lr.optim.__all__])
def test_every_public_name_has_a_card(name: str) -> None:
    assert [card.name for card in CARDS if re.search(rf"\b{name}\b", card.read_text(encoding="utf-8"))]


# ---------------------------------------------------------------------- what a card says about company
REFUSED: list[tuple[str, Callable[[], list[Callback]]]] = [
    ("learning_rate_schedule", lambda: [lr.LearningRateSchedule(lr.Cosine()), lr.BatchSizeRamp(lr.StepRamp([2]))]),
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.LearningRateSchedule(lr.Constant())]),
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.LearningRateScaling(8)]),
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.NormalizedWeightDecay()]),
    ("learning_rate_scaling", lambda: [lr.LearningRateScaling(8), lr.AdaptiveWarmup()]),
    ("normalized_weight_decay", lambda: [lr.NormalizedWeightDecay(), lr.AdaptiveWarmup()]),
    ("batch_size_ramp", lambda: [lr.BatchSizeRamp(lr.StepRamp([2])), lr.LearningRateSchedule(lr.Cosine())]),
    ("gradual_unfreezing", lambda: [lr.GradualUnfreezing(), BackboneFinetuning()]),
]

TOGETHER: list[tuple[str, Callable[[], list[Callback]]]] = [
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.LayerwiseLRDecay()]),
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.GradualUnfreezing()]),
    ("adaptive_warmup", lambda: [lr.AdaptiveWarmup(), lr.HypergradientDescent()]),
    ("hypergradient_descent", lambda: [lr.HypergradientDescent(), lr.AdaptiveWarmup()]),
    ("hypergradient_descent", lambda: [lr.HypergradientDescent(), lr.LearningRateScaling()]),
    (
        "adaptive_warmup",
        lambda: [
            lr.AdaptiveWarmup(decay=lr.Constant()),
            lr.BatchSizeRamp(lr.CurveRamp(lr.Cosine(floor=0.1)), begin="after_warmup"),
        ],
    ),
    ("learning_rate_schedule", lambda: [lr.LearningRateSchedule(lr.Cosine()), lr.NormalizedWeightDecay()]),
    ("batch_size_ramp", lambda: [lr.BatchSizeRamp(lr.StepRamp([2])), lr.GhostBatchNorm(8)]),
    ("batch_size_ramp", lambda: [lr.BatchSizeRamp(lr.StepRamp([2])), lr.LearningRateScaling(8)]),
    ("layerwise_lr_decay", lambda: [lr.LayerwiseLRDecay(), lr.GradualUnfreezing()]),
]


def company(card: str) -> tuple[str, str]:
    """Of a card's "Goes with": what may stand beside the method, and what may not."""
    text = (REPOSITORY / "docs" / f"{card}.md").read_text(encoding="utf-8")
    items = text.split("## Goes with")[1].split("##")[0].split("\n- ")
    refused = [item for item in items if item.startswith("**Refused**")]
    return "\n".join(item for item in items if item not in refused), "\n".join(refused)


def set_up(callbacks: list[Callback]) -> None:
    model = Model()
    try:
        for callback in callbacks:
            callback.setup(cast(Trainer, SimpleNamespace(callbacks=callbacks, sync_batchnorm=False)), model, "fit")
    finally:
        for callback in callbacks:
            callback.teardown(cast(Trainer, None), model, "fit")


@pytest.mark.parametrize(("card", "made"), REFUSED)
def test_what_a_card_calls_refused_is_refused(card: str, made: Callable[[], list[Callback]]) -> None:
    callbacks = made()
    other = {"BatchSizeRamp": "another method", "LearningRateSchedule": "LearningRateSchedule|another method"}
    name = type(callbacks[1]).__name__
    assert re.search(other.get(name, name), company(card)[1])
    with pytest.raises(MisconfigurationException):
        set_up(callbacks)


@pytest.mark.parametrize(("card", "made"), TOGETHER)
def test_what_a_card_puts_together_goes_together(card: str, made: Callable[[], list[Callback]]) -> None:
    callbacks = made()
    assert type(callbacks[1]).__name__ in company(card)[0]
    set_up(callbacks)


# ---------------------------------------------------------------------- what these tests find
def test_a_command_that_does_not_exist_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "make coffee",
        "python -m benchmarks.overhead --milk",
        "lightning-lr brew --config configs/digits.yaml",
    ):
        with pytest.raises(AssertionError):
            test_commands_exist(line, monkeypatch)
    with pytest.raises(Exception, match="no_such"):
        test_commands_exist("lightning-lr fit --config configs/no_such.yaml", monkeypatch)
    assert main(["brew"]) == 2
