"""What every method has to pass: off is bare, resume is exact, two processes equal one, and the rest of the list."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ddp import ddp, run_in_two_processes
from gauntlet import BATCH, ROWS, At, Row
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, DistributedSampler
from toy import Probe, ResumableLoader, Stream, Toy, data, fit, two_groups, weights

import lightning_lr

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
    if row.strategy is not None and callbacks:
        arguments.setdefault("strategy", row.strategy())
    trained, _ = fit([*callbacks, probe], module=module, **arguments)
    assert isinstance(trained, Toy)
    return trained, probe


def strategy_of(row: Row) -> dict[str, Any]:
    return {} if row.strategy is None else {"strategy": row.strategy()}


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
DDP_SAMPLES = 50


def _ddp_case(index: int) -> tuple[torch.Tensor, list[Any], bool]:
    row = ROWS[index]
    # Lightning would inject a sampler that shuffles; this one deals 0, 2, 4.. and 1, 3, 5.., so that the global batches
    # are those of one process
    sampler = DistributedSampler(data(DDP_SAMPLES), shuffle=False)
    loader = DataLoader(data(DDP_SAMPLES), batch_size=BATCH // 2, sampler=sampler)
    trained, probe = train(row, row.make(), loader=loader, max_epochs=3, **ddp(make=row.strategy))
    wrapped = "lr_scheduler_step" in vars(trained)
    return weights(trained), probe.series, wrapped


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = [(row.name, partial(_ddp_case, index)) for index, row in enumerate(ROWS)]
    return run_in_two_processes(cases, tmp_path_factory.mktemp("ddp"))


@rows
def test_two_processes_equal_one_with_the_same_global_batch(row: Row, two_processes: list[dict[str, Any]]) -> None:
    one, probe = train(row, row.make(), loader=DataLoader(data(DDP_SAMPLES), batch_size=BATCH), max_epochs=3)
    for rank in two_processes:
        if isinstance(rank[row.name], Exception):
            raise rank[row.name]
        two, series, wrapped = rank[row.name]
        assert not wrapped
        assert len(series) == 21
        assert same(row, series, probe.series)
        assert series == two_processes[0][row.name][1], "the ranks agree to the bit"
        if row.noisy:
            assert torch.equal(two, two_processes[0][row.name][0])
            assert (two - weights(one)).abs().max() < row.noisy
            continue
        # means over two ranks are summed in another order; fp32 rounding over 21 updates
        assert (two - weights(one)).abs().max() < 1e-6
