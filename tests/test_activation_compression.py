"""`ActivationCompression` in Lightning's loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics import MeanMetric

from lightning_lr import ActivationCompression, BatchSizeRamp, CheckpointedStrategy, CheckpointPolicy, StepRamp
from lightning_lr.cli.report.record import read_run
from tests.support.toy import ResumableLoader, Toy, data, fit, quiet, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Net(LightningModule):
    """With batch norm, dropout and a metric: everything that a probe could disturb."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(
                nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 32), nn.Tanh()
            )
            self.head = nn.Linear(32, 1)
        self.mean = MeanMetric()
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps += 1
        loss = nn.functional.mse_loss(self.head(self.body(x)), y)
        self.mean.update(loss)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.head(self.body(x)), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def samples() -> TensorDataset:
    return data(64, features=16)


def train(callback: ActivationCompression | None, **arguments: Any) -> tuple[Net, Trainer]:
    torch.manual_seed(11)
    arguments.setdefault("loader", DataLoader(samples(), batch_size=16))
    module = arguments.pop("module", None) or Net()
    extra = arguments.pop("callbacks", [])
    trained, trainer = fit([*([callback] if callback else []), *extra], module=module, **arguments)
    assert isinstance(trained, Net)
    return trained, trainer


def auto(**arguments: Any) -> ActivationCompression:
    return ActivationCompression("auto", group_size=32, probe_every=4, **arguments)


