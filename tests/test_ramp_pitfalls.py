"""Seventeen ways in which growing a batch in Lightning's loop goes wrong, each beside what `BatchSizeRamp` does.

Every test first shows the obvious way going wrong in the installed Lightning (if one of these begins to pass, the
pitfall is gone), then that the ramp does not. P14 applies in part: a scheduler with ``frequency`` above 1 counts
micro-batches in Lightning with any accumulation, ours or not, and the ramp leaves users' schedulers to Lightning; what
is tested is that one with frequency 1 steps once per update. P16 is refused, so nothing can go wrong; DeepSpeed is not
needed for the refusal. Of iterable data, see ``test_ramp_stream.py``; P13 remains there, where Lightning, not the ramp,
has the data's position.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, TensorDataset

from lightning_lr import BatchSizeRamp, StepRamp
from lightning_lr.callbacks import total_updates
from tests.support.toy import ResumableSampler, fit
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Decode(LightningModule):
    """Loss w x: the gradient of an update is the mean of what it was given, and says which samples these were."""

    def __init__(self, configure: Any = None) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.configure = configure
        self.seen: list[list[float]] = []
        self.gradients: list[float] = []
        self.validations = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0].flatten().tolist())
        return (self.w * batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validations += 1

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.w.grad is not None
        self.gradients.append(self.w.grad.item())

    def configure_optimizers(self) -> Any:
        return self.configure(self) if self.configure else torch.optim.SGD(self.parameters(), lr=0.1)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.seen]

    @property
    def samples(self) -> list[float]:
        return [x for batch in self.seen for x in batch]


def numbers(count: int) -> TensorDataset:
    return TensorDataset(10.0 ** torch.arange(count, dtype=torch.float64).unsqueeze(1))


def loader(count: int, batch_size: int = 1, workers: int = 0, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(numbers(count), batch_size, num_workers=workers, persistent_workers=workers > 0, **arguments)


def train(callbacks: list[Callback], data: Any, **arguments: Any) -> tuple[Decode, Trainer]:
    module = arguments.pop("module", None) or Decode()
    _, trainer = fit(callbacks, module=module, loader=data, **{"max_epochs": 1, **arguments})
    return module, trainer


def means(*windows: list[int]) -> list[float]:
    return [sum(10.0**i for i in window) / len(window) for window in windows]


def ramp(milestones: list[float], factor: float = 2.0, **arguments: Any) -> BatchSizeRamp:
    return BatchSizeRamp(StepRamp(milestones, factor=factor), **{"max_batch_size": 8, **arguments})


class SetAccumulation(Callback):
    """The obvious way: another number from some micro-batch on."""

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        trainer.accumulate_grad_batches = 2 if batch_idx < 6 else 4


class SetBatchSize(Callback):
    """The obvious way: another batch size in the loader's batch sampler, at some hook."""

    def __init__(self, hook: str, sizes: dict[int, int], at: int = 0) -> None:
        self.hook, self.sizes, self.at = hook, sizes, at

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._set(trainer, "train_start")

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._set(trainer, "epoch_start")

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            self._set(trainer, "batch_start")

    def _set(self, trainer: Trainer, hook: str) -> None:
        if hook == self.hook and trainer.current_epoch in self.sizes:
            trainer.train_dataloader.batch_sampler.batch_size = self.sizes[trainer.current_epoch]


# ---------------------------------------------------------------------- gradients
def test_p01_growing_within_an_epoch_leaves_no_gradient_of_the_window_before() -> None:
    windows = [[0, 1], [2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13]]
    naive, _ = train([SetAccumulation()], loader(14))
    assert naive.gradients != pytest.approx(means(*windows), rel=1e-9)
    ours, _ = train([ramp([6 / 14], max_micro_batch_size=1)], loader(14, 2))
    assert ours.gradients == pytest.approx(means(*windows), rel=1e-12)


def test_p02_a_last_window_that_is_short_is_divided_by_its_own_length() -> None:
    naive, _ = train([GradientAccumulationScheduler({0: 4})], loader(6))
    assert naive.gradients[-1] == pytest.approx(means([4, 5])[0] / 2)
    ours, _ = train([ramp([0.9], max_micro_batch_size=1)], loader(6, 4))
    assert ours.gradients == pytest.approx(means([0, 1, 2, 3], [4, 5]), rel=1e-12)


