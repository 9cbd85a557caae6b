"""Checkpointing under a Trainer: nothing but memory and time changes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import CheckpointedDDPStrategy, CheckpointedStrategy, CheckpointPolicy
from tests.support.checkpointed_nets import IMAGES, resnet
from tests.support.toy import data, quiet
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Deep(LightningModule):
    """Six blocks with batch norm and dropout, walked through by the module's own forward."""

    def __init__(self, compiled: str = "", depth: int = 6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1)) for _ in range(depth)
        )
        self.head = nn.Linear(6, 1)
        self.losses: list[float] = []
        self.patched: list[bool] = []
        if compiled == "blocks":
            self.blocks = nn.ModuleList(torch.compile(block, backend="aot_eager") for block in self.blocks)
        if compiled == "blocks in place":
            for block in self.blocks:
                block.compile(backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.mse_loss(self(x), y)
        self.losses.append(float(loss.detach()))
        self.patched.append(any("forward" in vars(block) for block in self.blocks))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def trained(strategy: Any = "auto", module: Any = None, loader: Any = None, **arguments: Any) -> Any:
    module = Deep() if module is None else module
    torch.manual_seed(5)
    ckpt_path = arguments.pop("ckpt_path", None)
    arguments.setdefault("max_epochs", 2)
    trainer = Trainer(**quiet(strategy=strategy, **arguments))
    trainer.fit(
        module, loader or DataLoader(data(), batch_size=8), DataLoader(data(8), batch_size=8), ckpt_path=ckpt_path
    )
    return module


def same(one: Any, other: Any) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return (
        one.losses == other.losses
        and mine.keys() == others.keys()
        and all(torch.equal(value, others[name]) for name, value in mine.items())
    )


POLICIES = [CheckpointPolicy(), CheckpointPolicy("every_block"), CheckpointPolicy(memory_budget=3000)]


@pytest.mark.parametrize("policy", POLICIES, ids=["sqrt", "every block", "budget"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"max_steps": 7}],
    ids=["fp32", "bf16", "accumulation and clipping", "max_steps"],
)
def test_run_is_the_plain_run_to_the_bit(policy: CheckpointPolicy, arguments: dict[str, Any]) -> None:
    checked = trained(CheckpointedStrategy(policy), **arguments)
    assert same(checked, trained(**arguments))
    assert all(checked.patched)
    assert not any("forward" in vars(block) for block in checked.blocks), "undone at teardown"


def test_names_are_registered() -> None:
    assert {"checkpointed", "ddp_checkpointed"} <= set(StrategyRegistry.available_strategies())
    by_name = trained("checkpointed")
    assert all(by_name.patched)
    assert same(by_name, trained())


def test_device_is_the_trainers() -> None:
    trainer = Trainer(**quiet(strategy="checkpointed"))
    assert isinstance(trainer.strategy, CheckpointedStrategy)
    assert trainer.strategy.root_device == torch.device("cpu")
    strategy = CheckpointedStrategy()
    strategy.parallel_devices = [torch.device("cuda", 1)]
    assert strategy.root_device == torch.device("cuda", 1)
    with pytest.raises(MisconfigurationException, match=r"2 devices, and this strategy uses one.*ddp_checkpointed"):
        Trainer(**quiet(strategy="checkpointed", devices=2))
    with pytest.raises(MisconfigurationException, match=r"num_nodes=2.*ddp_checkpointed"):
        Trainer(**quiet(strategy=CheckpointedStrategy(), num_nodes=2))


def test_what_cannot_work_is_refused_before_training() -> None:
    class Flat(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = self.head

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x)
            return out

    def refused(match: str, module: Any = None, **policy: Any) -> None:
        module = module or Deep()
        with pytest.raises(MisconfigurationException, match=match):
            trained(CheckpointedStrategy(CheckpointPolicy(**policy)), module)
        assert len(module.losses) <= 1
        assert not any("forward" in vars(part) for part in module.modules())

    refused("modules names 'bloks', which the module does not have; did you mean blocks", modules=["bloks"])
    refused("Flat has no nn.Sequential or nn.ModuleList to take blocks from", Flat())
    refused(r"memory_budget=100 bytes is less than any plan reaches; the least possible for this batch is \d+ bytes",
            memory_budget=100)  # fmt: skip
    refused("segments=7, but there are 6 blocks", segments=7)
    refused("memory_budget='auto' reads the free memory of an accelerator", memory_budget="auto")


