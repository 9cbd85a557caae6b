"""`Tuner.lr_find` and `Tuner.scale_batch_size` with our callbacks attached: as without them, and the fit that follows.

Both train inside a fit that they end themselves. What they find must be what they find without our callbacks, or a
refusal that says what to do; the fit that comes after must be that of a Trainer which was never tuned.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader

from lightning_lr import LayerwiseLRDecay
from tests.support.toy import Probe, Toy, data, quiet, weights
from tests.test_run_places import EACH

pytestmark = pytest.mark.filterwarnings("ignore")

REFUSED = {
    ("lr_find", "scaling"): "LearningRateScaling: LearningRateFinder is attached too, and it finds a learning rate for",
    ("lr_find", "warm-up"): "AdaptiveWarmup: LearningRateFinder is attached too, and both find the learning rate",
    ("lr_find", "search"): "LearningRateSearch: LearningRateFinder is attached too, and both find the learning rate",
    ("scale_batch_size", "ramp"): "BatchSizeRamp: BatchSizeFinder is attached too, and both decide about the batch",
}
"""Each with what to do instead."""
ATTACHED = {**EACH, "layer-wise": lambda: [LayerwiseLRDecay(0.5, no_weight_decay=[])]}  # decays as without it


class Tuned(Toy):
    """A module with the attributes that the tuner sets."""

    def __init__(self, lr: float = 0.01, batch_size: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))  # type: ignore[assignment]
        self.lr, self.batch_size = lr, batch_size
        self.sizes: list[int] = []

    def train_dataloader(self) -> Any:
        return DataLoader(data(64), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(data(8), batch_size=self.batch_size)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.sizes.append(len(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def trainer_of(name: str | None, folder: Path, *more: Callback) -> Trainer:
    ours = [] if name is None else ATTACHED[name]()
    accumulation = 2 if name == "noise scale" else 1
    return Trainer(**{**quiet(callbacks=[*ours, *more], max_epochs=3, accumulate_grad_batches=accumulation),
                      "default_root_dir": folder})  # fmt: skip


def found_by(tune: str, name: str | None, module: Tuned, trainer: Trainer) -> Any:
    tuner = Tuner(trainer)
    if tune == "lr_find":
        finder = tuner.lr_find(module, num_training=12, min_lr=1e-4, max_lr=0.1)
        assert finder is not None
        return finder.results, module.lr
    return tuner.scale_batch_size(module, steps_per_trial=1, max_trials=2, init_val=4), module.batch_size


@pytest.mark.parametrize(("tune", "name"), REFUSED)
def test_what_cannot_be_tuned_beside_is_refused_in_words(tune: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=REFUSED[tune, name]) as refused:
        found_by(tune, name, Tuned(), trainer_of(name, tmp_path))
    assert re.search(r"keep one|remove it", str(refused.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tune", "name"),
    [(tune, name) for tune in ("lr_find", "scale_batch_size") for name in EACH if (tune, name) not in REFUSED],
)
def test_the_tuner_finds_what_it_finds_without_us_and_the_fit_is_a_fresh_one(
    tune: str, name: str, tmp_path: Path
) -> None:
    accumulation = trainer_of(name, tmp_path).accumulate_grad_batches
    bare = Trainer(**{**quiet(max_epochs=3, accumulate_grad_batches=accumulation), "default_root_dir": tmp_path})
    expected = found_by(tune, None, alone := Tuned(), bare)
    probe, module = Probe(), Tuned()
    trainer = trainer_of(name, tmp_path, probe)
    assert found_by(tune, name, module, trainer) == expected
    assert module.sizes == alone.sizes
    assert torch.equal(weights(module), weights(Tuned()))
    assert not list(tmp_path.iterdir())

    probe.series.clear()
    module.sizes.clear()
    trainer.fit(module)
    fresh, same = Probe(), Tuned(module.lr, module.batch_size)
    trainer_of(name, tmp_path, fresh).fit(same)
    assert probe.series == fresh.series
    assert module.sizes == same.sizes
    assert torch.equal(weights(module), weights(same))
    assert trainer.global_step == len(fresh.series)
