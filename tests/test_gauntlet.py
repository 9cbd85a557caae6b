"""What every method has to pass: off is bare, resume is exact, two processes equal one, and the rest of the list."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

import lightning_lr
from lightning_lr import CheckpointedStrategy
from tests.support import gauntlet_in_two_processes as in_two
from tests.support.batches import Batches
from tests.support.gauntlet import BATCH, ROWS, At, Row
from tests.support.rounding import rounding, rounding_after
from tests.support.toy import Probe, ResumableLoader, Stream, Toy, data, fit, two_groups, weights

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def expected(row: Row, samples: int, updates: int, base: float, largest: float | None = None) -> list[float]:
    """The lr of each update by the row's closed form; the last update of an epoch has what is left."""
    sizes = [min(BATCH, samples - start) for start in range(0, samples, BATCH)]
    run = [sizes[update % len(sizes)] for update in range(updates)]
    largest = largest or base
    places = [At(u, updates, len(sizes), sum(run[:u]), run[u], samples, largest) for u in range(updates)]
    if row.replay is not None:
        return row.replay(places)
    assert row.factor is not None
    return [base * row.factor(at) for at in places]


def close(row: Row, values: Any) -> Any:
    """Equal to ``values`` within the row's tolerance; the closed forms are computed in another order."""
    return pytest.approx(values, rel=row.tolerance or 1e-12)


def same(row: Row, found: list[list[Any]], wanted: list[list[Any]]) -> bool:
    """Whether two runs had the same learning rates: to the bit, or within the row's tolerance."""
    return found == (wanted if not row.tolerance else [close(row, update) for update in wanted])


def base_lr(row: Row) -> float:
    return 0.05 if row.configure is None else 0.01


def train(row: Row, callbacks: list[Any], **arguments: Any) -> tuple[Toy, Probe]:
    probe = Probe()
    module = arguments.pop("module", None) or Toy(row.configure)
    if callbacks:
        arguments = strategy_of(row) | arguments
    trained, _ = fit([*callbacks, probe], module=module, **arguments)
    assert isinstance(trained, Toy)
    return trained, probe


def strategy_of(row: Row) -> dict[str, Any]:
    return {} if row.policy is None else {"strategy": CheckpointedStrategy(row.policy)}


@rows
def test_off_equals_bare_to_the_bit(row: Row) -> None:
    bare, bare_probe = train(row, [], max_epochs=2)
    off, off_probe = train(row, row.off(), max_epochs=2)
    on, _ = train(row, row.make(), max_epochs=2)
    assert torch.equal(weights(bare), weights(off))
    assert all(
        off == pytest.approx(lr, rel=row.off_by, abs=0)
        for lr, off in zip(bare_probe.first, off_probe.first, strict=True)
    )
    assert not torch.equal(weights(bare), weights(on)), "the row does something"


