"""`make demo`: the same small task trained three ways, and what the differences were worth. Runs from the repository.

1. A fixed learning rate, torch's default for AdamW, as many projects begin.
2. A cosine with a short warm-up, its rate tuned by a grid: a full run for each rate, which the price counts.
3. `LearningRateSearch` finds the rate in the run itself, and `BatchSizeRamp` lets the batch grow where a cosine would
   lower the rate.

Nothing is fetched: scikit-learn's handwritten digits come with the library. One seed: the last digit of an accuracy is
luck.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

import lightning_lr as lr
from examples import Classifier, DigitsDataModule, SmallCNN

EPOCHS, BATCH, DEFAULT = 20, 64, 1e-3
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


class Adam(Classifier):
    """The same classifier with AdamW."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)


@dataclass(frozen=True)
class Trained:
    """What one way came to, and what it took."""

    accuracy: float
    error: float
    samples: int
    updates: int
    seconds: float
    tested: int
    """Images that the accuracy is of."""


def train(root: Path, name: str, rate: float, callbacks: Sequence[Callback], epochs: int = EPOCHS) -> Trained:
    """Train once; the logger writes to ``root/name``."""
    seed_everything(1, verbose=False)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=CSVLogger(root, name=name, version=""), log_every_n_steps=5,
        callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module, data = Adam(SmallCNN(stem_stride=1), lr=rate), DigitsDataModule(batch_size=BATCH)
    begun = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - begun
    (tested,) = trainer.test(module, data, verbose=False)
    samples = len(data.train_set) * epochs
    return Trained(tested["test_acc"], tested["test_loss"], samples, trainer.global_step, seconds, len(data.test_set))


def demo(root: Path, epochs: int = EPOCHS, grid: Sequence[float] = GRID) -> list[str]:
    """Train the three ways; returns the three lines."""
    print(f"fixed rate {DEFAULT:g} ...", flush=True)
    # a constant factor of 1, with which the run is what it would be without: it writes down samples and seconds
    fixed = train(root, "fixed_rate", DEFAULT, [lr.LearningRateSchedule(lr.Constant())], epochs)
    tuned: dict[float, Trained] = {}
    for rate in grid:
        print(f"cosine, rate {rate:g} of the grid ...", flush=True)
        cosine = lr.LearningRateSchedule(lr.Cosine(warmup=0.05))
        tuned[rate] = train(root, f"cosine_{rate:g}", rate, [cosine], epochs)
    print("rate found by LearningRateSearch, growing batch ...", flush=True)
    search = lr.LearningRateSearch(lr.Constant(warmup=0.05), budget=0.25)
    ramp = lr.BatchSizeRamp(lr.CurveRamp(lr.Cosine(floor=0.01)), max_batch_size=8 * BATCH, lr_rule="sqrt")
    ours = train(root, "found_growing", DEFAULT, [search, ramp], epochs)
    best = min(tuned, key=lambda rate: tuned[rate].error)
    runs = [root / "fixed_rate", root / f"cosine_{best:g}", root / "found_growing"]
    compared = lr.report(*runs)
    compared.save(root / "comparison.png")
    compared.save(root / "comparison.html")
    assert search.result is not None
    spent = sum(run.samples for run in tuned.values())
    ours = replace(ours, samples=ours.samples + round(search.result.price * BATCH))
    return [
        f"fixed rate {DEFAULT:g}: {_came_to(fixed)}; {fixed.updates:,} updates, {fixed.samples:,} samples, "
        f"{fixed.seconds:.0f} s",
        f"cosine, rate {best:g} from a grid of {len(tuned)}: {_came_to(tuned[best])}, {_against(tuned[best], fixed)}; "
        f"{tuned[best].updates:,} updates, {spent:,} samples with the grid ({spent / fixed.samples:.1f} x), "
        f"{sum(run.seconds for run in tuned.values()):.0f} s",
        f"found rate {search.rate:.2g}, growing batch: {_came_to(ours)}, {_against(ours, fixed)}; {ours.updates:,} "
        f"updates, {ours.samples:,} samples with the search ({ours.samples / fixed.samples:.1f} x), "
        f"{ours.seconds:.0f} s",
    ]


def _came_to(run: Trained) -> str:
    return f"test accuracy {run.accuracy:.1%}, loss {run.error:.3f}"


def _against(run: Trained, fixed: Trained) -> str:
    images = round(run.tested * (run.accuracy - fixed.accuracy))
    return f"{abs(images)} of {run.tested} images {'gained' if images > 0 else 'lost'}" if images else "no difference"


def main() -> None:
    """Run it in `runs/demo`, and say what came of it."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lines = demo(Path("runs/demo"))
    print("\n" + "\n".join(lines))
    print("\nNow look at runs/demo/comparison.png, or open runs/demo/comparison.html.")


if __name__ == "__main__":
    main()
