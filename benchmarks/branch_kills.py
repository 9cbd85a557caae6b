"""Whether a run that is killed inside a race goes on right: ``kill -9`` in the middle of branches, and a resume.

    python -m benchmarks.branch_kills [--kills 40] [--report]

A small run saves a checkpoint after every update, and kills itself with SIGKILL in the n-th training step that it makes
inside a branch, at n spread over all of them. What is started then, from the checkpoint that is there or from the
beginning, has to come to the weights, the optimizer state, the random numbers and the decisions of a run that nobody
killed, to the bit. Four cases: a search before the first update, a second search at 30 % of the run, the critical batch
measured at 20 and 60 %, and a ramp by branches. One JSON file, ``benchmarks/results/branch_kills.json``; a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from benchmarks._common import RESULTS, environment, markdown_table, quiet_process, write_keeping_findings
from lightning_lr import AdaptiveRamp, BatchSizeRamp, Cosine, CriticalBatchSize, LearningRateSearch

TARGET = RESULTS / "branch_kills.json"
SAMPLES, BATCH, EPOCHS = 96, 4, 3

CASES: dict[str, Callable[[], list[Callback]]] = {
    "search before the first update": lambda: [LearningRateSearch(Cosine(), budget=1.0)],
    "second search": lambda: [LearningRateSearch(Cosine(), 0.01, 0.5, budget=1.0, at=(0.0, 0.3))],
    "critical batch": lambda: [CriticalBatchSize(at=(0.2, 0.6), budget=1.0)],
    "ramp by branches": lambda: [
        BatchSizeRamp(AdaptiveRamp(measure="branches", at=(0.2, 0.6), budget=1.0, tolerance=0.9), 16)
    ],
}
_steps_inside = 0
_kill_at: int | None = None


class Small(LightningModule):
    """Dropout, a buffer, a counter; kills its process where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        global _steps_inside
        if "log" in vars(self):  # silenced: inside a branch
            _steps_inside += 1
            if _steps_inside == _kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        torch.manual_seed(10_000 + self.global_step)  # dropout of the run and of a resume from a checkpoint
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.02)


class InTurn(Sampler[int]):
    """0, 1, 2, ...; begins after what a resumed epoch has used."""

    def __init__(self) -> None:
        self.skip = 0

    def __iter__(self) -> Any:
        first, self.skip = self.skip, 0
        return iter(range(first, SAMPLES))

    def __len__(self) -> int:
        return SAMPLES


class Resumable(DataLoader[Any]):
    """With the state that Lightning saves, so that a resume inside an epoch repeats no sample."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset, BATCH, sampler=InTurn())
        self.given = 0

    def __iter__(self) -> Any:
        self.given = self.sampler.skip // BATCH  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.skip = state["given"] * BATCH  # type: ignore[attr-defined]


def run(case: str, folder: Path) -> dict[str, Any]:
    """Train, from the checkpoint in the folder if there is one."""
    seed_everything(3, verbose=False)
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(x, torch.sin(x.sum(1, keepdim=True)))
    module, callbacks = Small(), CASES[case]()
    # the ramp places its own sampler after a resume
    loader = DataLoader(data, BATCH, shuffle=True) if "ramp" in case else Resumable(data)
    save = ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, save],
        deterministic=True,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_epochs=EPOCHS,
        limit_val_batches=0,
    )
    trainer_checkpoint = folder / "last.ckpt"
    begun = torch.load(trainer_checkpoint, weights_only=False)["global_step"] if trainer_checkpoint.exists() else 0
    trainer.fit(module, loader, ckpt_path=str(trainer_checkpoint) if begun else None)
    state = callbacks[0].state_dict()
    decided = {name: state[name] for name in ("search", "results", "measured", "growths") if name in state}
    return {
        "begun": begun,
        "updates": trainer.global_step,
        "steps_inside": _steps_inside,
        "facts": pickle.dumps(
            (
                [p.tolist() for p in module.state_dict().values()],
                [[torch.as_tensor(v).tolist() for v in s.values()] for s in trainer.optimizers[0].state.values()],
                torch.rand(2).tolist(),
                json.dumps(decided, sort_keys=True),
            )
        ),
    }


def in_a_process(case: str, folder: Path, kill_at: int | None = None) -> dict[str, Any] | None:
    """The run in a process of its own; ``None`` where it was killed."""
    global _kill_at
    out = folder / "facts.pkl"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _kill_at = kill_at
            out.write_bytes(pickle.dumps(run(case, folder)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status != 0:
        raise RuntimeError(f"{case}: the run in {folder} failed with status {status}")
    facts: dict[str, Any] = pickle.loads(out.read_bytes())
    return facts


def kills(case: str, count: int) -> list[dict[str, Any]]:
    """Kill and resume, ``count`` times, at steps that are spread over all branches."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        whole = in_a_process(case, Path(folder))
    assert whole is not None
    for index in range(count):
        step = 1 + round(index * (whole["steps_inside"] - 1) / max(count - 1, 1))
        with tempfile.TemporaryDirectory() as folder:
            killed = in_a_process(case, Path(folder), step) is None
            resumed = in_a_process(case, Path(folder))
        assert resumed is not None
        right = resumed["facts"] == whole["facts"] and resumed["updates"] == whole["updates"]
        records.append(
            {"case": case, "killed_in_step": step, "of": whole["steps_inside"], "killed": killed,
             "resumed_from_update": resumed["begun"], "right": right}
        )  # fmt: skip
    return records


def write(record: dict[str, Any]) -> None:
    """Write the table."""
    rows = []
    for case in CASES:
        own = [kill for kill in record["kills"] if kill["case"] == case]
        froms = sorted({kill["resumed_from_update"] for kill in own})
        rows.append(
            [
                case,
                str(own[0]["of"]) if own else "-",
                str(sum(kill["killed"] for kill in own)),
                str(sum(kill["killed"] and kill["right"] for kill in own)),
                ", ".join("the beginning" if update == 0 else str(update) for update in froms),
            ]
        )
    text = f"""# Killed inside a race, and resumed

Made by `python -m benchmarks.branch_kills`. A run that saves a checkpoint after every update kills itself with SIGKILL
in a training step of a branch. *Right*: the run that is started then ends with the weights, buffers, optimizer state,
random numbers and decisions of a run that nobody killed, to the bit.

{markdown_table(("case", "steps in branches", "kills", "right", "resumed from update"), rows)}
Made with: {", ".join(f"{name} {value}" for name, value in record["environment"].items())}
"""
    write_keeping_findings(TARGET.with_suffix(".md"), text)
    print(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, resume, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of all cases together")
    parser.add_argument("--report", action="store_true", help="make no run, write the table")
    options = parser.parse_args(arguments)
    if not options.report:
        quiet_process()
        warnings.filterwarnings("ignore")
        made = [kill for case in CASES for kill in kills(case, options.kills // len(CASES))]
        record = {"kills": made, "environment": environment()}
        TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write(json.loads(TARGET.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