def test_checkpoints_are_those_of_a_plain_run_and_resume_in_either(tmp_path: Path) -> None:
    for first, second in (("auto", "checkpointed"), ("checkpointed", "auto"), ("checkpointed", "checkpointed")):
        folder = tmp_path / f"{first}-{second}"
        # no dropout state is in a checkpoint, so dropout is left out
        half = _without_dropout()
        trained(
            first, half, max_epochs=1, callbacks=[ModelCheckpoint(folder, filename="half")], enable_checkpointing=True
        )
        resumed = trained(second, _without_dropout(), max_epochs=3, ckpt_path=str(folder / "half.ckpt"))
        whole = trained("auto", _without_dropout(), max_epochs=3)
        assert whole.losses == half.losses + resumed.losses
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def _without_dropout() -> Deep:
    module = Deep()
    for block in module.blocks:
        block[3].p = 0.0  # type: ignore[index, union-attr]
    return module


@pytest.mark.parametrize(
    "compiled", ["blocks in place", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("whole", "blocks"))]
)
def test_compiled_modules_train_the_same_weights(compiled: str) -> None:
    def module() -> Any:
        torch._dynamo.reset()
        deep = Deep(compiled, depth=3)
        return torch.compile(deep, backend="aot_eager") if compiled == "whole" else deep

    short = {"max_steps": 4, "limit_val_batches": 0}
    plain, checked = trained(module=module(), **short), trained("checkpointed", module(), **short)
    assert checked.losses == plain.losses
    for name, value in checked.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@pytest.mark.parametrize("by", ["name", "class path"])
def test_yaml_takes_the_strategy(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-lr"])
    strategy: Any = "checkpointed"
    if by == "class path":
        policy = {"segments": "every_block", "modules": ["blocks"]}
        strategy = {"class_path": "lightning_lr.CheckpointedStrategy", "init_args": {"policy": policy}}
    config = {"trainer": {"strategy": strategy, "accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 2,
                          "default_root_dir": str(tmp_path), "enable_checkpointing": False,
                          "enable_progress_bar": False, "enable_model_summary": False}}  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))

    def parsed(path: Path) -> LightningCLI:
        return LightningCLI(
            Deep, run=False, save_config_callback=None, args=["--config", str(path)], auto_configure_optimizers=False,
            seed_everything_default=False,
        )  # fmt: skip

    first = parsed(file)
    again = tmp_path / "again.yaml"
    again.write_text(first.parser.dump(first.config))
    for cli in (first, parsed(again)):
        assert isinstance(cli.trainer.strategy, CheckpointedStrategy)
        if by == "class path":
            assert cli.trainer.strategy.policy == CheckpointPolicy("every_block", modules=["blocks"])
        module = Deep()
        torch.manual_seed(5)
        cli.trainer.fit(module, DataLoader(data(), batch_size=8))
        assert all(module.patched)


def test_plan_is_written_down_and_shown_by_report(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    from lightning_lr.cli.report.record import read_run

    strategy = CheckpointedStrategy(CheckpointPolicy(memory_budget=3000))
    trained(strategy, logger=CSVLogger(tmp_path, name="", version=""))
    journal = [
        json.loads(line) for line in (tmp_path / "lightning_lr" / "checkpointing.jsonl").read_text().splitlines()
    ]
    assert [record["event"] for record in journal] == ["start"]
    assert journal[0]["update"] == 0
    assert journal[0]["peak_bytes"] <= 3000 < journal[0]["plain_bytes"]
    assert "saved activations peak at" in read_run(tmp_path).summary["activations"]


# ---------------------------------------------------------------------- two processes
class Images(Deep):
    """Batch norm and dropout in a network with several stages, in two processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = resnet()
        self.blocks = self.net.stages  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        loss = functional.cross_entropy(self.net(IMAGES * x.mean()), torch.arange(6)) + 0 * self.head(x).sum()
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def _two(policy: CheckpointPolicy | None) -> Any:
    loader = DataLoader(data(24), batch_size=4, sampler=DistributedSampler(data(24), shuffle=False))
    make = None if policy is None else partial(CheckpointedDDPStrategy, policy)
    arguments = ddp(make, max_epochs=2)
    module = trained(arguments.pop("strategy"), Images(), loader, **arguments)
    return module.losses, module.state_dict()


TWO: dict[str, CheckpointPolicy | None] = {
    "plain": None,
    "sqrt": CheckpointPolicy(3),
    "every block": CheckpointPolicy("every_block"),
    "budget": CheckpointPolicy(memory_budget=500_000),
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = [(name, partial(_two, policy)) for name, policy in TWO.items()]
    return run_in_two_processes(cases, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", ["sqrt", "every block", "budget"])
def test_two_processes_train_as_without_checkpointing(name: str, two_processes: list[dict[str, Any]]) -> None:
    for rank in two_processes:
        for case in ("plain", name):
            if isinstance(rank[case], Exception):
                raise rank[case]
        losses, state = rank[name]
        assert losses == rank["plain"][0]
        assert len(losses) == 6
        assert all(torch.equal(value, rank["plain"][1][key]) for key, value in state.items())
