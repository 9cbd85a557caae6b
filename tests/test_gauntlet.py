"""What every method has to pass: off is bare, resume is exact, two processes equal one, and the rest of the list."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import several
import torch
import yaml
from gauntlet import BATCH, ROWS, At, Row
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader
from toy import Probe, ResumableLoader, Stream, Toy, data, fit, two_groups, weights
from zero import run_in_processes

import lightning_lr
from lightning_lr import CheckpointedStrategy

DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def expected(
    row: Row, samples: int, updates: int, base: float, total: int | None = None, largest: float | None = None
) -> list[float]:
    """The lr of each update by the row's closed form; the last update of an epoch has what is left."""
    sizes = [min(BATCH, samples - start) for start in range(0, samples, BATCH)]
    run = [sizes[update % len(sizes)] for update in range(updates)]
    total = total or sum(run)
    largest = largest or base
    places = [At(sum(run[:u]), run[u], total, samples, largest) for u in range(updates)]
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
@pytest.mark.parametrize("samples", [48, 50, 3])
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
    # sums of eight in another order; fp32 rounding over 18 updates
    assert torch.allclose(weights(whole), weights(parts), rtol=0, atol=1e-6)


@rows
@pytest.mark.parametrize("max_steps", [1, 13, 14])
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
    assert probe.first == close(row, expected(row, 48, 15, base_lr(row), total=15 * BATCH))


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
def test_resume_at_every_update_equals_the_uninterrupted_run(row: Row, tmp_path: Path) -> None:
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
    for update in range(1, updates):
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
PAIRS = [pair for pair in several.pairs() if DEEPSPEED or not pair[1].name.startswith("zero")]
TRAINED = [pair for pair in PAIRS if several.refused(pair) is None]
REFUSED = [pair for pair in PAIRS if several.refused(pair) is not None]
Case = tuple[str, Callable[[], Any]]
Ran = list[dict[str, Any]]


def named(pair: several.Pair) -> str:
    return f"{pair[0].name}-{pair[1].name}"


