"""What an adaptive warm-up costs: one test on a long history, and its share of a fit on Fashion-MNIST.

    python -m benchmarks.adaptive_warmup_cost [--data-dir FOLDER] [--epochs 5] [--batch-size 512]

First the test alone, on a history of 5 000 updates. Then the example's configuration (small CNN, AdamW, 55 000 images):
the CPU time of the whole fit, and of everything that ``AdaptiveWarmup`` does in it, hook by hook. One thread. CPU time,
not time on the clock: other work on the machine does not change it much.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.optim import AdamW, Optimizer

from benchmarks._common import quiet_process
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN
from lightning_lr import AdaptiveWarmup
from lightning_lr.warmup import LossHistory, look

HOOKS = ("on_train_start", "on_train_batch_end", "factor", "metrics", "state_dict")


class AdamClassifier(Classifier):
    """The example's classifier with AdamW."""

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.parameters(), lr=1e-3)


def seconds_of_a_test(updates: int = 5000, repeats: int = 20) -> list[float]:
    """CPU seconds to read ``updates`` losses that no test has read yet, smooth and test them."""
    generator = torch.Generator().manual_seed(0)
    rates = [1e-5 * 1e5 ** (update / updates) for update in range(updates)]
    noise = torch.randn(updates, generator=generator)
    losses = torch.tensor([1.0 + 0.5 * abs(math.log10(rate) + 2.0) for rate in rates]) * (1.0 + 0.05 * noise)
    found = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        history = LossHistory()
        history.extend(rates, losses)
        look(history.blocks(), fallback_lr=1e-5)
        found.append(time.process_time() - begin)
    return found[1:]


def timed(warmup: AdaptiveWarmup) -> dict[str, float]:
    """Let the hooks of ``warmup`` count their CPU seconds, without those of hooks inside them."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[float] = []

    def measured(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inside.append(0.0)
            begin = time.process_time()
            try:
                return hook(*args, **kwargs)
            finally:
                total = time.process_time() - begin
                spent[name] += total - inside.pop()
                if inside:
                    inside[-1] += total

        return wrapper

    for name in HOOKS:
        setattr(warmup, name, measured(name, getattr(warmup, name)))
    return spent


def share_of_a_fit(data_dir: str | None, epochs: int, batch_size: int) -> None:
    """Train the example and print what share of it the callback took."""
    seed_everything(1, verbose=False)
    warmup = AdaptiveWarmup(on_divergence="rollback", restore_best=True)
    spent = timed(warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[warmup],
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        begin = time.process_time()
        trainer.fit(AdamClassifier(SmallCNN()), FashionMNISTDataModule(batch_size, data_dir))
        whole = time.process_time() - begin
    ours = sum(spent.values())
    machine = warmup.machine
    assert machine is not None
    print(
        f"fit of {epochs} epochs at batch {batch_size}: {whole:.1f} s of CPU time, {trainer.global_step} updates, "
        f"{machine.reason} at {machine.switched_at:.3f} of the run, a test every {machine.check_every} updates"
    )
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:20s} {seconds:8.3f} s  {seconds / whole:8.3%}")
    print(f"AdaptiveWarmup in total: {ours:.3f} s = {ours / whole:.3%} of the fit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the files of Fashion-MNIST, if not in a usual place")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=512)
    options = parser.parse_args()
    quiet_process()
    tests = seconds_of_a_test()
    print(
        f"a test on a history of 5000 updates: median {1e3 * statistics.median(tests):.1f} ms of CPU time, largest "
        f"{1e3 * max(tests):.1f} ms of {len(tests)}"
    )
    share_of_a_fit(options.data_dir, options.epochs, options.batch_size)


if __name__ == "__main__":
    main()
