"""`GradientNoiseScale` on a problem whose noise scale is known: accumulation and devices give the same answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import GradientNoiseScale
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DIMENSION, SIGMA, GRADIENT = 20, 1.5, 0.5
EXACT = DIMENSION * SIGMA**2 / (DIMENSION * GRADIENT**2)  # tr(Sigma) / |G|^2 = 9 samples


class Linear(LightningModule):
    """Loss ``w . x``: the gradient of a sample is x itself, Gaussian about GRADIENT, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(DIMENSION))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (batch[0] @ self.w).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def samples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    return TensorDataset(GRADIENT + SIGMA * torch.randn(count, DIMENSION, generator=generator))


def measured(batch_size: int, accumulation: int, updates: int = 500, **arguments: Any) -> float:
    world = arguments.get("devices", 1)
    noise = GradientNoiseScale(smoothing=0.99)
    loader = DataLoader(samples(batch_size * accumulation * world * updates), batch_size=batch_size)
    fit([noise], module=Linear(), loader=loader, max_epochs=1, accumulate_grad_batches=accumulation, **arguments)
    assert noise.estimator.updates == updates
    value = noise.estimator.value
    assert value is not None
    return value


def test_within_ten_percent_of_the_known_scale_after_500_updates() -> None:
    assert measured(4, 4) == pytest.approx(EXACT, rel=0.1)


def test_two_devices_and_accumulation_agree(tmp_path: Path) -> None:
    cases = [("devices", partial(_two, 8, 1)), ("both", partial(_two, 4, 2))]
    first, second = run_in_two_processes(cases, tmp_path)
    for name in ("devices", "both"):
        if isinstance(first[name], Exception):
            raise first[name]
        assert first[name] == second[name], "ranks agree"
        assert first[name] == pytest.approx(EXACT, rel=0.1)


def _two(batch_size: int, accumulation: int) -> float:
    return measured(batch_size, accumulation, **ddp())


def test_nothing_is_changed_by_measuring() -> None:
    bare, bare_probe = _run([])
    ours, our_probe = _run([GradientNoiseScale()])
    assert torch.equal(weights(bare), weights(ours))
    assert bare_probe.series == our_probe.series
    assert not any(parameter._backward_hooks for parameter in ours.parameters())


def _run(callbacks: list[Any]) -> tuple[LightningModule, Probe]:
    probe = Probe()
    module, _ = fit([*callbacks, probe], module=Toy(), loader=DataLoader(data(), batch_size=4),
                    accumulate_grad_batches=2)  # fmt: skip
    return module, probe


def test_one_gradient_per_update_is_said_and_nothing_is_logged() -> None:
    noise = GradientNoiseScale()
    with pytest.warns(UserWarning, match="nothing to compare it with"):
        fit([noise])
    assert noise.estimator.value is None


def test_measured_every_few_updates() -> None:
    noise = GradientNoiseScale(every=3)
    fit([noise], loader=DataLoader(data(48), batch_size=4), accumulate_grad_batches=2)
    assert noise.estimator.updates == 6


@pytest.mark.parametrize("arguments", [{"every": 0}, {"smoothing": 1.0}])
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GradientNoiseScale(**arguments)
