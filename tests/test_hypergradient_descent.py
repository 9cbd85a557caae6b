"""`HypergradientDescent` in Lightning's loop: which gradients it reads, when it acts, and what must not break it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lightning_lr import Cosine, HypergradientDescent, LearningRateSchedule, NormalizedWeightDecay
from lightning_lr.callbacks import hypergradient_follower
from lightning_lr.cli.report.record import read_run
from tests.support.rounding import rounding_after
from tests.support.toy import Probe, ResumableLoader, Toy, data, fit, two_groups, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RULES = ["additive", "multiplicative", "normalized"]
BATCH, UPDATES = 8, 18


def sgd(module: LightningModule) -> Optimizer:
    return SGD(module.parameters(), lr=0.01)


class Overflows(Toy):
    """The loss of some updates is not a number."""

    def __init__(self, configure: Any, updates: set[int]) -> None:
        super().__init__(configure)
        self.updates = updates

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.trainer.global_step in self.updates else loss


# ---------------------------------------------------------------------- which gradients, and when
class ClipsItself(Toy):
    calls = 0

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)


@pytest.mark.parametrize("own", [False, True])
def test_the_clipped_gradient_moves_the_learning_rate_of_its_own_update(own: bool) -> None:
    module = ClipsItself(sgd) if own else Toy(sgd)
    probe = Probe()
    fit(
        [HypergradientDescent(10.0, "additive", bounds=(1e-6, 1e6)), probe],
        module=module,
        **({} if own else {"gradient_clip_val": 0.05}),
    )

    replay, lr, last, expected = Toy(), 0.01, None, []
    for update in range(UPDATES):
        start = (update * BATCH) % 48
        x, y = data()[start : start + BATCH]
        replay.zero_grad()
        nn.functional.mse_loss(replay(x), y).backward()
        torch.nn.utils.clip_grad_norm_(replay.parameters(), 0.05)
        gradient = torch.cat([p.grad.double().flatten() for p in replay.parameters()])  # type: ignore[union-attr]
        if last is not None:
            lr += 10.0 * float(gradient @ last)
        last = gradient
        expected.append(lr)
        for p in replay.parameters():
            p.data.sub_(p.grad, alpha=lr)  # type: ignore[arg-type]
    assert probe.first == pytest.approx(expected, rel=2 * rounding_after(UPDATES))  # fp32, fed back
    assert max(expected) > 2 * min(expected)
    if own:
        assert module.calls == UPDATES
    assert "configure_gradient_clipping" not in vars(module), "the module is as it was"


def test_learning_rate_is_logged_as_it_was_used(tmp_path: Path) -> None:
    probe = Probe()
    logger = CSVLogger(tmp_path, name="run", version="")
    fit([HypergradientDescent(rule="normalized"), probe], module=Toy(two_groups), logger=logger, log_every_n_steps=1)
    record = read_run(tmp_path / "run")
    for index, name in enumerate(("body", "head")):
        assert record.metrics[f"lr/{name}"].values == [row[index] for row in probe.series]
        scheduled = (0.02, 0.1)[index]
        factors = record.metrics[f"hypergradient/factor/{name}"].values
        assert factors == pytest.approx([row[index] / scheduled for row in probe.series])
        assert all(-1 <= cosine <= 1 for cosine in record.metrics[f"hypergradient/cosine/{name}"].values)
    start, *events = record.journals["hypergradient"]
    assert "normalized rule, hyper_lr 0.5, one factor per group" in start["facts"]["hypergradient"]
    assert events
    assert set(events[0]["factor"]) == {"body", "head"}


def test_one_factor_for_all_groups_keeps_their_ratio() -> None:
    probe = Probe()
    fit([HypergradientDescent(rule="normalized", scope="global"), probe], module=Toy(two_groups))
    assert all(head == pytest.approx(5 * body, rel=1e-12) for body, head in probe.series)
    assert probe.series[-1][0] != 0.02


def test_a_chainable_scheduler_sees_what_it_would_without_us() -> None:
    def scheduled(module: LightningModule) -> Any:
        optimizer = sgd(module)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    probe, callback = Probe(), HypergradientDescent(rule="multiplicative")
    fit([callback, probe], module=Toy(scheduled))
    factors = [lr / (0.01 * 0.9**update) for update, lr in enumerate(probe.first)]
    assert factors[0] == pytest.approx(1.0)
    ratios = [b / a for a, b in itertools.pairwise(factors)]
    assert all(0.95 - 1e-9 <= ratio <= 1.05 + 1e-9 for ratio in ratios)
    assert any(abs(ratio - 1) > 1e-3 for ratio in ratios)


@pytest.mark.parametrize("name", ["momentum", "adam", "sgd"])
def test_update_that_an_amp_scaler_skips_teaches_nothing(name: str) -> None:
    make: Any = {"momentum": None, "adam": lambda m: Adam(m.parameters(), lr=0.01), "sgd": sgd}[name]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=1000)
    seen: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            (group,) = trainer.optimizers[0].param_groups
            seen.append((scaler.get_scale(), group["lr"]))

    module, _ = fit(
        [HypergradientDescent(rule="normalized"), Watch()],
        module=Toy(make),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    scales, lrs = [2.0**26, *(scale for scale, _ in seen)], [seen[0][1], *(lr for _, lr in seen)]
    skipped = [update for update in range(UPDATES) if scales[update + 1] < scales[update]]
    made = [update for update in range(UPDATES) if update not in skipped]
    assert len(skipped) > 2, "the scale was too large at first"
    assert all(lrs[update + 1] == lrs[update] for update in [*skipped, made[0]])
    assert all(lrs[update + 1] != lrs[update] for update in made[1:])
    assert torch.isfinite(weights(module)).all()


# ---------------------------------------------------------------------- resume, beyond the gauntlet's rows
@pytest.mark.parametrize(
    "make",
    [
        lambda m: RMSprop(m.parameters(), lr=0.01),
        lambda m: SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda m: AdamW(m.parameters(), lr=0.01),
    ],
    ids=["rmsprop", "nesterov", "adamw"],
)
@pytest.mark.parametrize("rule", ["additive", "normalized"])
def test_resume_goes_on_to_the_bit_with_and_without_a_copy(make: Any, rule: Any, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    probe = Probe()
    whole, _ = fit(
        [HypergradientDescent(rule=rule), probe, save],
        module=Toy(make),
        loader=ResumableLoader(data(50), BATCH),
        enable_checkpointing=True,
    )
    for update in (1, 2, 8, 20):
        path = tmp_path / f"step={update}.ckpt"
        torch.load(path, weights_only=True)  # plain types and tensors
        again = Probe()
        resumed, _ = fit(
            [HypergradientDescent(rule=rule), again],
            module=Toy(make),
            loader=ResumableLoader(data(50), BATCH),
            ckpt_path=str(path),
        )
        assert again.series == probe.series[update:]
        assert torch.equal(weights(resumed), weights(whole))


def test_checkpoint_of_a_run_without_us_starts_with_factor_one(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    fit([save], module=Toy(), loader=ResumableLoader(data(50), BATCH), enable_checkpointing=True)
    probe = Probe()
    fit(
        [HypergradientDescent(rule="normalized"), probe],
        loader=ResumableLoader(data(50), BATCH),
        ckpt_path=str(tmp_path / "step=6.ckpt"),
    )
    assert probe.first[0] == 0.05
    assert probe.first[1] != 0.05


def test_second_fit_of_the_same_callback_begins_anew() -> None:
    callback, first, second = HypergradientDescent(rule="normalized"), Probe(), Probe()
    fit([callback, first], module=Toy(sgd))
    fit([callback, second], module=Toy(sgd))
    assert first.series == second.series


# ---------------------------------------------------------------------- stress
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [sgd, None, lambda m: Adam(m.parameters(), lr=0.01)], ids=["sgd", "momentum", "adam"])
def test_hyper_lr_a_thousand_times_too_large_leaves_finite_weights_or_says_so(rule: Any, make: Any) -> None:
    rate = 1e3 * {"additive": 1e-3, "multiplicative": 0.05, "normalized": 0.5}[rule]
    probe, module = Probe(), Toy(make)
    complaint = None
    try:
        fit([HypergradientDescent(rate, rule=rule), probe], module=module, max_epochs=10)
    except RuntimeError as error:
        complaint = str(error)
    assert "not finite 10 times in a row" in complaint if complaint else torch.isfinite(weights(module)).all()
    assert all(lr > 0 for lr in probe.first)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [sgd, None, lambda m: Adam(m.parameters(), lr=0.01)], ids=["sgd", "momentum", "adam"])
def test_gradient_that_is_not_a_number_is_left_out(rule: Any, make: Any, tmp_path: Path) -> None:
    probe, module = Probe(), Overflows(make, {3, 4, 11})
    with pytest.warns(UserWarning, match="the gradient of update 4 is not finite; it is left out"):
        fit([HypergradientDescent(rule=rule), probe], module=module, logger=CSVLogger(tmp_path, name="run", version=""))
    assert torch.isfinite(weights(module)).all()
    assert probe.first[3] == probe.first[2], "nothing was learned"
    assert all(math.isfinite(lr) and lr > 0 for lr in probe.first)
    lines = [json.loads(line) for line in (tmp_path / "run/lightning_lr/hypergradient.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["event"] == "not finite"] == [3, 11]


def test_ten_gradients_in_a_row_that_are_not_finite_end_the_training() -> None:
    with pytest.raises(
        RuntimeError, match=r"not finite 10 times in a row, up to update 12: .* Lower hyper_lr \(it is 0.5\)"
    ):
        fit([HypergradientDescent(rule="normalized")], module=Overflows(None, set(range(2, 18))))


@pytest.mark.parametrize("rule", RULES)
def test_learning_rate_of_zero_stays_zero_and_comes_back(rule: Any) -> None:
    def scheduled(module: LightningModule) -> Any:
        optimizer = SGD(module.parameters(), lr=0.01, momentum=0.9)
        scheduler = LambdaLR(optimizer, lambda update: 0.0 if update < 3 or 8 <= update < 12 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    probe = Probe()
    module, _ = fit([HypergradientDescent(rule=rule), probe], module=Toy(scheduled))
    zero = [update for update, lr in enumerate(probe.first) if lr == 0.0]
    assert zero == [0, 1, 2, 8, 9, 10, 11]
    assert probe.first[3] == 0.01, "nothing was learned from updates that moved nothing"
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("rule", RULES)
def test_group_without_gradients_keeps_its_factor(rule: Any, scope: Any) -> None:
    class Unused(Toy):
        def __init__(self) -> None:
            super().__init__(self.groups)
            self.spare = nn.Linear(2, 2)

        @staticmethod
        def groups(module: Any) -> Optimizer:
            used = [*module.body.parameters(), *module.head.parameters()]
            return Adam([{"params": used}, {"params": module.spare.parameters()}], lr=0.01)

    probe = Probe()
    module, _ = fit([HypergradientDescent(rule=rule, scope=scope), probe], module=Unused())
    assert torch.isfinite(weights(module)).all()
    used, spare = zip(*probe.series, strict=True)
    assert len(set(used)) > 5
    assert set(spare) == {0.01} if scope == "group" else spare == used


def test_sparse_embedding_is_refused_before_training() -> None:
    class Sparse(Toy):
        def __init__(self) -> None:
            super().__init__(sgd)
            self.table = nn.Embedding(4, 2, sparse=True)

    with pytest.raises(MisconfigurationException, match="table is an embedding with sparse gradients"):
        fit([HypergradientDescent()], module=Sparse())


def test_lbfgs_is_refused_before_training() -> None:
    with pytest.raises(MisconfigurationException, match="LBFGS makes several steps in one"):
        fit([HypergradientDescent()], module=Toy(lambda module: LBFGS(module.parameters(), lr=0.1)))


def test_tensor_learning_rates_are_written_in_place() -> None:
    plain, _ = fit([HypergradientDescent(rule="normalized")], module=Toy(sgd))
    rate = torch.tensor(0.01)
    held, _ = fit([HypergradientDescent(rule="normalized")], module=Toy(lambda m: SGD(m.parameters(), lr=rate)))
    assert (weights(held) - weights(plain)).abs().max() < rounding_after(UPDATES), "a learning rate in fp32"


def test_plan_says_how_far_the_factor_can_go() -> None:
    callback = HypergradientDescent(rule="additive")
    notes = callback.plan_notes(None, Adam([nn.Parameter(torch.ones(1))], lr=1e-6))  # type: ignore[arg-type]
    assert "can make them 0.001 to 1000 times as large" in notes[0]
    assert "well-tuned Adam may become worse" in notes[1]


def test_the_host_waits_once_per_update() -> None:
    reads: list[int] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads.append(function is torch.ops.aten._local_scalar_dense.default)
            return function(*args, **(kwargs or {}))

    from lightning_lr.hypergradient import AlignmentEstimator

    module = Toy()
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
    estimator = AlignmentEstimator(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(data().tensors[0]), data().tensors[1]).backward()
        with Count():
            estimator.sums()
        estimator.before_step([0.1])
        optimizer.step()
    assert len(reads) > 0
    assert not any(reads), "sums stay on the device; reading them is the one time"


@pytest.mark.parametrize("lr", [1e-7, 1e-3])
def test_a_factor_that_stays_at_its_bound_is_warned_of_once(
    lr: float, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(hypergradient_follower, "BOUND_LIMIT", 3)
    bounds = (1e-3, 2.0) if lr == 1e-7 else (1e-3, 1e6)
    fit(
        [HypergradientDescent(rule="normalized", bounds=bounds)],
        module=Toy(lambda module: SGD(module.parameters(), lr=lr)),
    )
    told = [str(w.message) for w in recwarn if "has been at its bound of 2 for 3 updates" in str(w.message)]
    assert len(told) == (1 if lr == 1e-7 else 0)
    assert all("bounds=(0.001, 2000.0)" in message and "2e-07" in message for message in told)


# ---------------------------------------------------------------------- settings that change between updates
def _one_cycle(make: Any) -> Any:
    def configure(module: LightningModule) -> Any:
        optimizer = make(module.parameters())
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.05, total_steps=UPDATES), "interval": "step"}]

    return configure


class Moves(Callback):
    """|d|^2 of each update, from the parameters before and after it."""

    def __init__(self) -> None:
        self.squares: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda *_: setattr(self, "before", weights(pl_module)))
        optimizer.register_step_post_hook(
            lambda *_: self.squares.append(
                float(((self.before - weights(pl_module)) / float(optimizer.param_groups[0]["lr"])).square().sum())  # type: ignore[attr-defined]
            )
        )


@pytest.mark.parametrize(
    ("configure", "others"),
    [
        (_one_cycle(lambda p: Adam(p, 0.05)), []),
        (_one_cycle(lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True)), []),
        (
            lambda module: AdamW(module.parameters(), 0.05, weight_decay=0.1),
            [NormalizedWeightDecay(0.5), LearningRateSchedule(Cosine())],  # the decay follows the factor
        ),
    ],
    ids=["OneCycleLR, Adam", "OneCycleLR, Nesterov", "NormalizedWeightDecay"],
)
def test_the_measured_direction_is_the_step_that_was_made(
    configure: Any, others: list[Callback], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []
    read = hypergradient_follower.read

    def spy(sums: Tensor, values: Any) -> Any:
        measured.append(float(sums[0, 2]))
        return read(sums, values)

    monkeypatch.setattr(hypergradient_follower, "read", spy)
    moves = Moves()
    fit([HypergradientDescent(rule="normalized"), *others, moves], module=Toy(configure).double(),
        loader=torch.utils.data.DataLoader(data(dtype=torch.float64), batch_size=BATCH))  # fmt: skip
    assert len(measured) == UPDATES
    assert measured[1:] == pytest.approx(moves.squares[:-1], rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a_second_fit_goes_on_learning(rule: Any) -> None:
    def momentum(module: LightningModule) -> Optimizer:
        return SGD(module.parameters(), lr=0.01, momentum=0.9)

    probe = Probe()
    module = Toy(momentum)
    loader = torch.utils.data.DataLoader(data(), batch_size=BATCH)
    _, trainer = fit([HypergradientDescent(rule=rule), probe], module=module, loader=loader)
    assert trainer.fit_loop.max_epochs is not None
    trainer.fit_loop.max_epochs *= 2
    trainer.fit(module, loader)
    second = probe.first[UPDATES:]
    assert len(second) == UPDATES
    assert second[0] == probe.first[UPDATES - 1], "its optimizer is new, so one update is not measured"
    assert len(set(second)) >= UPDATES - 1, "and all others are"


def test_nothing_is_left_in_the_state_of_an_optimizer_that_has_none() -> None:
    _, bare = fit([], module=Toy(sgd))
    _, ours = fit([HypergradientDescent(hyper_lr=0.0)], module=Toy(sgd))
    assert ours.optimizers[0].state_dict()["state"] == bare.optimizers[0].state_dict()["state"] == {}
