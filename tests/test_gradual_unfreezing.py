"""Gradual unfreezing: what is frozen does not move by a bit, what is unfrozen trains as if it had been done by hand."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import (
    Constant,
    GradualUnfreezing,
    LayerwiseLRDecay,
    LearningRateSchedule,
    LearningRateSearch,
    SlantedTriangle,
)
from lightning_lr.curves import Phase
from lightning_lr.layers import FrozenLayers, UnfreezingOrder
from lightning_lr.progress import EpochShape, RunShape
from tests.support.rounding import rounding_after
from tests.support.toy import Configure, Probe, Stream, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SLICES = ["stem", r"blocks\.(\d+)", "head"]


class Deep(Toy):
    """Stem, two blocks with batch norm, head."""

    def __init__(self, configure: Configure | None = None) -> None:
        super().__init__(configure)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.stem = nn.Linear(6, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()) for _ in range(2))
        del self.body

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


class NoNorm(Deep):
    """The same without batch norm, so that two devices are one."""

    def __init__(self, configure: Configure | None = None) -> None:
        super().__init__(configure)
        for block in self.blocks:
            block[1] = nn.Identity()


PARTS = ("head", "blocks.1", "blocks.0", "stem")
"""From the top."""


def sgd(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def state_of(module: nn.Module, part: str) -> Tensor:
    """Parameters and buffers of a part."""
    return torch.cat([t.detach().double().flatten() for t in module.get_submodule(part).state_dict().values()])


class Watch(Callback):
    """State of every part after every update, and whether its parameters required a gradient."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []
        self.required: list[list[str]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.rows.append({part: state_of(pl_module, part) for part in PARTS})
        self.required.append(
            [part for part in PARTS if all(p.requires_grad for p in pl_module.get_submodule(part).parameters())]
        )


def gentle(**arguments: Any) -> GradualUnfreezing:
    return GradualUnfreezing(**{"layers": SLICES, **arguments})


# ---------------------------------------------------------------------- what is frozen when
@pytest.mark.parametrize("configure", [sgd, adamw])
@pytest.mark.parametrize("epochs_per_layer", [1, 2])
def test_frozen_layers_do_not_move_by_a_bit_until_their_turn(configure: Configure, epochs_per_layer: int) -> None:
    module, watch = Deep(configure), Watch()
    start = {part: state_of(module, part) for part in PARTS}
    fit([gentle(epochs_per_layer=epochs_per_layer), watch], module=module, max_epochs=5 * epochs_per_layer)
    for update, row in enumerate(watch.rows):
        epoch = update // 6
        for place, part in enumerate(PARTS):
            still = torch.equal(row[part], start[part])
            assert still == (epoch < place * epochs_per_layer), (update, part)
        trained = min(4, 1 + epoch // epochs_per_layer)
        assert watch.required[update] == list(PARTS[:trained]), "no gradient is computed for what is frozen"


class GivesGradients(Deep):
    """Gives every parameter a gradient, in a hook that comes after the callbacks': gradient noise, a penalty."""

    def __init__(self, hook: str) -> None:
        super().__init__(adamw)
        self.hook = hook

    def give(self, hook: str) -> None:
        for p in self.parameters() if hook == self.hook else ():
            p.grad = torch.full_like(p, 1e-2) if p.grad is None else p.grad + 1e-2

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.give("on_before_optimizer_step")

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.give("configure_gradient_clipping")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        def closure() -> Any:
            loss = optimizer_closure()
            self.give("optimizer_step")
            return loss

        optimizer.step(closure=closure)


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step"])
def test_a_gradient_that_a_hook_gives_to_a_frozen_layer_does_not_move_it(hook: str) -> None:
    module, watch = GivesGradients(hook), Watch()
    start = {part: state_of(module, part) for part in PARTS}
    fit([gentle(), watch], module=module, max_epochs=4)
    for update, row in enumerate(watch.rows):
        moved = [part for part in PARTS if not torch.equal(row[part], start[part])]
        assert moved == list(PARTS[: 1 + update // 6]), update


@pytest.mark.parametrize("configure", [sgd, adamw])
def test_weights_are_those_of_unfreezing_by_hand(configure: Configure) -> None:
    by_us, _ = fit([gentle()], module=Deep(configure), max_epochs=6)
    by_hand = Deep()
    optimizer = configure(by_hand)
    parts = [by_hand.get_submodule(part) for part in PARTS]
    for epoch in range(6):
        for place, part in enumerate(parts):
            part.requires_grad_(place <= epoch).train(place <= epoch)
        for x, y in DataLoader(data(), batch_size=8):
            optimizer.zero_grad()
            nn.functional.mse_loss(by_hand(x), y).backward()
            optimizer.step()
    assert torch.equal(weights(by_us), weights(by_hand))


def test_layers_are_found_without_patterns() -> None:
    module, watch = Deep(), Watch()
    fit([GradualUnfreezing(), watch], module=module, max_epochs=4)
    assert watch.required[::6] == [list(PARTS[:n]) for n in (1, 2, 3, 4)]


def test_towers_begin_together_and_what_the_user_froze_has_no_turn() -> None:
    model = nn.Module()
    model.text = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))})
    model.vision = nn.ModuleDict({"layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))})
    model.head = nn.Linear(2, 2)
    model.head.requires_grad_(False)
    model.text["layers"][1][0].bias.requires_grad_(False)
    order = UnfreezingOrder(model)
    assert [thaw.layers for thaw in order.thaws] == [
        ("text.layers.2", "vision.layers.1"),
        ("text.layers.1", "vision.layers.0"),
        ("text.layers.0",),
    ]
    assert order.thaws[1].parameters == (
        "text.layers.1.0.weight",
        "vision.layers.0.0.weight",
        "vision.layers.0.0.bias",
    )


# ---------------------------------------------------------------------- batch norm
@pytest.mark.parametrize("train_batch_norm", [False, True])
def test_batch_norm_of_frozen_layers_is_still_or_trains_as_asked(train_batch_norm: bool) -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.rows: list[tuple[Tensor, Tensor, bool]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            norm = pl_module.blocks[0][1]
            self.rows.append((norm.running_mean.clone(), norm.weight.detach().clone(), norm.training))

    norms, module = Norms(), Deep(sgd)
    validation = DataLoader(data(16), batch_size=8)  # after each epoch, Lightning puts the module into train mode
    fit([gentle(train_batch_norm=train_batch_norm), norms], module=module, validation=validation, max_epochs=4)
    for update, (mean, weight, training) in enumerate(norms.rows):
        frozen = update < 2 * 6 and not train_batch_norm
        assert training != frozen
        assert torch.equal(mean, torch.zeros(8)) == frozen
        assert torch.equal(weight, torch.ones(8)) == frozen
    assert module.blocks[0][1].training


def test_batch_norm_that_the_user_put_into_evaluation_mode_stays_so() -> None:
    module = Deep()
    module.blocks[0][1].eval()
    fit([gentle()], module=module, max_epochs=5)
    assert not module.blocks[0][1].training
    assert torch.equal(module.blocks[0][1].running_mean, torch.zeros(8))


def test_batch_norm_that_the_user_stops_later_stays_so() -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 4:
                pl_module.blocks[0][1].eval()

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert pl_module.blocks[0][1].training == (trainer.current_epoch in (2, 3))

    fit([gentle(), Stop()], module=Deep(), max_epochs=6)


# ---------------------------------------------------------------------- beside others
def test_ulmfit_recipe_is_decay_times_triangle_with_frozen_layers() -> None:
    probe, watch, module = Probe("lr", "name"), Watch(), Deep(sgd)
    start = {part: state_of(module, part) for part in PARTS}
    callbacks = [LayerwiseLRDecay(1 / 2.6), LearningRateSchedule(SlantedTriangle()), gentle()]
    fit([*callbacks, probe, watch], module=module, max_epochs=5)
    # Howard & Ruder 2018: eta_t = eta_max (1 + p (ratio - 1)) / ratio, with T = 30 and cut = floor(0.1 T) = 3 (eq. 3)
    for t, groups in enumerate(probe.series):
        p = t / 3 if t < 3 else 1 - (t - 3) / (3 * (1 / 0.1 - 1))
        rates = {round(lr, 12) for lr, _ in groups}
        eta = 0.05 * (1 + p * 31) / 32
        assert rates == {round(eta / 2.6**distance, 12) for distance in range(4)}
        for place, part in enumerate(PARTS):
            assert torch.equal(watch.rows[t][part], start[part]) == (t // 6 < place)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 0.9**t]),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.1], total_steps=24),
    ],
)
def test_schedulers_with_a_value_per_group_go_on_since_no_group_is_added(scheduler: Any) -> None:
    # BaseFinetuning adds groups, with which these schedulers end in an error
    def configure(module: LightningModule) -> Any:
        optimizer = sgd(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}

    bare, with_us = Probe(), Probe()
    fit([bare], module=Deep(configure), max_epochs=4)
    fit([gentle(), with_us], module=Deep(configure), max_epochs=4)
    assert with_us.series == bare.series
    assert len(with_us.series[0]) == 1


# ---------------------------------------------------------------------- coming and going
@pytest.mark.parametrize("fails", [False, True])
def test_module_is_given_back_as_it_was(fails: bool) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3 and fails:
                raise RuntimeError("out of luck")

    module = Deep()
    module.stem.requires_grad_(False)
    module.blocks[0][0].bias.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    try:
        fit([gentle(), Fail()], module=module, max_epochs=1)
    except RuntimeError:
        assert fails
    assert {name: parameter.requires_grad for name, parameter in module.named_parameters()} == before
    assert all(child.training for child in module.modules())


def test_user_frozen_parameters_stay_frozen() -> None:
    module = Deep(adamw)
    module.blocks[1][0].weight.requires_grad_(False)
    before = module.blocks[1][0].weight.clone()
    bias = module.blocks[1][0].bias.detach().clone()
    fit([gentle()], module=module, max_epochs=5)
    assert torch.equal(module.blocks[1][0].weight, before)
    assert not torch.equal(module.blocks[1][0].bias, bias)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_what_a_hook_of_the_module_freezes_stays_frozen(hook: str) -> None:
    class Freezes(Deep):
        def freeze(self, *_: Any, **__: Any) -> None:
            self.stem.weight.requires_grad_(False)
            self.blocks[0].requires_grad_(False)

    setattr(Freezes, hook, Freezes.freeze)
    module, unfreezing = Freezes(sgd), gentle()
    frozen = [module.stem.weight, *module.blocks[0].parameters()]
    start = [p.detach().clone() for p in frozen]
    bias = module.stem.bias.detach().clone()
    fit([unfreezing], module=module, max_epochs=5)
    assert all(torch.equal(p, before) for p, before in zip(frozen, start, strict=True))
    assert not any(p.requires_grad for p in frozen)
    assert not torch.equal(module.stem.bias, bias)
    turns = 3 if hook in ("setup", "on_fit_start") else 4  # a layer that is frozen before training has none of its own
    assert len(unfreezing.order.thaws) == turns


def test_what_the_module_freezes_after_its_turn_stays_frozen() -> None:
    class Freezes(Deep):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 2:
                self.head.requires_grad_(False)

    module, watch = Freezes(sgd), Watch()
    fit([gentle(), watch], module=module, max_epochs=5)
    heads = [row["head"] for row in watch.rows]
    assert not torch.equal(heads[0], heads[11])
    assert all(torch.equal(head, heads[11]) for head in heads[12:])
    assert not module.head.weight.requires_grad


def test_fast_dev_run_runs_and_says_nothing_of_short_runs(recwarn: pytest.WarningsRecorder) -> None:
    _, trainer = fit([gentle()], module=Deep(), fast_dev_run=True)
    assert trainer.global_step == 1
    assert not [w for w in recwarn if "never train" in str(w.message)]


def test_journal_names_what_begins_to_train(tmp_path: Path) -> None:
    fit([gentle(epochs_per_layer=2)], module=Deep(), max_epochs=5, logger=CSVLogger(tmp_path, name="", version=""))
    lines = (tmp_path / "lightning_lr/gradual_unfreezing.jsonl").read_text().splitlines()
    start, *events = [json.loads(line) for line in lines]
    assert start["phases"] == [["+ head", 0.0, 0.4], [r"+ blocks\.(\d+) 1", 0.4, 0.8], [r"+ blocks\.(\d+) 0", 0.8, 1.0]]
    assert [(e["event"], e["update"], e["trained"], e["frozen"]) for e in events] == [
        ("unfreeze", 0, 1, 3),
        ("unfreeze", 12, 2, 2),
        ("unfreeze", 24, 3, 1),
    ]
    assert events[0]["layers"] == ["head"]
    assert events[0]["saves_backward"]


# ---------------------------------------------------------------------- plan
def test_plan_has_a_phase_for_every_layer_and_says_what_never_trains() -> None:
    callback, module = gentle(), Deep()
    callback.setup(Trainer(callbacks=[callback], logger=False, accelerator="cpu"), module, "fit")
    epoch = EpochShape(micro_batches=6, micro_batch_size=8, device_samples=48)
    shape = RunShape(epoch, max_epochs=8)
    edges = [0, 1 / 8, 1 / 4, 3 / 8, 1]
    assert [(p.start, p.end) for p in callback.phases(shape)] == list(pairwise(edges))
    assert callback.phases(shape)[0] == Phase("+ head", 0.0, 0.125)
    assert callback.plan_notes(shape, sgd(module)) == []
    short = RunShape(epoch, max_updates=15)
    assert [p.name for p in callback.phases(short)] == ["+ head", r"+ blocks\.(\d+) 1", r"+ blocks\.(\d+) 0"]
    (advice,) = callback.plan_notes(short, sgd(module))
    assert "the run has 2.5 epochs, and 1 of 4 layers never train (stem); train for at least 4 epochs" in advice
    assert "4 layers (patterns), one more every 1 epoch(s): head, " in callback.summary(shape)["gradual unfreezing"]


def test_stream_without_a_length_unfreezes_after_each_pass_and_says_so() -> None:
    watch = Watch()
    with pytest.warns(UserWarning, match="no known length; layers begin to train after each pass"):
        fit([gentle(), watch], module=Deep(), loader=DataLoader(Stream(48), batch_size=8), max_steps=15, max_epochs=-1)
    assert [len(required) for required in watch.required] == [1] * 6 + [2] * 6 + [3] * 3


def test_run_that_ends_too_early_warns() -> None:
    with pytest.warns(UserWarning, match="2 of 4 layers never train"):
        fit([gentle()], module=Deep(), max_epochs=2)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize("epochs", [0, -1, 0.5, True, "1"])
def test_epochs_per_layer_is_a_whole_number_from_1(epochs: Any) -> None:
    with pytest.raises(ValueError, match=r"GradualUnfreezing: got epochs_per_layer=.*whole number of epochs from 1"):
        GradualUnfreezing(epochs)


def test_two_optimizers_under_automatic_optimization_are_refused_by_lightning() -> None:
    with pytest.raises(RuntimeError, match="multiple optimizers"):
        fit([gentle()], module=Deep(lambda module: (sgd(module), sgd(module))))


@pytest.mark.parametrize(
    ("callbacks", "module", "says"),
    [
        ([GradualUnfreezing(layers=["stem", "hat", ".*"])], Deep(), r"GradualUnfreezing: .*'hat' matches no parameter"),
        ([GradualUnfreezing(layers=["stem", "head"])], Deep(), r"no pattern matches blocks.*8 of 12"),
        ([gentle(), BackboneFinetuning()], Deep(), "BackboneFinetuning is attached too.*keep one of the two"),
        ([gentle()], Deep().requires_grad_(False), "every parameter of Deep is frozen"),
    ],
    ids=["pattern without a match", "uncovered", "beside Lightning's", "all frozen"],
)
def test_what_cannot_work_is_refused_before_training(callbacks: list[Callback], module: Deep, says: str) -> None:
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=says):
        fit(callbacks, module=module)
    assert torch.equal(weights(module), before)


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy"])
def test_strategies_with_flat_buffers_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_lr.callbacks import gradual_unfreezing as room

    callback = gentle()
    trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu")
    monkeypatch.setattr(room, name, type(trainer.strategy))  # the real ones cannot be made without their packages
    with pytest.raises(MisconfigurationException, match=r"use DDP or ModelParallelStrategy"):
        callback.on_fit_start(trainer, Deep())


# ---------------------------------------------------------------------- two processes
def _under_ddp(**arguments: Any) -> tuple[Tensor, list[list[str]], list[bool]]:
    watch, saved = Watch(), []

    class Saved(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            saved.append(unfreezing._frozen.without_backward)

    unfreezing = gentle()
    sampler = DistributedSampler(data(), shuffle=False)
    loader = DataLoader(data(), batch_size=4, sampler=sampler)
    settings = ddp()
    settings["strategy"]._ddp_kwargs.update(arguments)
    module, _ = fit([unfreezing, watch, Saved()], module=NoNorm(adamw), loader=loader, max_epochs=5, **settings)
    return weights(module), watch.required, saved


class Noting(NoNorm):
    """Notes how far the stem is from where it began, in every training step, those of branches too."""

    distances: ClassVar[SimpleQueue[float]] = SimpleQueue()
    """Nothing that a branch would put back."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "began"):
            self.began = self.stem.weight.detach().clone()
        self.distances.put(float((self.stem.weight.detach() - self.began).abs().max()))
        return super().training_step(batch, batch_idx)


def _searched() -> tuple[int, float]:
    """Steps of branches and of the run in the first epoch, and how far a frozen layer moved in them."""
    sampler = DistributedSampler(data(256), shuffle=False)
    loader = DataLoader(data(256), batch_size=4, sampler=sampler)
    search = LearningRateSearch(Constant(), budget=1.0)
    fit([gentle(epochs_per_layer=2), search], module=Noting(adamw), loader=loader, max_epochs=2, **ddp())
    distances = [Noting.distances.get() for _ in range(Noting.distances.qsize())]
    return len(distances), max(distances)


def _sharded() -> tuple[list[bool], list[Tensor]]:
    """FSDP2: gradients of frozen layers are dropped; what was frozen is still the same, and then trains."""
    mesh = init_device_mesh("cpu", (2,))
    module = NoNorm()
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    order = UnfreezingOrder(module, SLICES)
    frozen = FrozenLayers(module, order, without_backward=False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    start = [p.full_tensor().clone() for p in module.parameters()]
    still = []
    for epoch in range(4):
        frozen.freeze(order.begun(epoch))
        for x, y in DataLoader(data(), batch_size=8):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x), y).backward()
            frozen.drop_gradients()
            optimizer.step()
        moved = {
            n: not torch.equal(p.full_tensor(), s) for (n, p), s in zip(module.named_parameters(), start, strict=True)
        }
        still.append(all(moved[n] == any(n in t.parameters for t in order.thaws[: epoch + 1]) for n in moved))
    return still, [p.full_tensor().detach() for p in module.parameters()]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = [
        ("plain", _under_ddp),
        ("finds unused", partial(_under_ddp, find_unused_parameters=True)),
        ("sharded", _sharded),
        ("searched", _searched),
    ]
    return run_in_two_processes(cases, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize(("case", "saves"), [("plain", False), ("finds unused", True)])
def test_two_processes_equal_one_and_save_the_backward_where_ddp_allows(
    case: str, saves: bool, two_processes: list[dict[str, Any]]
) -> None:
    one, _ = fit([gentle()], module=NoNorm(adamw), max_epochs=5)
    for rank in two_processes:
        if isinstance(rank[case], Exception):
            raise rank[case]
        trained, required, saved = rank[case]
        assert set(saved) == {saves}
        assert required[0] == (["head"] if saves else list(PARTS))
        # means over two ranks are summed in another order
        assert (trained - weights(one)).abs().max() < rounding_after(30)
    assert torch.equal(two_processes[0][case][0], two_processes[1][case][0])


def test_frozen_layers_do_not_move_in_branches_either(two_processes: list[dict[str, Any]]) -> None:
    """Under plain DDP their gradients are computed; what drops them is a part of an update, of a branch's too."""
    for rank in two_processes:
        if isinstance(rank["searched"], Exception):
            raise rank["searched"]
        steps, distance = rank["searched"]
        assert steps > 64, "the run's own 64, and those of the race"
        assert distance == 0.0


def test_sharded_parameters_stay_still_until_their_turn(two_processes: list[dict[str, Any]]) -> None:
    one, _ = fit([gentle()], module=NoNorm(adamw), max_epochs=4)
    for rank in two_processes:
        if isinstance(rank["sharded"], Exception):
            raise rank["sharded"]
        still, parameters = rank["sharded"]
        assert still == [True] * 4
        sharded = torch.cat([p.double().flatten() for p in parameters])
        # every rank saw the same batches, so the mean of two equal gradients; rounding as above
        assert (sharded - weights(one)).abs().max() < rounding_after(24)