def test_p03_a_last_micro_batch_that_is_short_counts_by_its_samples() -> None:
    naive, _ = train([], loader(5, 2), accumulate_grad_batches=3)
    assert naive.gradients != pytest.approx(means([0, 1, 2, 3, 4]), rel=1e-9)
    ours, _ = train([ramp([0.9], max_micro_batch_size=2)], loader(5, 5))
    assert ours.sizes == [2, 2, 1]
    assert ours.gradients == pytest.approx(means([0, 1, 2, 3, 4]), rel=1e-12)


# ---------------------------------------------------------------------- totals
def test_p04_the_number_of_updates_is_known_to_a_scheduler() -> None:
    answers: list[tuple[int, int]] = []

    def configure(module: LightningModule) -> Any:
        answers.append((int(module.trainer.estimated_stepping_batches), total_updates(module.trainer)))
        return torch.optim.SGD(module.parameters(), lr=0.1)

    _, trainer = train([ramp([1, 2])], loader(16, 2), module=Decode(configure), max_epochs=3)
    estimated, planned = answers[0]
    assert planned == trainer.global_step == 8 + 4 + 2
    assert estimated != trainer.global_step


@pytest.mark.parametrize("workers", [0, 2])
def test_p05_p06_validation_runs_and_epochs_are_whole_when_the_batch_has_grown(workers: int) -> None:
    """P6: the same with persistent workers, which keep their copy of the data set only."""
    validation = DataLoader(numbers(1))
    naive, naive_trainer = train([SetBatchSize("epoch_start", {1: 4, 2: 8})], loader(16, 2, workers), max_epochs=3,
                                 validation=validation, num_sanity_val_steps=0)  # fmt: skip
    assert naive.sizes == [2] * 8 + [4] * 4 + [8] * 2
    assert naive.validations == 1, "in the first epoch, and silently never again"
    assert naive_trainer.num_training_batches == 8
    ours, trainer = train([ramp([1, 2])], loader(16, 2, workers), max_epochs=3, validation=validation,
                          num_sanity_val_steps=0)  # fmt: skip
    assert ours.sizes == naive.sizes
    assert ours.validations == 3
    assert trainer.num_training_batches == 2


def test_p05_an_epoch_whose_micro_batches_shrink_keeps_its_data() -> None:
    naive, _ = train([SetBatchSize("epoch_start", {1: 1})], loader(16, 2), max_epochs=2)
    assert len(naive.samples) < 32, "half of the second epoch is lost"
    # 4 samples in one micro-batch, then 6 in two of 3
    ours, _ = train([ramp([1], 1.5, max_micro_batch_size=4)], loader(12, 4), max_epochs=2)
    assert ours.sizes == [4] * 3 + [3] * 4
    assert sorted(ours.samples) == sorted(numbers(12).tensors[0].flatten().tolist() * 2)


# ---------------------------------------------------------------------- iterators and workers
def test_p07_what_workers_have_prefetched_before_training_has_the_first_size() -> None:
    naive, _ = train([SetBatchSize("train_start", {0: 2})], loader(16, 4, 2))
    assert naive.sizes[0] == 4
    ours, _ = train([ramp([0.9], max_micro_batch_size=2)], loader(16, 4, 2))
    assert ours.sizes == [2] * 8


def test_p08_a_change_within_an_epoch_is_where_the_plan_has_it_whatever_is_prefetched() -> None:
    naive, _ = train([SetBatchSize("batch_start", {0: 4}, at=2)], loader(24, 2, 2))
    assert naive.sizes[3] == 2, "batches that were prefetched come first"
    ours, _ = train([ramp([0.25])], loader(24, 2, 2))
    assert ours.sizes == [2, 2, 2, 4, 4, 4, 4, 2]
    assert ours.samples == numbers(24).tensors[0].flatten().tolist()