def under(pairs: list[several.Pair]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", pairs, ids=named)


def _key(kind: str, pair: several.Pair) -> str:
    return f"{kind} {named(pair)}"


def _names(pair: several.Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


def _cases(folder: Path) -> Iterator[Case]:
    for pair in PAIRS:
        saved = folder / named(pair)
        yield _key("whole", pair), partial(several.run, *_names(pair), save=str(saved))
        if pair in TRAINED:
            ckpt = str(saved / f"step={several.SAVED}.ckpt")
            yield _key("resumed", pair), partial(several.run, *_names(pair), ckpt_path=ckpt)
            yield _key("accumulated 3", pair), partial(several.accumulated, *_names(pair), 3)
        if pair in ONCE:
            yield _key("yaml", pair), partial(several.from_yaml, *_names(pair), str(folder))
            yield _key("bf16-mixed", pair), partial(several.run, *_names(pair), precision="bf16-mixed")


def _more_cases(folder: Path) -> Iterator[Case]:
    for pair in TRAINED:
        for micro_batches in (1, 2):
            kind = f"accumulated {micro_batches}"
            yield _key(kind, pair), partial(several.accumulated, *_names(pair), micro_batches)
        if pair not in ONCE:
            yield _key("yaml", pair), partial(several.from_yaml, *_names(pair), str(folder))
            yield _key("bf16-mixed", pair), partial(several.run, *_names(pair), precision="bf16-mixed")


ONCE = [pair for pair in TRAINED if pair[0].name == "layerwise-and-scaling-and-schedule"]
"""Of YAML and bf16, one row under every strategy; the others, which are no different, are slow."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("several")
    return run_in_processes(list(_cases(folder)), folder)


@pytest.fixture(scope="module")
def ran_more(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("more")
    more = run_in_processes(list(_more_cases(folder)), folder)
    return [{**first, **second} for first, second in zip(ran, more, strict=True)]


@pytest.fixture(scope="module")
def alone() -> Callable[[Row], tuple[torch.Tensor, Probe]]:
    """One process with the same global batch, trained once for all strategies."""

    @cache
    def trained(name: str) -> tuple[torch.Tensor, Probe]:
        row = next(row for row in ROWS if row.name == name)
        loader = DataLoader(data(several.SAMPLES), batch_size=BATCH)
        module, probe = train(row, row.make(), loader=loader, max_epochs=several.EPOCHS)
        return weights(module), probe

    return lambda row: trained(row.name)


def _facts(ran: Ran, kind: str, pair: several.Pair) -> list[dict[str, Any]]:
    found = [rank[_key(kind, pair)] for rank in ran]
    for facts in found:
        assert isinstance(facts, dict), facts
    return found


def _agree(found: list[dict[str, Any]]) -> None:
    """The ranks, to the bit."""
    first, second = found
    assert first["lrs"] == second["lrs"]
    assert torch.equal(first["weights"], second["weights"])


@under(TRAINED)
def test_two_processes_equal_one_with_the_same_global_batch(pair: several.Pair, ran: Ran, alone: Any) -> None:
    row, found = pair[0], _facts(ran, "whole", pair)
    one, probe = alone(row)
    _agree(found)
    two = found[0]
    assert not two["wrapped"]
    assert two["updates"] == two["hooks"] == len(two["norms"]) == several.UPDATES
    assert same(row, two["lrs"], probe.series)
    assert [lrs[0] for lrs in two["lrs"]] == close(row, expected(row, several.SAMPLES, several.UPDATES, base_lr(row)))
    # means over two ranks are summed in another order; fp32 rounding over 21 updates
    assert (two["weights"] - one).abs().max() < (row.noisy or 1e-6)


@under(TRAINED)
def test_a_run_that_was_resumed_in_an_epoch_equals_the_whole_one(pair: several.Pair, ran: Ran) -> None:
    whole, resumed = _facts(ran, "whole", pair)[0], _facts(ran, "resumed", pair)
    _agree(resumed)
    assert resumed[0]["lrs"] == whole["lrs"][several.SAVED :]
    assert torch.equal(resumed[0]["weights"], whole["weights"])


def _accumulates(pair: several.Pair, micro_batches: int, ran: Ran) -> None:
    """Updates, hooks, gradient norms and learning rates as under DDP."""
    row, kind = pair[0], f"accumulated {micro_batches}"
    if micro_batches > 1 and "accumulation" in row.refuses:
        assert row.refuses["accumulation"] in ran[0][_key(kind, pair)]
        return
    found, wanted = _facts(ran, kind, pair), _facts(ran, kind, (row, several.SEVERAL[0]))[0]
    _agree(found)
    got = found[0]
    updates = several.EPOCHS * -(-several.RAGGED // (2 * 2 * micro_batches))
    assert got["updates"] == got["hooks"] == wanted["updates"] == wanted["hooks"] == updates
    assert got["norms"] == pytest.approx(wanted["norms"], rel=2e-5)  # summed over shards in another order
    assert same(row, got["lrs"], wanted["lrs"])
    assert (got["weights"] - wanted["weights"]).abs().max() < 1e-6


@under(TRAINED)
def test_accumulation_that_leaves_a_part_is_ddps(pair: several.Pair, ran: Ran) -> None:
    _accumulates(pair, 3, ran)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
@under(TRAINED)
def test_accumulation_is_ddps(pair: several.Pair, micro_batches: int, ran_more: Ran) -> None:
    _accumulates(pair, micro_batches, ran_more)


def _reads_yaml(pair: several.Pair, ran: Ran) -> None:
    written, by_hand = _facts(ran, "yaml", pair), _facts(ran, "whole", pair)[0]
    _agree(written)
    assert written[0]["lrs"] == by_hand["lrs"]
    assert torch.equal(written[0]["weights"], by_hand["weights"])


def _trains_in_bf16(pair: several.Pair, ran: Ran) -> None:
    half, full = _facts(ran, "bf16-mixed", pair), _facts(ran, "whole", pair)[0]
    _agree(half)
    assert len(half[0]["lrs"]) == several.UPDATES
    if pair[0].replay is None:  # else it follows the rounded gradients
        assert half[0]["lrs"] == full["lrs"]
    assert 0 < (half[0]["weights"] - full["weights"]).abs().max() < 0.1


@under(ONCE)
def test_yaml_names_the_strategy(pair: several.Pair, ran: Ran) -> None:
    _reads_yaml(pair, ran)


@pytest.mark.slow
@under([pair for pair in TRAINED if pair not in ONCE])
def test_yaml_names_the_strategy_beside_every_row(pair: several.Pair, ran_more: Ran) -> None:
    _reads_yaml(pair, ran_more)


@under(ONCE)
def test_bf16_has_the_same_learning_rates_under_every_strategy(pair: several.Pair, ran: Ran) -> None:
    _trains_in_bf16(pair, ran)


@pytest.mark.slow
@under([pair for pair in TRAINED if pair not in ONCE])
def test_bf16_has_the_same_learning_rates_beside_every_row(pair: several.Pair, ran_more: Ran) -> None:
    _trains_in_bf16(pair, ran_more)


@under(REFUSED)
def test_what_a_strategy_cannot_do_is_refused_before_training(pair: several.Pair, ran: Ran) -> None:
    for rank in ran:
        said = rank[_key("whole", pair)]
        assert isinstance(said, str), "nothing was raised"
        assert said.startswith("MisconfigurationException: ")
        assert several.refused(pair) in said


def test_a_row_refuses_no_strategy_that_does_not_exist() -> None:
    known = {"short", "accumulation", "iterable", *(strategy.name for strategy in several.SEVERAL)}
    assert all(set(row.refuses) <= known for row in ROWS)