@rows
@pytest.mark.parametrize("samples", [pytest.param(48, marks=pytest.mark.slow), 50, 3])
def test_learning_rate_of_every_update(row: Row, samples: int) -> None:
    if samples == 3 and "short" in row.refuses:
        with pytest.raises(MisconfigurationException, match=row.refuses["short"]):
            train(row, row.make(), loader=DataLoader(data(samples), batch_size=BATCH), max_epochs=3)
        return
    _, probe = train(row, row.make(), loader=DataLoader(data(samples), batch_size=BATCH), max_epochs=3)
    updates = 3 * -(-samples // BATCH)
    assert probe.first == close(row, expected(row, samples, updates, base_lr(row)))


@rows
def test_accumulation_equals_the_whole_batch(row: Row) -> None:
    whole, whole_probe = train(row, row.make(), loader=DataLoader(data(48), batch_size=BATCH))
    halves: dict[str, Any] = {"loader": DataLoader(data(48), batch_size=BATCH // 2), "accumulate_grad_batches": 2}
    if "accumulation" in row.refuses:
        with pytest.raises(MisconfigurationException, match=row.refuses["accumulation"]):
            train(row, row.make(), **halves)
        return
    parts, parts_probe = train(row, row.make(), **halves)
    assert same(row, parts_probe.series, whole_probe.series)
    if row.noisy:
        assert (weights(whole) - weights(parts)).abs().max() < row.noisy
        return
    assert torch.allclose(weights(whole), weights(parts), rtol=0, atol=rounding_after(18)), (
        "sums of eight in another order"
    )


@rows
@pytest.mark.parametrize("max_steps", [1, pytest.param(13, marks=pytest.mark.slow), 14])
def test_max_steps_ends_the_curve_at_the_last_update(row: Row, max_steps: int) -> None:
    loader = DataLoader(data(50), batch_size=BATCH)
    if max_steps == 1 and "short" in row.refuses:
        with pytest.raises(MisconfigurationException, match=row.refuses["short"]):
            train(row, row.off(), loader=loader, max_steps=max_steps, max_epochs=-1)
        return
    _, probe = train(row, row.make() if max_steps > 7 else row.off(), loader=loader, max_steps=max_steps, max_epochs=-1)
    assert len(probe.series) == max_steps
    if max_steps > 7:
        assert probe.first == close(row, expected(row, 50, max_steps, base_lr(row)))


def _needs_an_epoch(row: Row) -> bool:
    return any(getattr(callback, "warmup_epochs", 0) for callback in row.make())


@rows
def test_iterable_data_without_a_length(row: Row) -> None:
    stream = DataLoader(Stream(48), batch_size=BATCH)
    refusal = "an epoch is not known; set warmup_epochs=0" if _needs_an_epoch(row) else row.refuses.get("iterable")
    if refusal:
        with pytest.raises(MisconfigurationException, match=refusal):
            train(row, row.make(), loader=stream, max_steps=15, max_epochs=-1)
        return
    _, probe = train(row, row.make(), loader=stream, max_steps=15, max_epochs=-1)
    assert probe.first == close(row, expected(row, 48, 15, base_lr(row)))


@rows
def test_bf16_autocast_has_the_same_learning_rates(row: Row) -> None:
    _, full = train(row, row.make())
    trained, mixed = train(row, row.make(), precision="bf16-mixed")
    if row.replay is None:  # else it follows the rounded gradients
        assert mixed.series == full.series
    assert len(mixed.series) == len(full.series)
    assert torch.isfinite(weights(trained)).all()


@rows
def test_several_groups_keep_their_ratio(row: Row) -> None:
    if row.configure is not None:
        pytest.skip("the row brings its own optimizer")
    _, probe = train(row, row.make(), module=Toy(two_groups))
    for update, factor in enumerate(expected(row, 48, 18, 1.0, largest=0.1)):
        assert probe.series[update] == pytest.approx([0.02 * factor, 0.1 * factor * row.head], rel=1e-12)


@rows
@pytest.mark.parametrize("at", ["around the epochs", pytest.param("the others", marks=pytest.mark.slow)])
def test_resume_at_every_update_equals_the_uninterrupted_run(row: Row, at: str, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    save.CHECKPOINT_NAME_LAST = "last"
    with_betas = "betas" in Toy(row.configure).configure_optimizers().param_groups[0]
    probe = Probe("lr", "betas") if with_betas else Probe()
    keys = probe.keys
    whole, _ = fit(
        [*row.make(), probe, save],
        module=Toy(row.configure),
        loader=ResumableLoader(data(50), BATCH),
        enable_checkpointing=True,
        **strategy_of(row),
    )
    updates = len(probe.series)
    assert updates == 21
    around = {1, 6, 7, 8, 13, 20}  # seven updates an epoch
    for update in around if at == "around the epochs" else set(range(1, updates)) - around:
        resumed_probe = Probe(*keys)
        resumed, _ = fit(
            [*row.make(), resumed_probe],
            module=Toy(row.configure),
            loader=ResumableLoader(data(50), BATCH),
            ckpt_path=str(tmp_path / f"step={update}.ckpt"),
            **strategy_of(row),
        )
        assert resumed_probe.series == probe.series[update:], update
        assert torch.equal(weights(resumed), weights(whole)), update


@rows
def test_yaml_round_trip_trains_the_same_weights(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lightning_lr.LearningRateSchedule, "short names resolve once the package is imported"
    monkeypatch.setattr("sys.argv", ["lightning-lr"])
    config = {
        "trainer": {"callbacks": row.yaml, "max_epochs": 2, "accelerator": "cpu", "logger": False,
                    "default_root_dir": str(tmp_path), "enable_checkpointing": False,
                    "enable_progress_bar": False, "enable_model_summary": False},
    }  # fmt: skip
    if row.strategy_yaml is not None:
        config["trainer"]["strategy"] = row.strategy_yaml

    def parsed(file: Path) -> LightningCLI:
        return LightningCLI(
            Toy, run=False, save_config_callback=None, args=["--config", str(file)], auto_configure_optimizers=False,
            seed_everything_default=False,
        )  # fmt: skip

    written, again = tmp_path / "written.yaml", tmp_path / "again.yaml"
    written.write_text(yaml.safe_dump(config))
    first = parsed(written)
    again.write_text(first.parser.dump(first.config))
    second = parsed(again)
    trained = []
    for cli in (first, second):
        module = Toy(row.configure)
        cli.trainer.fit(module, DataLoader(data(), batch_size=BATCH))
        trained.append(weights(module))
    by_hand, _ = train(row, row.make(), max_epochs=2)
    assert torch.equal(trained[0], weights(by_hand))
    assert torch.equal(trained[1], weights(by_hand))


# ---------------------------------------------------------------------- two processes
PAIRS = [pair for pair in in_two.pairs() if DEEPSPEED or not pair[1].name.startswith("zero")]
TRAINED = [pair for pair in PAIRS if in_two.refused(pair) is None]
REFUSED = [pair for pair in PAIRS if in_two.refused(pair) is not None]
Case = tuple[str, Callable[[], Any]]


def named(pair: in_two.Pair) -> str:
    return f"{pair[0].name}-{pair[1].name}"


def _key(kind: str, pair: in_two.Pair) -> str:
    return f"{kind} {named(pair)}"


def _names(pair: in_two.Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


KINDS: dict[str, Callable[[in_two.Pair, str], Callable[[], Any]]] = {
    "whole": lambda pair, at: partial(in_two.run, *_names(pair), save=f"{at}/{named(pair)}"),
    "resumed": lambda pair, at: partial(
        in_two.run, *_names(pair), ckpt_path=f"{at}/{named(pair)}/step={in_two.SAVED}.ckpt"
    ),
    **{
        f"accumulated {n}": lambda pair, at, n=n: partial(in_two.accumulated, *_names(pair), n)  # type: ignore[misc]
        for n in (1, 2, 3)
    },
    "yaml": lambda pair, at: partial(in_two.from_yaml, *_names(pair), at),
    "bf16-mixed": lambda pair, at: partial(in_two.run, *_names(pair), precision="bf16-mixed"),
}


def _soon(kind: str, pair: in_two.Pair) -> bool:
    """Whether it is run every time; the rest is slow.

    Every row under DDP and under one other strategy, resumed there; rows in turn, so that every strategy has its share.
    One row under all strategies whole, resumed and in windows of three micro-batches, of which the last is short;
    `test_zero_strategy.py` has windows of one, two and three in turn. What is refused takes no time.
    """
    row, strategy = _names(pair)
    turn = in_two.STRATEGIES[1 + [r.name for r in ROWS].index(row) % (len(in_two.STRATEGIES) - 1)].name
    return {
        "whole": row == SHOWN or strategy in ("ddp", turn) or pair in REFUSED,
        "resumed": row == SHOWN or strategy == turn,
        "accumulated 3": row == SHOWN,
        "bf16-mixed": row == SHOWN and strategy in ("ddp", "zero_2"),
        "yaml": row == SHOWN and strategy.startswith("zero"),
    }.get(kind, False)


SHOWN = "layerwise-and-scaling-and-schedule"
"""Several groups and several factors."""


def _cases(folder: Path, soon: bool) -> list[Case]:
    wanted = [(kind, pair) for pair in PAIRS for kind in KINDS if pair in TRAINED or kind == "whole"]
    return [(_key(kind, pair), KINDS[kind](pair, str(folder))) for kind, pair in wanted if _soon(kind, pair) == soon]


def over(*kinds: str) -> pytest.MarkDecorator:
    """Every pair of a row and a strategy that trains, for every kind of run."""
    return pytest.mark.parametrize(
        ("kind", "pair"),
        [
            pytest.param(kind, pair, id=_key(kind, pair), marks=() if _soon(kind, pair) else pytest.mark.slow)
            for kind in kinds
            for pair in TRAINED
        ],
    )


class Ran:
    """What the runs did."""

    def __init__(self, folder: Path) -> None:
        self._batches = Batches(folder, _cases(folder, soon=True), _cases(folder, soon=False))

    def facts(self, kind: str, pair: in_two.Pair) -> list[Any]:
        """Of each rank."""
        return self._batches[_key(kind, pair)]

    def trained(self, kind: str, pair: in_two.Pair) -> dict[str, Any]:
        """Of the first rank; the second had the same to the bit."""
        first, second = self.facts(kind, pair)
        assert isinstance(first, dict), first
        assert isinstance(second, dict), second
        assert first["lrs"] == second["lrs"]
        assert torch.equal(first["weights"], second["weights"])
        return first


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def alone() -> Callable[[Row], tuple[torch.Tensor, Probe]]:
    """One process with the same global batch, trained once for all strategies."""

    @cache
    def trained(name: str) -> tuple[torch.Tensor, Probe]:
        row = next(row for row in ROWS if row.name == name)
        loader = DataLoader(data(in_two.SAMPLES), batch_size=BATCH)
        module, probe = train(row, row.make(), loader=loader, max_epochs=in_two.EPOCHS)
        return weights(module), probe

    return lambda row: trained(row.name)


@over("whole")
def test_two_processes_equal_one_with_the_same_global_batch(kind: str, pair: in_two.Pair, ran: Ran, alone: Any) -> None:
    row, two = pair[0], ran.trained(kind, pair)
    one, probe = alone(row)
    assert not two["wrapped"]
    assert two["updates"] == two["hooks"] == len(two["norms"]) == in_two.UPDATES
    assert same(row, two["lrs"], probe.series)
    assert [lrs[0] for lrs in two["lrs"]] == close(row, expected(row, in_two.SAMPLES, in_two.UPDATES, base_lr(row)))
    # means over two ranks are summed in another order
    assert (two["weights"] - one).abs().max() < (row.noisy or rounding_after(in_two.UPDATES))


@over("resumed")
def test_a_run_that_was_resumed_in_an_epoch_equals_the_whole_one(kind: str, pair: in_two.Pair, ran: Ran) -> None:
    resumed, whole = ran.trained(kind, pair), ran.trained("whole", pair)
    assert resumed["lrs"] == whole["lrs"][in_two.SAVED :]
    assert torch.equal(resumed["weights"], whole["weights"])


@over("accumulated 1", "accumulated 2", "accumulated 3")
def test_accumulation_has_the_updates_hooks_and_gradient_norms_of_ddp(kind: str, pair: in_two.Pair, ran: Ran) -> None:
    row, micro_batches = pair[0], int(kind[-1])
    if micro_batches > 1 and "accumulation" in row.refuses:
        assert all(row.refuses["accumulation"] in said for said in ran.facts(kind, pair))
        return
    got, wanted = ran.trained(kind, pair), ran.trained(kind, (row, in_two.STRATEGIES[0]))
    updates = in_two.EPOCHS * -(-in_two.RAGGED // (2 * 2 * micro_batches))
    assert got["updates"] == got["hooks"] == wanted["updates"] == wanted["hooks"] == updates
    # gradients of eight samples and eight units, which are by the end a twentieth of their terms, in another order
    assert got["norms"] == pytest.approx(wanted["norms"], rel=rounding(16 * 20))
    assert same(row, got["lrs"], wanted["lrs"])
    assert (got["weights"] - wanted["weights"]).abs().max() < rounding_after(updates)


@over("yaml")
def test_yaml_names_the_strategy(kind: str, pair: in_two.Pair, ran: Ran) -> None:
    written, by_hand = ran.trained(kind, pair), ran.trained("whole", pair)
    assert written["lrs"] == by_hand["lrs"]
    assert torch.equal(written["weights"], by_hand["weights"])


@over("bf16-mixed")
def test_bf16_has_the_same_learning_rates_under_a_strategy(kind: str, pair: in_two.Pair, ran: Ran) -> None:
    half, full = ran.trained(kind, pair), ran.trained("whole", pair)
    assert len(half["lrs"]) == in_two.UPDATES
    if pair[0].replay is None:  # else it follows the rounded gradients
        assert half["lrs"] == full["lrs"]
    assert 0 < (half["weights"] - full["weights"]).abs().max() < 0.1


@pytest.mark.parametrize("pair", REFUSED, ids=named)
def test_what_a_strategy_cannot_do_is_refused_before_training(pair: in_two.Pair, ran: Ran) -> None:
    for said in ran.facts("whole", pair):
        assert isinstance(said, str), "nothing was raised"
        assert said.startswith("MisconfigurationException: ")
        assert str(in_two.refused(pair)) in said
        assert "on_fit_start" in said or "setup" in said, "before training"


def test_a_row_refuses_no_strategy_that_does_not_exist() -> None:
    known = {"short", "accumulation", "iterable", *(strategy.name for strategy in in_two.STRATEGIES)}
    assert all(set(row.refuses) <= known for row in ROWS)