def test_p09_persistent_workers_of_an_earlier_fit_hold_no_sampler_of_it() -> None:
    class Replace(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                given = trainer.train_dataloader
                given.__dict__["batch_sampler"] = BatchSampler(SequentialSampler(given.dataset), 4, False)

    naive, _ = train([Replace()], loader(8, 2, 2), max_epochs=2)
    assert set(naive.sizes) == {2}, "the iterator has taken the sampler with it"
    shared = loader(8, 2, 2)
    for milestone, sizes in ((0.5, [2, 2, 4]), (0.25, [2, 4, 2])):
        ours, _ = train([ramp([milestone], max_batch_size=4)], shared)
        assert ours.sizes == sizes


class WithHook(Decode):
    """Makes its loader in a hook, so that Lightning can make it again."""

    def train_dataloader(self) -> Any:
        return loader(16, 2)


def test_p10_loaders_that_are_made_again_do_not_lag() -> None:
    lagging = WithHook()

    class Ask(Callback):
        """Asks for the size of an epoch when the loader of that epoch has been made already."""

        def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
            module.next_size = 2 ** (trainer.current_epoch + 1)

    lagging.next_size = 2
    lagging.train_dataloader = lambda: loader(16, lagging.next_size)  # type: ignore[method-assign]
    Trainer(**_quiet(callbacks=[Ask()], reload_dataloaders_every_n_epochs=1)).fit(lagging)
    assert lagging.sizes == [2] * 8 + [2] * 8 + [4] * 4
    grown = WithHook()
    Trainer(**_quiet(callbacks=[ramp([1, 2])], reload_dataloaders_every_n_epochs=1)).fit(grown)
    assert grown.sizes == [2] * 8 + [4] * 4 + [8] * 2
    assert grown.samples == numbers(16).tensors[0].flatten().tolist() * 3


def _quiet(**arguments: Any) -> dict[str, Any]:
    from tests.support.toy import quiet

    return quiet(max_epochs=3, **arguments)


def test_p11_growing_within_an_epoch_loses_no_data() -> None:
    class Reload(Callback):
        """The obvious way to a larger batch: let Lightning make the loader again."""

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                module.size = 4
                trainer.fit_loop._combined_loader = None
                trainer.fit_loop.setup_data()

    naive = WithHook()
    naive.size = 2
    naive.train_dataloader = lambda: loader(16, naive.size)  # type: ignore[method-assign]
    Trainer(**{**_quiet(callbacks=[Reload()]), "max_epochs": 1}).fit(naive)
    assert naive.samples != numbers(16).tensors[0].flatten().tolist()
    ours, _ = train([ramp([0.5])], loader(16, 2))
    assert ours.sizes == [2] * 4 + [4] * 2
    assert ours.samples == numbers(16).tensors[0].flatten().tolist()


# ---------------------------------------------------------------------- resume
class SaveAt(Callback):
    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


def _resumed(callbacks: Any, data: Any, path: Path, at: int, **arguments: Any) -> tuple[list[float], list[float]]:
    """What the interrupted run sees after the interruption, and what the resumed one sees."""
    whole, _ = train([*callbacks(), SaveAt(path, at)], data(), max_epochs=3, **arguments)
    if "module" in arguments:
        arguments["module"] = Decode(arguments["module"].configure)
    again, _ = train(callbacks(), data(), max_epochs=3, ckpt_path=str(path), **arguments)
    return [x for batch in whole.seen[at + 1 :] for x in batch], again.samples


def test_p12_a_resume_within_an_epoch_repeats_no_sample_and_leaves_none_out(tmp_path: Path) -> None:
    rest, again = _resumed(list, lambda: loader(16, 2), tmp_path / "naive.ckpt", 2)
    assert rest != again, "Lightning begins the epoch anew"
    rest, again = _resumed(lambda: [ramp([1, 2])], lambda: loader(16, 2), tmp_path / "ours.ckpt", 2)
    assert rest == again


def test_p12_a_resume_with_workers_has_the_order_of_its_own_epoch(tmp_path: Path) -> None:
    def data() -> DataLoader[Any]:
        return loader(16, 2, 1, sampler=DistributedSampler(numbers(16), 1, 0, shuffle=True))

    rest, again = _resumed(list, data, tmp_path / "naive.ckpt", 7)  # at the end of the first epoch
    assert rest != again, "Lightning takes the order of epoch 0 again"
    rest, again = _resumed(lambda: [ramp([1, 2])], data, tmp_path / "ours.ckpt", 7)
    assert rest == again


def test_p13_asking_for_totals_in_configure_optimizers_does_not_spoil_a_resume(tmp_path: Path) -> None:
    class Resumable(DataLoader[Any]):
        def __init__(self) -> None:
            super().__init__(numbers(16), batch_size=2, sampler=ResumableSampler(16))

        def state_dict(self) -> dict[str, int]:
            return {"given": 3}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.sampler.skip = state["given"] * 2  # type: ignore[attr-defined]

    def configure(module: LightningModule, ask: Any) -> Any:
        ask(module.trainer)
        return torch.optim.SGD(module.parameters(), lr=0.1)

    naive = Decode(partial(configure, ask=lambda trainer: trainer.estimated_stepping_batches))
    rest, again = _resumed(list, Resumable, tmp_path / "naive.ckpt", 2, module=naive)
    assert rest != again, "the loader is never given its state"
    for ask in (total_updates, lambda trainer: trainer.estimated_stepping_batches):
        ours = Decode(partial(configure, ask=ask))
        rest, again = _resumed(lambda: [ramp([1, 2])], lambda: loader(16, 2), tmp_path / "ours.ckpt", 2, module=ours)
        assert rest == again


# ---------------------------------------------------------------------- schedulers, devices, samplers
def test_p14_a_warm_up_of_the_users_steps_once_per_update() -> None:
    def configure(module: LightningModule, frequency: int = 1) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
        step = {"scheduler": warmup, "interval": "step", "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": step}

    # Lightning's own: 24 micro-batches, 6 updates; every third would be 2, every second 3
    _, trainer = train([], loader(24), accumulate_grad_batches=4, module=Decode(partial(configure, frequency=8)))
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3, "frequency counts micro-batches"
    _, trainer = train([ramp([0.5], max_micro_batch_size=1)], loader(24, 4), module=Decode(configure))
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == trainer.global_step == 3 + 2


def _two(callbacks: list[Callback]) -> Any:
    given = DataLoader(numbers(16), batch_size=2, shuffle=True)
    ours = given.batch_sampler
    module, trainer = train(callbacks, given, max_epochs=3, **ddp())
    assert trainer.train_dataloader is not given
    assert given.batch_sampler is ours
    return module.sizes, module.samples, trainer.global_step


def test_p15_the_loader_that_lightning_rebuilds_for_ddp_is_the_one_that_ramps(tmp_path: Path) -> None:
    """The user's own loader is not the one that is read, so changing it, the naive way, would change nothing."""
    ranks = run_in_two_processes([("ramp", partial(_two, [ramp([1, 2], max_batch_size=16)]))], tmp_path)
    for rank in ranks:
        if isinstance(rank["ramp"], Exception):
            raise rank["ramp"]
        sizes, _, updates = rank["ramp"]
        assert sizes == [2] * 4 + [4] * 2 + [8]
        assert updates == 7
    shares = [[rank["ramp"][1][epoch * 8 : epoch * 8 + 8] for epoch in range(3)] for rank in ranks]
    for epoch in range(3):
        assert sorted(shares[0][epoch] + shares[1][epoch]) == numbers(16).tensors[0].flatten().tolist()
    assert shares[0][0] != shares[0][1], "the order is shuffled anew"


class Accumulates(SingleDeviceStrategy):
    """As DeepSpeed's: it divides losses and counts micro-batches by itself."""

    handles_gradient_accumulation = True


def test_p16_a_strategy_that_accumulates_by_itself_is_refused() -> None:
    strategy = Accumulates(device=torch.device("cpu"))
    with pytest.raises(MisconfigurationException, match="Accumulates accumulates by itself"):
        train([ramp([0.5])], loader(8, 2), strategy=strategy)


def test_p17_a_sampler_that_shuffles_by_epoch_is_told_the_epoch() -> None:
    class Hidden(BatchSampler):
        """A wrapper that shows no ``sampler``."""

        def __init__(self, inner: BatchSampler) -> None:
            self.inner, self.batch_size, self.drop_last = inner, inner.batch_size, inner.drop_last

        def __iter__(self) -> Any:
            return iter(self.inner)

        def __len__(self) -> int:
            return len(self.inner)

    def sampler() -> DistributedSampler[Any]:
        return DistributedSampler(numbers(16), 1, 0, shuffle=True)

    hidden = Hidden(BatchSampler(sampler(), 2, False))
    naive, _ = train([], DataLoader(numbers(16), batch_sampler=hidden), max_epochs=2)
    assert naive.samples[:16] == naive.samples[16:]
    ours, _ = train([ramp([1])], loader(16, 2, sampler=sampler()), max_epochs=2)
    orders = []
    for epoch in range(2):
        reference = sampler()
        reference.set_epoch(epoch)
        orders += [10.0**index for index in reference]
    assert ours.samples == orders
