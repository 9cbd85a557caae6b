"""A run after branches is, to the bit, the run without them: engines, schedules, listeners, data of every kind."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_lr import Cosine, LearningRateSearch
from tests.support.processes import run_in_processes
from tests.support.toy import data, fit
from tests.support.zero_runs import needs_deepspeed, whole_weights, zero

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "2": (2, {}),
    "3": (3, {}),
    "3-nothing-persists": (3, {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
    "2-offload": (2, {"offload_optimizer": True}),
    "3-offload": (3, {"offload_optimizer": True, "offload_parameters": True}),
}


class Everything(LightningModule):
    """A frozen layer, batch norm, dropout, a list, a counter, a step that writes into its batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.losses: list[float] = []
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(self.frozen(x)), y.clone())
        y.zero_()
        self.steps += 1
        self.losses.append(float(loss))
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        bias = [p for n, p in self.net.named_parameters() if n.endswith("bias")]
        rest = [p for n, p in self.net.named_parameters() if not n.endswith("bias")]
        return torch.optim.AdamW([{"params": rest}, {"params": bias, "lr": 0.1}], lr=0.3)


class End(Callback):
    """What an engine holds when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        engine: Any = trainer.model
        self.weights = whole_weights(pl_module).tolist()
        self.buffers = [buffer.tolist() for buffer in pl_module.buffers()]
        self.optimizer = [
            [(name, torch.as_tensor(value).tolist()) for name, value in state.items()]
            for state in trainer.optimizers[0].state.values()
        ]
        self.counters = (
            engine.global_steps, engine.micro_steps, engine.skipped_steps, engine.global_samples,
            engine.optimizer.micro_step_id, vars(engine.optimizer.loss_scaler),
        )  # fmt: skip


def _zero_run(engine: str, found: float | None, at: float, **arguments: Any) -> dict[str, Any]:
    stage, settings = ENGINES[engine]
    torch.manual_seed(6)
    bounds = {} if found is None else {"min_lr": found, "max_lr": found}
    search, end = LearningRateSearch(Cosine(warmup=0.1), budget=1.0, at=(at,), **bounds), End()
    loader = DataLoader(data(96), batch_size=4, shuffle=True)
    module, trainer = fit(
        [search, end], module=Everything(), loader=loader, max_epochs=4, **zero(stage, **settings), **arguments
    )
    return {
        "rate": search.rate,
        "heats": [] if search.result is None else search.result.heats,
        "weights": end.weights,
        "buffers": end.buffers,
        "optimizer": end.optimizer,
        "counters": end.counters,
        "numbers": torch.rand(2).tolist(),
        "attributes": (module.steps, module.losses),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("lr")},
        "steps": trainer.global_step,
    }


CASES = {
    **{f"stage {engine}": (engine, {}) for engine in ENGINES},
    "stage 2, accumulated and clipped": ("2", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "stage 3 in bf16": ("3", {"precision": "bf16-mixed"}),
    "stage 1 in bf16": ("1", {"precision": "bf16-mixed"}),
}


@needs_deepspeed
def test_an_engine_goes_on_after_a_race_as_without_one_to_the_bit(tmp_path: Path) -> None:
    raced = {name: partial(_zero_run, engine, None, 0.0, **more) for name, (engine, more) in CASES.items()}
    first, second = run_in_processes(list(raced.items()), tmp_path / "raced", 2)
    for name in CASES:
        assert isinstance(first[name], dict), (name, first[name])
    off = {name: partial(_zero_run, engine, first[name]["rate"], 0.0, **more) for name, (engine, more) in CASES.items()}
    alone, _ = run_in_processes(list(off.items()), tmp_path / "off", 2)
    for name in CASES:
        assert isinstance(alone[name], dict), alone[name]
        assert first[name]["heats"], name
        assert first[name]["rate"] == second[name]["rate"], name
        for what in set(alone[name]) - {"heats"}:
            assert alone[name][what] == first[name][what], (name, what)