# ---------------------------------------------------------------------- off and around
class Noting(Net):
    """Keeps what it has done in everything that a module may keep things in, and goes by it."""

    counted = 0

    def __init__(self) -> None:
        super().__init__()
        Noting.counted = 0
        self.seen: list[int] = []
        self.by_epoch: dict[int, list[int]] = {}
        self.running = torch.zeros(())
        self.generator = torch.Generator().manual_seed(5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        Noting.counted += 1
        self.seen.append(batch_idx)
        self.by_epoch.setdefault(self.current_epoch, []).append(batch_idx)
        self.running.add_(1)
        noise = torch.rand((), generator=self.generator)
        return super().training_step(batch, batch_idx) * (1 + noise / (Noting.counted + len(self.seen) + self.running))


def test_probing_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # no tensor is as large as a group, so that nothing is rounded, but the extra training steps are made
    probes: list[int] = []
    probe = ActivationCompression._probe
    monkeypatch.setattr(ActivationCompression, "_probe", lambda self, *a: (probes.append(1), probe(self, *a)))
    bare, _ = train(None, module=Noting())
    probed, _ = train(ActivationCompression("auto", group_size=2**20, probe_every=2), module=Noting())
    assert len(probes) == 6
    assert (bare.steps, bare.seen, bare.by_epoch) == (probed.steps, probed.seen, probed.by_epoch)
    assert torch.equal(bare.running, probed.running)
    assert torch.equal(bare.generator.get_state(), probed.generator.get_state())
    assert torch.equal(weights(bare), weights(probed))
    for one, two in zip(bare.buffers(), probed.buffers(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(bare.mean.compute(), probed.mean.compute())
    assert int(bare.mean._update_count) == int(probed.mean._update_count)
    assert bare.trainer.logged_metrics == probed.trainer.logged_metrics


class WithoutDropout(Net):
    """Lightning draws a seed for each pass over a loader, which moves dropout's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body[3].p = 0.0


def test_validation_in_between_is_not_touched() -> None:
    validation = DataLoader(samples(), batch_size=32)
    passes = []
    for given in (validation, None):
        callback = ActivationCompression(4, group_size=32)
        trained, trainer = train(callback, module=WithoutDropout(), validation=given)
        passes.append((weights(trained), callback.state_dict()["compression"]["forwards"]))
        assert ("val_loss" in trainer.callback_metrics) == (given is not None)
    assert torch.equal(passes[0][0], passes[1][0])
    assert passes[0][1] == passes[1][1] == 12


def test_nothing_stays_behind_and_a_second_fit_starts_clean() -> None:
    callback = ActivationCompression(4, group_size=32)
    _, trainer = train(callback)
    assert "train_step_context" not in vars(trainer.precision_plugin)
    again, _ = train(None)
    fresh, _ = train(None)
    assert torch.equal(weights(again), weights(fresh))


class Failing(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.steps == 3:
            raise ZeroDivisionError
        return loss


def test_an_exception_in_the_step_leaves_nothing_behind() -> None:
    module = Failing()
    trainer = Trainer(**quiet(callbacks=[ActivationCompression(4, group_size=32)], max_epochs=1))
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, DataLoader(samples(), batch_size=16))
    assert "train_step_context" not in vars(trainer.precision_plugin)
    x = torch.randn(64, 64, requires_grad=True)
    y = (x * 1).tanh()
    assert y.grad_fn is not None
    assert torch.equal(y.grad_fn._saved_result, y)
    assert not torch.overrides._get_current_function_mode_stack()


# ---------------------------------------------------------------------- accumulation, resume
def test_accumulation_makes_new_noise_for_each_micro_batch() -> None:
    callback = ActivationCompression(4, group_size=32)
    train(callback, accumulate_grad_batches=2)
    assert callback.state_dict()["compression"]["forwards"] == 12


@pytest.mark.parametrize("make", [partial(ActivationCompression, 4, group_size=32), auto], ids=["fixed", "auto"])
def test_resume_at_every_update_is_bit_identical_under_accumulation(make: Any, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    common: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 3}

    whole, _ = train(
        make(),
        module=WithoutDropout(),
        loader=ResumableLoader(samples(), 16),
        callbacks=[save],
        enable_checkpointing=True,
        **common,
    )
    for update in range(1, 6):
        resumed, _ = train(
            make(),
            module=WithoutDropout(),
            loader=ResumableLoader(samples(), 16),
            ckpt_path=str(tmp_path / f"step={update}.ckpt"),
            **common,
        )
        assert torch.equal(weights(resumed), weights(whole)), update


def test_state_is_plain() -> None:
    callback = auto()
    train(callback)
    state = json.loads(json.dumps(callback.state_dict()["compression"]))
    assert state["allocation"]
    assert set(state["allocation"].values()) <= {8, 4, 2}


# ---------------------------------------------------------------------- the seed
def rounded_after(run_seed: int, **arguments: Any) -> Tensor:
    """Weights after a run of which nothing but the noise follows ``run_seed``."""
    seed_everything(run_seed, verbose=False)
    callback = ActivationCompression(4, group_size=32, **arguments)
    trained, _ = fit([callback], module=WithoutDropout(), loader=ResumableLoader(samples(), 16))
    assert isinstance(trained, Net)
    return weights(trained)


def test_noise_follows_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    one, two, again = (rounded_after(seed) for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert torch.equal(rounded_after(1, seed=5), rounded_after(2, seed=5))  # a seed of its own
    assert torch.equal(rounded_after(2, seed=1), one)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        trained, _ = fit(
            [ActivationCompression(4, group_size=32)],
            module=WithoutDropout(),
            loader=ResumableLoader(samples(), 16),
        )
        found.append(weights(trained))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], one)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("at", [3, 6])
def test_a_resume_goes_on_with_its_noise_whatever_the_seed_is_then(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    def run(seed: str, **more: Any) -> Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        trained, _ = fit(
            [ActivationCompression(4, group_size=32), *more.pop("callbacks", [])],
            module=WithoutDropout(),
            loader=ResumableLoader(samples(), 16),
            **more,
        )
        return weights(trained)

    whole = run("1", callbacks=[save], enable_checkpointing=True)
    assert torch.equal(run("2", ckpt_path=str(tmp_path / f"step={at}.ckpt")), whole)
    if at == 3:  # a checkpoint from before it held the seed: the default was 0
        old = torch.load(tmp_path / "step=3.ckpt", weights_only=False)
        (key,) = (key for key in old["callbacks"] if "ActivationCompression" in key)
        del old["callbacks"][key]["compression"]["seed"]
        torch.save(old, tmp_path / "old.ckpt")
        found = run("2", ckpt_path=str(tmp_path / "old.ckpt"))
        old["callbacks"][key]["compression"]["seed"] = 0
        torch.save(old, tmp_path / "zero.ckpt")
        assert torch.equal(found, run("3", ckpt_path=str(tmp_path / "zero.ckpt")))


# ---------------------------------------------------------------------- with checkpointing
class Deep(Net):
    """Blocks that a checkpoint policy finds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            blocks = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()) for _ in range(4)]
        self.blocks = nn.ModuleList(blocks)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        hidden = self.body(x)
        for block in self.blocks:
            hidden = block(hidden)
        return nn.functional.mse_loss(self.head(hidden), y)


def test_inputs_of_checkpointed_segments_get_eight_bits_and_the_rest_is_not_seen() -> None:
    found = {}
    for name, strategy in (("plain", "auto"), ("checkpointed", CheckpointedStrategy(CheckpointPolicy("every_block")))):
        callback = ActivationCompression(2, group_size=32)
        tallies: list[Any] = []

        class Look(Callback):
            def on_before_backward(self, *args: Any) -> None:
                tallies.append(callback.tally)  # noqa: B023

        trained, _ = train(callback, module=Deep(), strategy=strategy, callbacks=[Look()])
        assert torch.isfinite(weights(trained)).all()
        found[name] = tallies[-1].rounded
    hidden = 16 * 32
    assert set(found["plain"]) == {2}
    assert found["checkpointed"][8] >= 3 * hidden  # a block's input each; the last block may not be checkpointed
    assert found["checkpointed"][8] % hidden == 0
    assert found["checkpointed"][2] < found["plain"][2]


class Residual(Net):
    """Blocks of which the cut differs by what is saved outside of them, which the compression's hooks take first."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.stem = nn.Linear(16, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()) for _ in range(4))
            self.last = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps += 1
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return nn.functional.mse_loss(self.last(hidden), y)


@pytest.mark.parametrize("bits", [8, "auto"])
def test_a_run_under_checkpointing_is_resumed_by_the_same_plan_to_the_bit(bits: Any, tmp_path: Path) -> None:
    plans: list[Any] = []

    class Look(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            plans.append(trainer.strategy.checkpointing.plan.parts)  # type: ignore[attr-defined]

    def run(**arguments: Any) -> Net:
        trained, _ = train(
            ActivationCompression(bits, group_size=16),
            module=Residual(),
            strategy="checkpointed",
            callbacks=[Look(), *arguments.pop("more", [])],
            **arguments,
        )
        return trained

    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = run(more=[save], enable_checkpointing=True)
    assert whole.steps == 12, "and the step that was watched is not counted"
    for epoch in (0, 1):
        resumed = run(ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"))
        assert torch.equal(weights(resumed), weights(whole)), epoch
    assert plans[0] == plans[1] == plans[2]


# ---------------------------------------------------------------------- decisions
def test_auto_probes_when_due_and_writes_it_down(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    train(auto(average_bits=4.0), logger=logger, log_every_n_steps=1)
    folder = Path(logger.log_dir)
    lines = [json.loads(line) for line in (folder / "lightning_lr" / "compression.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start"
    assert "1/6.40 of fp32, 1/3.20 of bf16" in lines[0]["facts"]["activations"]
    allocations = [line for line in lines if line["event"] == "allocation"]
    assert [line["update"] for line in allocations] == [0, 4, 8]
    for line in allocations:
        sizes = {name: facts["numbers"] for name, facts in line["measured"].items()}
        assert sum(line["bits"][name] * size for name, size in sizes.items()) <= 4 * sum(sizes.values())
    metrics = (folder / "metrics.csv").read_text()
    assert "compression/bits" in metrics
    assert "compression/ratio" in metrics


def test_a_fixed_width_never_probes() -> None:
    module, _ = train(ActivationCompression(4, group_size=32, probe_every=1))
    assert module.steps == 12


def test_saved_bytes_are_written_down_by_codec_and_module_after_each_allocation(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    train(auto(average_bits=4.0, skip=["head"]), logger=logger, log_every_n_steps=1)
    lines = (Path(logger.log_dir) / "lightning_lr" / "compression.jsonl").read_text().splitlines()
    saved = [line for line in map(json.loads, lines) if line["event"] == "saved"]
    assert [line["update"] for line in saved] == [0, 4, 8]
    for line in saved:
        for part in (line["codecs"], line["modules"]):
            assert [sum(sizes) for sizes in zip(*part.values(), strict=True)] == [
                line["plain_bytes"],
                line["held_bytes"],
            ]
        assert line["modules"]["body.4"] == [16 * 32 * 4, 16 * (32 * 4 // 8 + 4)]  # its input, a group of 32 a sample
        raw, held = line["modules"]["training_step"]
        assert raw == held  # the loss
    facts = read_run(Path(logger.log_dir)).summary
    assert f"{saved[-1]['held_bytes']:,} bytes in place of {saved[-1]['plain_bytes']:,}" in facts["saved activations"]
    assert "4 on average" in facts["activations"]


# ---------------------------------------------------------------------- beside a batch that grows
class Roomy(Net):
    """Runs out of memory where the forward saves more than ``room`` bytes that are not rounded."""

    room = 3_000
    tried: ClassVar[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        saved = []

        def seen(module: Any, inputs: Any, output: Tensor) -> None:
            with torch.no_grad():
                kept = output.grad_fn._saved_result  # what the backward will read: tanh's result, rounded or not
            saved.append(kept.nbytes if torch.equal(kept, output) else 0)

        hook = self.body[5].register_forward_hook(seen)
        loss = super().training_step(batch, batch_idx)
        hook.remove()
        if not torch.is_grad_enabled() or not self.training:
            return loss
        self.tried.append(len(batch[0]))
        if saved[0] > self.room:
            raise torch.OutOfMemoryError("of any device")
        return loss


@pytest.mark.parametrize(("skip", "tried"), [((), [64, 64]), (("body.5",), [64, 32, 16, 16])])
def test_the_largest_micro_batch_is_tried_under_compression(skip: Sequence[str], tried: list[int]) -> None:
    def ramped(largest: Any) -> tuple[Net, Any]:
        Roomy.tried.clear()
        compression = ActivationCompression(4, group_size=32, skip=skip)
        ramp = BatchSizeRamp(StepRamp([1, 2], factor=2.0), max_batch_size=64, max_micro_batch_size=largest)
        module, _ = train(compression, module=Roomy(), callbacks=[ramp])
        return module, compression

    found, compression = ramped("auto")
    assert Roomy.tried[: len(tried)] == tried
    assert max(Roomy.tried[len(tried) :]) == tried[-1]
    given, other = ramped(tried[-1])
    assert torch.equal(weights(found), weights(given)), "trying leaves no trace, in the noise of rounding neither"
    assert compression.state_dict()["compression"] == other.state_dict()["compression"]


# ---------------------------------------------------------------------- two processes
def _two_ranks() -> dict[str, Any]:
    callback = auto()
    loader = DataLoader(samples(), batch_size=8, sampler=DistributedSampler(samples(), shuffle=False))
    module, trainer = train(callback, loader=loader, **ddp())
    state = callback.state_dict()["compression"]
    same = torch.linspace(-1, 1, 4096).view(64, 64).requires_grad_()
    compressor = callback.settings.compressor(nn.Identity(), trainer.global_rank)
    with compressor.compressing():
        y = (same * 1).square().sum()
    (drawn,) = torch.autograd.grad(y, same)
    return {"weights": weights(module), "allocation": state["allocation"], "noise": drawn}


def test_ranks_take_the_same_decisions_and_draw_different_noise(tmp_path: Path) -> None:
    first, second = (rank["run"] for rank in run_in_two_processes([("run", _two_ranks)], tmp_path))
    for result in (first, second):
        if isinstance(result, Exception):
            raise result
    assert first["allocation"]
    assert first["allocation"] == second["allocation"]
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["noise"], second["noise"])
    assert float((first["noise"] - second["noise"]).abs().max()) < 0.5


# ---------------------------------------------------------------------- refusals
class CompiledPart(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(self.body)  # type: ignore[assignment]


class CompiledInPlace(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.head.compile()


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (CompiledPart, r"body is compiled \(torch.compile\)"),
        (CompiledInPlace, "head is compiled"),
        (lambda: torch.compile(Toy()), "the module is compiled"),
    ],
)
def test_what_cannot_work_is_refused_before_training(module: Any, says: str) -> None:
    trainer = Trainer(**quiet(callbacks=[ActivationCompression()], max_epochs=1))
    with pytest.raises(MisconfigurationException, match=says):
        trainer.fit(module(), DataLoader(data(), batch_size=8))
    assert trainer.global_step == 0


class Fetches(Toy):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


def test_auto_needs_the_batch() -> None:
    with pytest.raises(MisconfigurationException, match="takes the iterator"):
        fit([ActivationCompression("auto")], module=Fetches())


def test_a_module_to_skip_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"skip has 'trunk', but Toy has no such module; it has body, head"
    ):
        fit([ActivationCompression(skip=["trunk"])])


def test_wrong_bits_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match='got bits=16; give 8, 4, 2 or "auto"'):
        ActivationCompression(16)


def test_double_backward_in_a_training_step_is_refused() -> None:
    class Penalty(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, _ = batch
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.head(self.body(x)).sum(), x, create_graph=True)
            return slope.square().mean()

    with pytest.raises(RuntimeError, match="create_graph=True went through compressed activations"):
        train(ActivationCompression(4, group_size=32), module=Penalty())
