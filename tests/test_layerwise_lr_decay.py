"""`LayerwiseLRDecay` on modules that were not written for it: the ratio of layers, resume, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_lr import (
    Cosine,
    CosineRestarts,
    LayerwiseLRDecay,
    LearningRateSchedule,
    SlantedTriangle,
    layerwise_param_groups,
)
from lightning_lr.cli import main
from tests.support.layered_net import FACTORS, NAMES, Deep, Net, adamw
from tests.support.toy import Probe, ResumableLoader, Toy, data, fit, two_groups, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:You defined a .validation_step")
UPDATES = 18


def plateau(module: LightningModule) -> dict[str, Any]:
    optimizer = adamw(module)  # a threshold that nothing passes: halved at the end of every epoch but the first
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}


def one_cycle(module: LightningModule) -> Any:
    optimizer = adamw(module)
    return [optimizer], [{"scheduler": OneCycleLR(optimizer, max_lr=0.1, total_steps=UPDATES), "interval": "step"}]


def lambda_lr(module: LightningModule) -> Any:
    optimizer = adamw(module)
    return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda t: 1 / (1 + t)), "interval": "step"}]


def cyclic(module: LightningModule) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return [optimizer], [{"scheduler": CyclicLR(optimizer, 0.01, 0.1, step_size_up=4), "interval": "step"}]


def curve_scheduler(module: LightningModule) -> Any:
    optimizer = adamw(module)
    scheduler = SlantedTriangle().scheduler(optimizer, UPDATES)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


SCHEDULES: dict[str, tuple[Callable[[LightningModule], Any], list[Any]]] = {
    "plateau": (plateau, []),
    "one-cycle": (one_cycle, []),
    "lambda": (lambda_lr, []),
    "cyclic": (cyclic, []),
    "curve.scheduler": (curve_scheduler, []),
    "curve-cosine": (adamw, [LearningRateSchedule(Cosine(warmup=0.2))]),
    "curve-restarts": (adamw, [LearningRateSchedule(CosineRestarts(first_cycle=0.3))]),
    "curve-slanted": (adamw, [LearningRateSchedule(SlantedTriangle())]),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


# ---------------------------------------------------------------------- the ratio of layers
@schedules
def test_ratio_holds_at_every_update_whatever_schedules(name: str) -> None:
    configure, extra = SCHEDULES[name]
    bare, layered = Probe(), Probe()
    fit([*extra, bare], module=Deep(configure))
    _, trainer = fit([LayerwiseLRDecay(0.5), *extra, layered], module=Deep(configure))
    assert len(bare.series) == UPDATES
    assert len({row[0] for row in bare.series}) > 1, "the schedule does something"
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == NAMES
    for (without,), row in zip(bare.series, layered.series, strict=True):
        assert row == pytest.approx([without * factor for factor in FACTORS], rel=1e-12)


@schedules
@pytest.mark.parametrize("at", [pytest.param((1, 12), marks=pytest.mark.slow), (8,)], ids=["early and late", "between"])
def test_ratio_holds_through_a_resume(name: str, at: tuple[int, ...], tmp_path: Path) -> None:
    configure, extra = SCHEDULES[name]

    def run(*more: Any, **arguments: Any) -> tuple[Tensor, list[Any]]:
        probe = Probe()
        module, _ = fit(
            [LayerwiseLRDecay(0.5), *extra, probe, *more],
            module=Deep(configure),
            loader=ResumableLoader(data(), 8),
            **arguments,
        )
        return weights(module), probe.series

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, series = run(save, enable_checkpointing=True)
    for update in at:
        resumed, rest = run(ckpt_path=str(tmp_path / f"step={update}.ckpt"))
        for row in rest:
            assert row == pytest.approx([row[-1] * factor for factor in FACTORS], rel=1e-12)
        if name != "plateau":  # Lightning does not step it where an epoch was resumed, also without us
            assert rest == series[update:]
            assert torch.equal(resumed, whole)


def test_factors_by_hand() -> None:
    module, trainer = fit([LayerwiseLRDecay(0.5, head_factor=3)], module=Deep(adamw), max_epochs=1)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert list(groups) == NAMES
    by_name = {id(p): name for name, p in module.named_parameters()}
    named = {name: sorted(by_name[id(p)] for p in group["params"]) for name, group in groups.items()}
    assert named["stem"] == ["net.embed.weight"]
    assert named["stem/no_decay"] == ["net.embed.bias"]
    assert named["net.blocks.1"] == ["net.blocks.1.linear.weight"]
    assert named["net.blocks.1/no_decay"] == [
        "net.blocks.1.linear.bias",
        "net.blocks.1.norm.bias",
        "net.blocks.1.norm.weight",
    ]
    assert sorted(name for names in named.values() for name in names) == sorted(by_name.values()), (
        "every parameter exactly once"
    )
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        name: 0.0 if name.endswith("no_decay") else 0.01 for name in NAMES
    }


def test_head_factor_multiplies_the_top_alone() -> None:
    probe = Probe()
    fit([LayerwiseLRDecay(0.5, head_factor=3), probe], module=Deep(adamw), max_epochs=1)
    assert probe.series[0] == pytest.approx([0.1 * f for f in (0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 3, 3)], rel=1e-12)


def test_decay_1_is_no_bias_decay_alone() -> None:
    """The oracle is the same split written by hand."""

    def by_hand(module: LightningModule) -> AdamW:
        parameters = list(module.parameters())
        return AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.1,
        )

    ours, trainer = fit([LayerwiseLRDecay(1.0)], module=Deep(adamw))
    hand, _ = fit([], module=Deep(by_hand))
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["decay", "no_decay"]
    assert torch.equal(weights(ours), weights(hand))


def test_weights_equal_groups_written_by_hand() -> None:
    def by_hand(module: LightningModule) -> AdamW:
        return AdamW(layerwise_param_groups(module, lr=0.1, decay=0.5, weight_decay=0.01))

    ours, _ = fit([LayerwiseLRDecay(0.5)], module=Deep(adamw))
    hand, _ = fit([], module=Deep(by_hand))
    assert torch.equal(weights(ours), weights(hand))


# ---------------------------------------------------------------------- the user's groups
def test_groups_of_the_user_are_split_and_keep_their_options() -> None:
    """LoRA+: B matrices with a larger learning rate, and a momentum of their own."""

    def lora_plus(module: LightningModule) -> SGD:
        big = [p for n, p in module.named_parameters() if n.endswith("linear.weight")]
        rest = [p for n, p in module.named_parameters() if not n.endswith("linear.weight")]
        groups = [{"params": rest, "name": "rest"}, {"params": big, "lr": 0.16, "momentum": 0.5, "name": "B"}]
        return SGD(groups, lr=0.01, momentum=0.9)

    probe = Probe("lr", "momentum")
    _, trainer = fit([LayerwiseLRDecay(0.5), probe], module=Deep(lora_plus), max_epochs=1)
    names = [group["name"] for group in trainer.optimizers[0].param_groups]
    assert names == [
        "rest/stem",
        "rest/net.blocks.0",
        "rest/net.blocks.1",
        "rest/head",
        "B/net.blocks.0",
        "B/net.blocks.1",
    ]
    expected = [[0.00125, 0.9], [0.0025, 0.9], [0.005, 0.9], [0.01, 0.9], [0.04, 0.5], [0.08, 0.5]]
    assert probe.series[0] == [pytest.approx(row, rel=1e-12) for row in expected]


def test_groups_without_names_get_unique_ones() -> None:
    def two(module: LightningModule) -> SGD:
        parameters = list(module.parameters())
        return SGD([{"params": parameters[0::2]}, {"params": parameters[1::2]}], lr=0.01)

    monitor = LearningRateMonitor()  # refuses names that are not unique
    logger = CSVLogger(Path(fit([], max_epochs=1)[1].default_root_dir))
    _, trainer = fit([LayerwiseLRDecay(0.5), monitor], module=Deep(two), logger=logger, max_epochs=1)
    names = [group["name"] for group in trainer.optimizers[0].param_groups]
    assert len(set(names)) == len(names) == 8
    assert names[0] == "group_0/stem"


def test_named_parameters_keep_their_names() -> None:
    def named(module: LightningModule) -> SGD:
        return SGD(module.named_parameters(), lr=0.01, weight_decay=0.1)

    module, trainer = fit([LayerwiseLRDecay(0.5)], module=Deep(named), max_epochs=1)
    parameters = dict(module.named_parameters())
    for group in trainer.optimizers[0].param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert parameters[name] is parameter


@pytest.mark.parametrize("name", ["AdamP", "Lion", "Lookahead"])
def test_optimizers_of_others(name: str) -> None:
    library = pytest.importorskip("pytorch_optimizer")

    def other(module: LightningModule) -> Any:
        if name == "Lookahead":
            return library.Lookahead(library.AdamP(module.parameters(), lr=0.1))
        return getattr(library, name)(module.parameters(), lr=0.1)

    probe = Probe()
    fit([LayerwiseLRDecay(0.5), probe], module=Deep(other), max_epochs=1)
    assert [row[0] / row[-1] for row in probe.series] == [0.125] * 6


# ---------------------------------------------------------------------- LightningCLI
CLI_SCHEDULERS = {
    "none": None,
    "cosine": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 3}},
    "one-cycle": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 4}},
    "cyclic": {
        "class_path": "torch.optim.lr_scheduler.CyclicLR",
        "init_args": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "cycle_momentum": False},
    },
    "plateau": {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "train_loss", "patience": 0, "threshold": 1.0e9, "threshold_mode": "abs"},
    },
}


@pytest.mark.parametrize("scheduler", CLI_SCHEDULERS)
def test_optimizer_and_scheduler_of_lightning_cli(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It builds both before the Trainer has been told of any module."""
    monkeypatch.setattr("sys.argv", ["lightning-lr"])

    def run(callbacks: list[dict[str, Any]]) -> list[Any]:
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "weight_decay": 0.01}}
        config = {
            "trainer": {"callbacks": callbacks, "max_epochs": 3, "accelerator": "cpu", "logger": False,
                        "default_root_dir": str(tmp_path), "enable_checkpointing": False,
                        "enable_progress_bar": False, "enable_model_summary": False},
            "optimizer": optimizer,
        }  # fmt: skip
        if CLI_SCHEDULERS[scheduler]:
            config["lr_scheduler"] = CLI_SCHEDULERS[scheduler]
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        cli = LightningCLI(
            Deep, run=False, save_config_callback=None, args=["--config", str(file)], seed_everything_default=False
        )
        probe = Probe()
        cli.trainer.callbacks.insert(0, probe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.trainer.fit(cli.model, DataLoader(data(), batch_size=8))
        return probe.series

    bare = run([])
    layered = run([{"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.5}}])
    for (without,), row in zip(bare, layered, strict=True):
        assert row == pytest.approx([without * factor for factor in FACTORS], rel=1e-12)


def test_plan_shows_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    callbacks = [{"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.5}}]
    config = {
        "trainer": {"callbacks": callbacks, "max_epochs": 2, "accelerator": "cpu", "devices": 1},
        "model": {"class_path": f"{__name__}.Planned"},
    }
    file.write_text(yaml.safe_dump(config))
    out = tmp_path / "plan.png"
    assert main(["plan", "--config", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "x 0.5 per layer, 4 layers by repeated blocks" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if "net.blocks" in line}
    assert rows["net.blocks.0"] == ["88", "24", "0.25", "0.025"]
    assert "highest lr of 8 groups" in shown
    assert out.stat().st_size > 0


class Planned(Deep):
    def __init__(self) -> None:
        super().__init__(adamw)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=8)


def test_plan_refuses_what_fit_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    callbacks = [{"class_path": "LayerwiseLRDecay", "init_args": {"layers": ["net", "nothing"]}}]
    config = {
        "trainer": {"callbacks": callbacks, "max_epochs": 2, "accelerator": "cpu", "devices": 1},
        "model": {"class_path": f"{__name__}.Planned"},
    }
    file.write_text(yaml.safe_dump(config))
    assert main(["plan", "--config", str(file)]) == 2
    assert "the pattern 'nothing' matches no parameter" in capsys.readouterr().err


# ---------------------------------------------------------------------- leaving no trace
def test_table_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []  # not by the log: what other tests import may have turned Lightning's down
    monkeypatch.setattr("lightning_lr.callbacks.layerwise_lr_decay.rank_zero_info", said.append)
    fit([LayerwiseLRDecay(0.5)], module=Deep(adamw))
    tables = [message for message in said if "per layer" in message]
    assert len(tables) == 1
    lines = tables[0].splitlines()
    assert lines[6:] == ["no weight decay (bias, norm or vector): 8, net.embed.bias, net.blocks.0.norm.weight, ..."]
    assert [line.split() for line in lines[1:6]] == [
        ["layer", "parameters", "no", "decay", "factor", "lr"],
        ["stem", "56", "8", "0.125", "0.0125"],
        ["net.blocks.0", "88", "24", "0.25", "0.025"],
        ["net.blocks.1", "88", "24", "0.5", "0.05"],
        ["head", "9", "1", "1", "0.1"],
    ]


def test_module_and_torch_are_as_before_afterwards() -> None:
    construct = Optimizer.__init__
    module = Deep(adamw)
    fit([LayerwiseLRDecay(0.5)], module=module)
    assert Optimizer.__init__ is construct
    assert "configure_optimizers" not in vars(module)
    _, second = fit([], module=module)
    assert [len(group["params"]) for group in second.optimizers[0].param_groups] == [12]


def test_exception_in_configure_optimizers_restores_torch() -> None:
    construct = Optimizer.__init__

    def broken(module: LightningModule) -> Any:
        raise ValueError("of the user's own")

    module = Deep(broken)
    with pytest.raises(ValueError, match=r"^of the user's own$"):
        fit([LayerwiseLRDecay(0.5)], module=module)
    assert Optimizer.__init__ is construct
    assert "configure_optimizers" not in vars(module)


def test_fast_dev_run() -> None:
    probe = Probe()
    fit([LayerwiseLRDecay(0.5), probe], module=Deep(adamw), fast_dev_run=True)
    assert probe.series == [pytest.approx([0.1 * factor for factor in FACTORS])]


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan"), "big"])
def test_decay_outside_0_1(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"got decay=.*\(0, 1\]"):
        LayerwiseLRDecay(decay)
    with pytest.raises(ValueError, match=r"got decay=.*\(0, 1\]"):
        layerwise_param_groups(Net(), 0.1, decay)


@pytest.mark.parametrize("head_factor", [0.0, -1.0, float("inf")])
def test_head_factor_that_is_none(head_factor: float) -> None:
    with pytest.raises(ValueError, match=r"got head_factor=.*positive"):
        LayerwiseLRDecay(0.5, head_factor=head_factor)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pattern-matches-nothing": ({"layers": ["net", "nothing"]}, "the pattern 'nothing' matches no parameter of Deep"),
    "pattern-is-shadowed": ({"layers": ["net", "head"]}, "'head' matches only parameters that earlier patterns take"),
    "not-covered": ({"layers": ["embed", r"blocks\.(\d+)"]}, "no pattern matches net.head.weight, net.head.bias"),
    "no-regex": ({"layers": ["("]}, "which is no regular expression"),
    "no-decay-matches-nothing": ({"no_weight_decay": ["gamma"]}, "the pattern 'gamma' matches no parameter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_patterns_that_do_not_fit(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(MisconfigurationException, match=f"LayerwiseLRDecay: .*{message}"):
        fit([LayerwiseLRDecay(0.5, **arguments)], module=Deep(adamw))


PER_GROUP: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, [lambda t: 1.0, lambda t: 0.5]),
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=9),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, min_lr=[0.1, 0.2]),
    "cyclic": lambda optimizer: CyclicLR(optimizer, [0.1, 0.2], 0.3),
}


@pytest.mark.parametrize("scheduler", PER_GROUP)
def test_scheduler_with_a_list_per_group(scheduler: str) -> None:
    def configure(module: LightningModule) -> Any:
        optimizer = two_groups(module)
        return [optimizer], [{"scheduler": PER_GROUP[scheduler](optimizer), "monitor": "train_loss"}]

    def split_further(module: LightningModule) -> Any:
        parameters = list(module.parameters())
        optimizer = SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1, momentum=0.9)
        return [optimizer], [PER_GROUP[scheduler](optimizer)]

    fit([], module=Toy(configure), max_epochs=1)  # is in order without us
    with pytest.raises(MisconfigurationException, match=r"one value per parameter group .*give it one value for all"):
        fit([LayerwiseLRDecay(0.5)], module=Deep(split_further))


def test_two_optimizers() -> None:
    def two(module: LightningModule) -> Any:
        return [SGD(module.net.embed.parameters(), lr=0.1), SGD(module.net.head.parameters(), lr=0.1)]  # type: ignore[union-attr]

    with pytest.raises((MisconfigurationException, RuntimeError), match=r"(two|2|multiple) optimizers"):
        fit([LayerwiseLRDecay(0.5)], module=Deep(two))


def test_everything_frozen() -> None:
    module = Deep(adamw).requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="all 12 parameters of the optimizer are frozen"):
        fit([LayerwiseLRDecay(0.5)], module=module)
    with pytest.raises(ValueError, match="no parameter that needs a gradient"):
        layerwise_param_groups(module, 0.1, 0.5)


def test_a_net_without_repeated_structure_is_ordered_by_its_forward_pass() -> None:
    decay = LayerwiseLRDecay(0.5)
    _, trainer = fit([decay], module=Toy(), max_epochs=1)
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["body", "head"]


def test_lbfgs_has_no_groups() -> None:
    def lbfgs(module: LightningModule) -> Any:
        return torch.optim.LBFGS(module.parameters())

    with pytest.raises(MisconfigurationException, match="LBFGS has one learning rate"):
        fit([LayerwiseLRDecay(0.5)], module=Deep(lbfgs))


def test_groups_that_have_layerwise_rates_already() -> None:
    def by_hand(module: LightningModule) -> AdamW:
        return AdamW(layerwise_param_groups(module, lr=0.1, decay=0.5))

    with pytest.raises(MisconfigurationException, match="contain the factor of their layer already"):
        fit([LayerwiseLRDecay(0.5)], module=Deep(by_hand))


def test_optimizer_over_something_else() -> None:
    def elsewhere(module: LightningModule) -> SGD:
        return SGD(Net().parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match="none of the optimizer's 12 parameters is one of the module's"):
        fit([LayerwiseLRDecay(0.5)], module=Deep(elsewhere))


def test_parameter_outside_of_the_module_keeps_its_rate() -> None:
    def more(module: LightningModule) -> SGD:
        return SGD([*module.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)

    probe = Probe()
    with pytest.warns(UserWarning, match="1 of the optimizer's 13 parameters are not in the module"):
        _, trainer = fit([LayerwiseLRDecay(0.5), probe], module=Deep(more), max_epochs=1)
    assert trainer.optimizers[0].param_groups[-1]["name"] == "other"
    assert probe.series[0][-1] == 0.1


@pytest.mark.parametrize("then", [{"decay": 0.5, "no_weight_decay": []}, {"decay": 1.0}, None])
def test_resume_with_other_groups(then: dict[str, Any] | None, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6)
    first = [LayerwiseLRDecay(0.5)] if then is not None else []
    fit([*first, save], module=Deep(adamw), enable_checkpointing=True, max_epochs=1)
    with pytest.raises(
        MisconfigurationException, match=r"the checkpoint's optimizer has \d parameter groups .* this run's"
    ):
        fit([LayerwiseLRDecay(**(then or {}))], module=Deep(adamw), ckpt_path=str(tmp_path / "step=6.ckpt"))


class WithToken(Deep):
    def __init__(self) -> None:
        super().__init__(adamw)
        self.net.cls_token = nn.Parameter(torch.zeros(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x + self.net.cls_token[0])
        return found


def test_resume_from_before_tokens_were_exempt(tmp_path: Path) -> None:
    """A checkpoint in which tokens have weight decay resumes with the rule of that time, which the refusal names."""
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6)
    fit(
        [LayerwiseLRDecay(0.5, no_weight_decay="vectors"), save],
        module=WithToken(),
        enable_checkpointing=True,
        max_epochs=1,
    )
    path = str(tmp_path / "step=6.ckpt")
    with pytest.raises(MisconfigurationException, match=r"resumes with no_weight_decay='vectors'"):
        fit([LayerwiseLRDecay(0.5)], module=WithToken(), ckpt_path=path)
    _, trainer = fit([LayerwiseLRDecay(0.5, no_weight_decay="vectors")], module=WithToken(), ckpt_path=path)
    assert trainer.global_step == UPDATES


class AddsAGroup(Deep):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.extra = nn.Parameter(torch.zeros(1))
            optimizer = self.trainer.optimizers[0]
            optimizer.add_param_group({"params": [self.extra], "lr": 0.5})


def test_a_group_that_the_module_adds_during_the_run_is_of_no_layer() -> None:
    alone, added = Probe(), Probe()
    fit([LayerwiseLRDecay(0.5), LearningRateSchedule(Cosine()), alone], module=Deep(adamw))
    fit([LayerwiseLRDecay(0.5), LearningRateSchedule(Cosine()), added], module=AddsAGroup(adamw))
    curve = Cosine()
    assert len(added.series) == UPDATES
    for update, (before, now) in enumerate(zip(alone.series, added.series, strict=True)):
        assert now[: len(before)] == before
        assert now[len(before) :] == pytest.approx([] if update < 6 else [0.5 * curve(update / UPDATES)], rel=1e-12)
